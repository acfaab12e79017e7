/*
 * The format's B+ tree (FORMAT.md sections 4 and 5): 64-bit keys, values of 4 to 24
 * bytes, nodes shared between trees and copied when changed.
 *
 * A tree is its root block and a description of its values. Changing calls run inside
 * the tm's operation, give the new root, and leave the invariants I1 to I7. Every call
 * may be -THIN_E_WOULD_BLOCK, and on any failure the operation is undone by its owner.
 * Mapping trees of two levels are two trees: the top level's values are roots.
 */
#ifndef THIN_CORE_PERSIST_BTREE_H
#define THIN_CORE_PERSIST_BTREE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/ondisk/node.h"
#include "core/persist/transaction_manager.h"

#define BTREE_DEPTH_MAX \
    8u /* levels of nodes of the format's size; a deeper tree on disk is damage */
#define BTREE_DEPTH_MAX_SMALL 24u /* where internal_max makes nodes smaller: tests */

/*
 * What values refer to. inc and dec get a run of `nr` values lying in one node, value
 * i at values + i * size; NULL: values refer to nothing. `equal` (NULL: memcmp) says
 * that two values refer to the same thing, so that overwriting needs no dec.
 */
struct btree_value_type {
    uint32_t size;
    void *context;
    int (*inc)(void *context, const uint8_t *values, uint32_t nr, struct thin_error *err);
    int (*dec)(void *context, const uint8_t *values, uint32_t nr, struct thin_error *err);
    bool (*equal)(void *context, const uint8_t *a, const uint8_t *b);
};

struct btree {
    struct transaction_manager *tm;
    struct btree_value_type value;
    uint32_t leaf_max;     /* 0: the format's; tests use small multiples of 3, from 6 */
    uint32_t internal_max; /* likewise */
};

/* An empty leaf of count 1. */
int btree_create(const struct btree *t, mblock_t *ret_root, struct thin_error *err);

/* *ret_found, and the value copied to `value` if found. */
int btree_lookup(const struct btree *t, mblock_t root, uint64_t key, void *value,
                 bool *ret_found, struct thin_error *err);
/* First key at or after `key`. */
int btree_lookup_next(const struct btree *t, mblock_t root, uint64_t key,
                      uint64_t *ret_key, void *value, bool *ret_found,
                      struct thin_error *err);
int btree_lowest(const struct btree *t, mblock_t root, uint64_t *ret_key, bool *ret_found,
                 struct thin_error *err);
int btree_highest(const struct btree *t, mblock_t root, uint64_t *ret_key,
                  bool *ret_found, struct thin_error *err);

/*
 * Copies the leaf that covers `key`: entries[] as key and 8-byte value (value size 8
 * only). The leaf answers for all keys of [*ret_begin, *ret_end): what is not in
 * entries is not mapped. For filling caches.
 */
struct btree_entry64 {
    uint64_t key, value;
};
int btree_read_leaf(const struct btree *t, mblock_t root, uint64_t key,
                    struct btree_entry64 *entries, uint32_t max_entries, uint32_t *ret_nr,
                    uint64_t *ret_begin, uint64_t *ret_end, struct thin_error *err);

/* Inserts or overwrites; takes over the reference that `value` stands for.
   *ret_inserted: the key was not there. */
int btree_insert(const struct btree *t, mblock_t root, uint64_t key, const void *value,
                 mblock_t *ret_root, bool *ret_inserted, struct thin_error *err);

/* Removes one key and its value's reference. *ret_removed false: it was not there. */
int btree_remove(const struct btree *t, mblock_t root, uint64_t key, mblock_t *ret_root,
                 bool *ret_removed, struct thin_error *err);

/*
 * Removes keys of [begin, end), from the highest down, touching about `budget` nodes
 * and a leaf or so of values that nobody else holds (at least one leaf's worth is done); leaves inside the range are dropped whole: a leaf
 * of count 1 gives back its values, a shared leaf or subtree loses one reference (its
 * entries are counted from its leaves' headers; a shared subtree with more leaves than
 * the budget is copied open first). *ret_removed: entries that went;
 * *ret_end: keys at or above it in the range are gone; done when *ret_end == begin.
 * The leaves are fetched before anything changes: `budget` must be well below the cache.
 */
int btree_trim(const struct btree *t, mblock_t root, uint64_t begin, uint64_t end,
               uint32_t budget, mblock_t *ret_root, uint64_t *ret_removed,
               uint64_t *ret_end, struct thin_error *err);

/* O(1): one reference more to the root. */
int btree_clone(const struct btree *t, mblock_t root, struct thin_error *err);

/* Drops the tree whole, in one operation: for small trees and tests. */
int btree_delete(const struct btree *t, mblock_t root, struct thin_error *err);

/* Calls `visit` for each entry of [begin, end) in order until it returns not 0, which
   is then returned. */
int btree_walk(const struct btree *t, mblock_t root, uint64_t begin, uint64_t end,
               int (*visit)(void *arg, uint64_t key, const uint8_t *value), void *arg,
               struct thin_error *err);

/* Nodes and entries below `root` and the depth: for tests and statistics. */
struct btree_shape {
    uint64_t nr_internal, nr_leaves, nr_entries;
    uint32_t depth;
};
int btree_measure(const struct btree *t, mblock_t root, struct btree_shape *ret_shape,
                  struct thin_error *err);

/* The validator of this tree's nodes. */
void btree_validator(const struct btree *t, struct bm_validator *ret_v);

#endif
