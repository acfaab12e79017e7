/*
 * The data space map: a 32-bit reference count for each data block, on disk as
 * 2-bit bitmaps below an index tree, with counts above 2 in an overflow tree.
 *
 * Changes of counts are collected in a bounded table (SM_DELTAS_MAX) and merged into
 * the bitmaps in block order, in bounded steps, before the transaction is cut; so the
 * space map never recurses into itself. Calls are part of the tm's open operation and
 * are undone with it. One thread. Any call may be -THIN_E_WOULD_BLOCK.
 *
 * A block is handed out only if its count is 0 in the present state and it is not
 * pending: freed in a transaction that is not durable, or held by sm_hold.
 */
#ifndef THIN_CORE_PERSIST_SPACE_MAP_H
#define THIN_CORE_PERSIST_SPACE_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "core/persist/transaction_manager.h"

#define SM_DELTAS_MAX  65536u   /* data blocks with a change not yet merged */
#define SM_PENDING_MAX 4194304u /* data blocks freed and not yet reusable */

struct space_map;

struct sm_stats {
    uint64_t nr_blocks;
    uint64_t
        nr_allocated;    /* merged counts that are not zero, plus new ones in the table */
    uint64_t nr_pending; /* free, but not to be handed out yet; not in nr_allocated */
    uint32_t nr_deltas;
};

/* An empty map of 0 blocks, inside an operation. */
int sm_create(struct transaction_manager *tm, struct space_map **ret_sm,
              struct thin_error *err);
/* Reads nothing. */
int sm_open(struct transaction_manager *tm, const struct space_map_root *root,
            struct space_map **ret_sm, struct thin_error *err);
void sm_destroy(struct space_map *sm);

/* As of the last merge; right for the superblock when sm_nr_deltas is 0. */
void sm_get_root(const struct space_map *sm, struct space_map_root *ret_root);
void sm_get_stats(const struct space_map *sm, struct sm_stats *ret_stats);

/* Larger only. A partial last bitmap's nr_free is counted anew (FORMAT.md 7.3).
   Bounded: extends by at most one new bitmap a call; *ret_done tells the end. */
int sm_extend(struct space_map *sm, uint64_t nr_blocks, bool *ret_done,
              struct thin_error *err);

/* The count as it stands, table included. */
int sm_count(struct space_map *sm, dblock_t b, uint32_t *ret_count,
             struct thin_error *err);

/* A run of one pointer more or less to each block of [begin, end). Freed blocks are
   found at the merge. -THIN_E_NEED_COMMIT when the table has no room. */
int sm_inc(struct space_map *sm, dblock_t begin, dblock_t end, struct thin_error *err);
int sm_dec(struct space_map *sm, dblock_t begin, dblock_t end, struct thin_error *err);

/*
 * Looks, once, at how large the overflow tree may be: what fewer pointers cost at the merge
 * is known better then. Before sm_dec, where room is short. Damage is no error.
 */
int sm_learn(struct space_map *sm, struct thin_error *err);

/*
 * The first run of allocatable blocks in [begin, end): at least one, at most `wanted`
 * long. *ret_len 0: none there. Looks at a bounded number of bitmaps a call:
 * *ret_next tells where to go on (== end when all was seen). Takes nothing: sm_alloc does.
 */
int sm_find_free(struct space_map *sm, dblock_t begin, dblock_t end, uint64_t wanted,
                 dblock_t *ret_begin, uint64_t *ret_len, dblock_t *ret_next,
                 struct thin_error *err);

/* Takes [begin, end), which sm_find_free just gave: count 1. */
int sm_alloc(struct space_map *sm, dblock_t begin, dblock_t end, struct thin_error *err);

/* Pending-free rules that only the pool knows: while held, a block that is freed is
   not handed out (I/O in flight through an old mapping; pass-down). Counted. */
int sm_hold(struct space_map *sm, dblock_t b);
void sm_release(struct space_map *sm, dblock_t b);

/*
 * Merges the changes of one bitmap (the lowest): an operation of its own, which the
 * caller begins with TM_COMMIT and keeps. *ret_more: changes are left.
 */
int sm_merge_step(struct space_map *sm, bool *ret_more, struct thin_error *err);

/*
 * After sm_merge_step, or the fetch of what it missed, has failed for damage: gives up
 * the counts that it failed at, so that a next step can go on with others. Part of the
 * open operation. [*ret_begin, *ret_end) is neither allocated nor freed any more, until
 * the map is opened anew: changes of its counts are dropped. The caller marks the pool
 * as needing a check. -THIN_E_INVALID if no step has failed.
 */
int sm_merge_park(struct space_map *sm, dblock_t *ret_begin, dblock_t *ret_end,
                  struct thin_error *err);
uint32_t sm_nr_deltas(const struct space_map *sm);

/* Upper bound of metadata blocks that merging the table may allocate. */
uint64_t sm_merge_need(const struct space_map *sm);

/*
 * Transaction `txn` is durable: blocks freed in it or before may be handed out.
 * `freed`, if not NULL, is told each run that became free for good (for pass-down);
 * it may sm_hold parts of it.
 */
void sm_durable(struct space_map *sm, uint64_t txn,
                void (*freed)(void *arg, dblock_t begin, dblock_t end), void *arg);
/* The same for `max_blocks` at most; true: some are left. */
bool sm_durable_some(struct space_map *sm, uint64_t txn, uint64_t max_blocks,
                     void (*freed)(void *arg, dblock_t begin, dblock_t end), void *arg);

#endif
