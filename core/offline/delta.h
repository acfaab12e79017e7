/*
 * What differs between two devices: blocks that only one maps, and blocks that they map
 * to different places. Data blocks are compared, not times. Leaves that both trees
 * hold are the same by definition: they are read only for the runs of what is the same,
 * and not at all where just differences are wanted.
 */
#ifndef THIN_CORE_OFFLINE_DELTA_H
#define THIN_CORE_OFFLINE_DELTA_H

#include <stdbool.h>

#include "core/offline/live.h"

enum delta_kind { DELTA_SAME, DELTA_LEFT_ONLY, DELTA_RIGHT_ONLY, DELTA_DIFFERENT };

/* "same", "left_only", "right_only", "different": the XML's names. */
const char *delta_kind_name(enum delta_kind kind);

/* A run in which virtual block and data blocks step together. */
struct delta_run {
    enum delta_kind kind;
    vblock_t begin;
    uint64_t len;
    dblock_t left, right; /* where that side maps it */
};

typedef int delta_run_fn(void *arg, const struct delta_run *run);

/* In virtual order. Damage is an error. With `differences_only` nothing is told of what is
   the same, and what both trees share is not read: the cost follows what differs. */
int delta_devices(struct live_pool *pool, const struct live_device *left,
                  const struct live_device *right, bool differences_only,
                  delta_run_fn *run, void *arg, struct thin_error *err);

#endif
