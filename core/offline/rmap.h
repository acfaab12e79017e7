/*
 * From data blocks to who maps them. As in thin_rmap 0.9 every leaf is visited once,
 * for the first device (by id) that reaches it: not all users of a block are listed.
 */
#ifndef THIN_CORE_OFFLINE_RMAP_H
#define THIN_CORE_OFFLINE_RMAP_H

#include "core/offline/live.h"

struct rmap_region {
    dblock_t begin, end;
};

struct rmap_run {
    dblock_t data;
    uint64_t dev_id;
    vblock_t virt;
    uint64_t len;
};

/* Ascending by data block, then device, then virtual block. Ends the row if not 0. */
typedef int rmap_run_fn(void *arg, const struct rmap_run *run);
int rmap(struct live_pool *pool, const struct rmap_region *regions, size_t nr_regions,
         rmap_run_fn *run, void *arg, struct thin_error *err);

#endif
