/* The data space map's inside, for its files. */
#ifndef THIN_CORE_PERSIST_SM_PRIVATE_H
#define THIN_CORE_PERSIST_SM_PRIVATE_H

#include "core/ondisk/bitmap.h"
#include "core/persist/bitset.h"
#include "core/persist/btree.h"
#include "core/persist/space_map.h"
#include "core/persist/u64_map.h"

#define SM_NONE UINT32_MAX

/* What an operation may change and undo puts back whole. */
struct sm_core {
    struct space_map_root root;
    uint64_t overflow_max; /* no more entries than this in the overflow tree */
    bool overflow_learnt;  /* overflow_max is better than a guess */
};

/*
 * One data block whose count changed. `fresh`: sm_alloc took it, so its merged count is
 * 0 and `delta` is the count; such an entry stays also when delta falls back to 0,
 * because a block that was handed out once is not handed out again before a commit.
 */
struct sm_delta {
    dblock_t block;
    int32_t delta;
    bool fresh;
    uint32_t next, prev; /* in its bitmap's group, or next in the free list */
};

/* The deltas of one bitmap. */
struct sm_group {
    uint32_t first, nr;
};

#define SM_PAGE_BLOCKS  512u
#define SM_MERGE_BLOCKS 96u /* changes merged by one step */

/* Pending bits of SM_PAGE_BLOCKS data blocks. */
struct sm_page {
    uint64_t bits[SM_PAGE_BLOCKS / 64];
    uint32_t nr;
    uint32_t next; /* in the free list */
};

/* A run of data blocks freed in transaction `txn`. */
struct sm_run {
    uint64_t txn;
    dblock_t begin;
    uint64_t len;
};

struct space_map {
    struct transaction_manager *tm;
    struct btree index, overflow;
    struct sm_core core;

    /* sm_deltas.c */
    struct u64_map delta_at; /* block -> place in deltas */
    struct sm_delta *deltas;
    uint32_t cap_deltas, used_deltas, free_delta, nr_deltas;
    uint32_t nr_fresh;       /* fresh ones with a count that is not 0 */
    uint32_t nr_up;          /* those that may put an entry into the overflow tree ... */
    uint32_t nr_down;        /* ... and those that may take one out */
    struct u64_map group_at; /* bitmap -> place in groups */
    struct sm_group *groups;
    uint32_t cap_groups, used_groups, free_group, nr_groups;
    struct bitset group_set; /* bitmaps that have a group, in order */

    /* sm_pending.c */
    struct u64_map page_at; /* block / SM_PAGE_BLOCKS -> place in pages */
    struct sm_page *pages;
    uint32_t cap_pages, used_pages, free_page;
    uint64_t nr_pending;
    struct sm_run *runs; /* a ring, oldest first */
    uint32_t runs_head, nr_runs, cap_runs;
    struct u64_map holds; /* block -> times held * 2 + (freed meanwhile) */

    struct bitset full;    /* bitmaps known to have no count of 0, or not to be read */
    struct bitset suspect; /* bitmaps that were damaged when last looked at */

    /* sm_park.c: what is neither allocated nor freed any more. */
    struct bitset parked; /* whole bitmaps */
    struct u64_map parked_blocks;
    uint32_t nr_parked_blocks;
    /* What the merge was at when it ended with an error. */
    enum { SM_AT_NOTHING, SM_AT_BITMAP, SM_AT_BLOCK } merge_at;
    dblock_t merge_block; /* or the bitmap's first */

    struct sm_delta merging[SM_MERGE_BLOCKS]; /* of one sm_merge_step */
};

/* Saves what undo puts back; before the first change of `core` in an operation. */
void sm_save_core(struct space_map *sm);

/* The bitmap that holds block k * BITMAP_ENTRIES, read-locked. */
int sm_read_bitmap(struct space_map *sm, uint64_t k, struct bm_block **ret_block,
                   struct index_entry *ret_entry, struct thin_error *err);
int sm_overflow_count(struct space_map *sm, dblock_t b, uint32_t *ret_count,
                      struct thin_error *err);
extern const struct bm_validator sm_bitmap_validator;

/* ---- sm_deltas.c ----------------------------------------------------------------------- */

struct sm_delta *sm_delta_find(const struct space_map *sm, dblock_t b);
int sm_delta_add(struct space_map *sm, dblock_t b, int change, struct thin_error *err);
int sm_delta_alloc(struct space_map *sm, dblock_t b, struct thin_error *err);
int sm_delta_remove(struct space_map *sm, dblock_t b, struct thin_error *err);
/* Room for what a full table takes, so that it does not grow on the way. */
int sm_deltas_prepare(struct space_map *sm, uint64_t nr_blocks);
void sm_deltas_fini(struct space_map *sm);

/* ---- sm_park.c ---------------------------------------------------------------------------- */

bool sm_is_parked(const struct space_map *sm, dblock_t b);

/* ---- sm_pending.c ------------------------------------------------------------------------ */

bool sm_is_pending(const struct space_map *sm, dblock_t b);
bool sm_is_held(const struct space_map *sm, dblock_t b);
/* `b` was freed in the open transaction; undone with the operation. */
int sm_pend(struct space_map *sm, dblock_t b, struct thin_error *err);
int sm_pending_prepare(struct space_map *sm, uint64_t nr_blocks);
void sm_pending_fini(struct space_map *sm);

#endif
