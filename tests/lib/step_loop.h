/*
 * A loop around another one that measures each callback: how long one step holds the
 * thread, in its own processor time (what the machine does meanwhile does not count).
 */
#ifndef THIN_TESTS_LIB_STEP_LOOP_H
#define THIN_TESTS_LIB_STEP_LOOP_H

#include "core/base/loop.h"

#define STEP_LOOP_LONG_MAX 8u /* callbacks that are told apart */

struct step_loop_stats {
    uint64_t nr_steps, nr_long; /* long: above `limit_ns` */
    uint64_t longest_ns;
    struct {
        const void *fn; /* the callback's address; NULL: no more */
        uint64_t nr, longest_ns;
    } longs[STEP_LOOP_LONG_MAX];
};

/* Borrows `inner`, which can wait (poll_loop.h). Aborts when out of memory. */
struct thin_loop *step_loop_create(struct thin_loop *inner, uint64_t limit_ns);
void step_loop_destroy(struct thin_loop *loop);
/* Since the last reset. */
void step_loop_get(struct thin_loop *loop, struct step_loop_stats *ret_stats);
void step_loop_reset(struct thin_loop *loop);

#endif
