/*
 * Pools on NBD exports: one whose connection broke with writes that were not durable is
 * closed and opened again, and one that could not be opened is tried again, with growing
 * pauses, until it can or somebody closes it. Main loop only.
 */
#ifndef THIN_SERVER_POOLS_WATCH_H
#define THIN_SERVER_POOLS_WATCH_H

#include "server/pools.h"

struct pools_watch;

int pools_watch_create(struct pools *pools, struct pools_watch **ret);
void pools_watch_destroy(struct pools_watch *watch); /* NULL is fine */

/* From now on; before, nothing is done. */
void pools_watch_start(struct pools_watch *watch);
/* Something has changed: looks soon, and at every pool that failed. */
void pools_watch_look(struct pools_watch *watch);
/* The pool could not be opened, or was closed to be opened again. */
void pools_watch_failed(struct pools_watch *watch, struct server_pool *sp);

#endif
