/*
 * Reads a pool's metadata as its trees stand (live, or the held snapshot's) and feeds
 * a visitor. Strict: the first damage is an error. Lenient: what can still be reached.
 */
#ifndef THIN_CORE_OFFLINE_LIVE_H
#define THIN_CORE_OFFLINE_LIVE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/offline/ir.h"
#include "core/offline/leaves.h"
#include "core/offline/source.h"
#include "core/ondisk/details.h"
#include "core/ondisk/superblock.h"

struct build_override;
struct live_options {
    bool metadata_snap;
    mblock_t snap_block; /* with metadata_snap: 0 for the superblock's held root */
    bool skip_mappings;
    const uint64_t *dev_ids; /* only these, if nr_dev_ids > 0 */
    size_t nr_dev_ids;
    bool lenient;
    const struct build_override *over; /* told in place of what is found; or NULL */
};

struct live_device {
    uint64_t dev_id;
    mblock_t root;
    struct device_details details;
    bool have_details;
    /* Repair only: where the root is from, how sure that is, what it was before, and
       subtrees that have lost their way from it (owned by the plan). */
    unsigned origin, rank;
    mblock_t lost_root;
    mblock_t fullest; /* of the roots that were found */
    struct leaf_ref *extra;
    size_t nr_extra;
};

/* A pool's superblock and devices, sorted by id. */
struct live_pool {
    struct meta_source *src;
    struct superblock sb; /* of the snapshot when that is read */
    mblock_t nr_blocks;   /* pointers lie below */
    uint64_t nr_skipped;  /* lenient: nodes left out */
    struct live_device *devices;
    size_t nr_devices, room;
};

/*
 * Reads superblock, details and top level. -THIN_E_NOT_THIN and the rest of
 * superblock_judge, -THIN_E_NOT_FOUND when no snapshot is held, damage as leaves.h.
 */
int live_open(struct meta_source *src, const struct live_options *opts,
              struct live_pool *ret, struct thin_error *err);
void live_close(struct live_pool *pool);

const struct live_device *live_find(const struct live_pool *pool, uint64_t dev_id);

/* The tree of mappings, for leaves.h. */
struct tree_shape live_mapping_tree(struct live_pool *pool, bool lenient);

void live_ir_superblock(const struct live_pool *pool, struct ir_superblock *ret);
void live_ir_device(const struct live_device *dev, struct ir_device *ret);

/*
 * One device, `runs` for its mappings in order. Lenient: damaged nodes and mappings that
 * no pool can have (beyond the data device, of the future) are left out.
 */
int live_read_device(struct live_pool *pool, const struct tree_shape *tree,
                     const struct live_device *dev, const struct ir_visitor *visitor,
                     void *arg, struct thin_error *err);

/* An open pool to `visitor`. */
int live_feed(struct live_pool *pool, const struct live_options *opts,
              const struct ir_visitor *visitor, void *arg, struct thin_error *err);

/* Everything, to `visitor`. */
int live_read(struct meta_source *src, const struct live_options *opts,
              const struct ir_visitor *visitor, void *arg, struct thin_error *err);

#endif
