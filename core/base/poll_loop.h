/* A small loop for tools and tests: poll(2), CLOCK_MONOTONIC, one thread. */
#ifndef THIN_CORE_BASE_POLL_LOOP_H
#define THIN_CORE_BASE_POLL_LOOP_H

#include "core/base/error.h"
#include "core/base/loop.h"

/* NULL when out of memory. The caller owns it; nothing may be armed at destroy. */
struct thin_loop *poll_loop_create(void);
void poll_loop_destroy(struct thin_loop *loop);

#endif
