/* Putting the table of changes into bitmaps, index and overflow tree. */
#include <inttypes.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/persist/btree_private.h"
#include "core/persist/sm_private.h"
#include "core/persist/tm_private.h"

#define MERGE_TREE_COST 8u /* a change of the overflow tree counts as so many */
#define MERGE_NODES_MAX (TM_OP_NODES_MAX / 4)

uint32_t
sm_nr_deltas(const struct space_map *sm)
{
    return sm->nr_deltas;
}

uint64_t
sm_merge_need(const struct space_map *sm)
{
    uint64_t nr_bitmaps = div_up_u64(sm->core.root.nr_blocks, BITMAP_ENTRIES);
    /* A count that falls is in the overflow tree only if it has an entry there. */
    uint64_t changes = sm->nr_up + min_u64(sm->nr_down, sm->core.overflow_max);

    if (sm->nr_deltas == 0)
        return 0;
    return sm->nr_groups + btree_change_need(&sm->index, nr_bitmaps, sm->nr_groups) +
           btree_change_need(&sm->overflow, sm->core.overflow_max + sm->nr_up, changes);
}

static int
put_overflow(struct space_map *sm, dblock_t b, uint32_t old, uint32_t count,
             struct thin_error *err)
{
    mblock_t *root = &sm->core.root.ref_count_root;
    uint8_t value[VALUE_SIZE_COUNT];
    bool changed;
    int r;

    if (count >= BITMAP_COUNT_OVERFLOW) {
        store_le32(value, count);
        r = btree_insert(&sm->overflow, *root, b, value, root, &changed, err);
        if (r == 0)
            sm->core.overflow_max += changed;
        return r;
    }
    if (old < BITMAP_COUNT_OVERFLOW)
        return 0;
    r = btree_remove(&sm->overflow, *root, b, root, &changed, err);
    if (r == 0 && sm->core.overflow_max)
        sm->core.overflow_max -= changed;
    return r;
}

/* Applies one change to its bitmap (write-locked). *cost grows by what it took. */
static int
merge_one(struct space_map *sm, struct bm_block *bitmap, const struct sm_delta *d,
          uint32_t *cost, struct thin_error *err)
{
    uint32_t e = (uint32_t)(d->block % BITMAP_ENTRIES);
    uint32_t old = bitmap_get(bm_data(bitmap), e);
    int64_t count;
    int r;

    sm->merge_at = SM_AT_BLOCK;
    sm->merge_block = d->block;
    if (old == BITMAP_COUNT_OVERFLOW) {
        r = sm_overflow_count(sm, d->block, &old, err);
        if (r < 0)
            return r;
    }
    count = (int64_t)old + d->delta;
    if (count < 0 || count > UINT32_MAX || (d->fresh && old))
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "count of data block %" PRIu64 " is %" PRIu32
                         " and should change by %" PRId32,
                         d->block, old, d->delta);
    r = put_overflow(sm, d->block, old, (uint32_t)count, err);
    if (r < 0)
        return r;
    *cost += old >= BITMAP_COUNT_OVERFLOW || count >= BITMAP_COUNT_OVERFLOW
                 ? MERGE_TREE_COST
                 : 1;
    sm->merge_at = SM_AT_BITMAP;
    bitmap_set(bm_data_rw(bitmap), e,
               (unsigned)min_u64((uint64_t)count, BITMAP_COUNT_OVERFLOW));
    sm->core.root.nr_allocated += count != 0;
    sm->core.root.nr_allocated -= old != 0;
    if (count == 0) {
        bitset_clear(&sm->full, d->block / BITMAP_ENTRIES);
        r = sm_pend(sm, d->block, err);
        if (r < 0)
            return r;
    }
    return sm_delta_remove(sm, d->block, err);
}

static bool
changes_tree(const struct bm_block *bitmap, const struct sm_delta *d)
{
    uint32_t old = bitmap_get(bm_data(bitmap), (uint32_t)(d->block % BITMAP_ENTRIES));

    return old == BITMAP_COUNT_OVERFLOW ||
           (int64_t)old + d->delta >= BITMAP_COUNT_OVERFLOW;
}

static int
compare_deltas(const void *a, const void *b)
{
    dblock_t x = ((const struct sm_delta *)a)->block,
             y = ((const struct sm_delta *)b)->block;

    return x < y ? -1 : x > y;
}

/* The newest changes of the bitmap, as many as one step may take, in block order: what is
   freed together lies together mostly, and makes one run. Sorting all of them would be a
   long step by itself. */
static int
merge_bitmap(struct space_map *sm, uint64_t k, struct bm_block *bitmap,
             struct thin_error *err)
{
    uint32_t at = 0, nr = 0, cost = 0, changes = tm_step_changes(sm->tm);
    int r = 0;

    THIN_ASSERT(u64_map_get(&sm->group_at, k, &at));
    for (uint32_t i = sm->groups[at].first; i != SM_NONE && nr < SM_MERGE_BLOCKS;
         i = sm->deltas[i].next)
        sm->merging[nr++] = sm->deltas[i];
    qsort(sm->merging, nr, sizeof(sm->merging[0]), compare_deltas);
    /* What does not fit is the next step's. */
    for (uint32_t i = 0; r == 0 && i < nr && cost < SM_MERGE_BLOCKS &&
                         (i == 0 || tm_op_nr_nodes(sm->tm) < MERGE_NODES_MAX);
         i++) {
        if (changes_tree(bitmap, &sm->merging[i]) && changes-- == 0)
            break;
        r = merge_one(sm, bitmap, &sm->merging[i], &cost, err);
    }
    return r;
}

int
sm_merge_step(struct space_map *sm, bool *ret_more, struct thin_error *err)
{
    struct index_entry entry;
    uint8_t value[VALUE_SIZE_INDEX];
    uint64_t k;
    bool inserted, shared;
    int r;

    if (!bitset_next(&sm->group_set, 0, &k)) {
        *ret_more = false;
        return 0;
    }
    sm_save_core(sm);
    sm->merge_at = SM_AT_BITMAP;
    sm->merge_block = k * BITMAP_ENTRIES;
    {
        BLOCK_LOCK struct bm_block *bitmap = NULL;

        r = sm_read_bitmap(sm, k, &bitmap, &entry, err);
        if (r < 0)
            return r;
        bm_unlock(bitmap);
        bitmap = NULL;
        r = tm_shadow_block(sm->tm, entry.blocknr, &sm_bitmap_validator, &bitmap, &shared,
                            err);
        if (r == 0 && shared)
            r = thin_fail(err, -THIN_E_BAD_BLOCK, "bitmap is shared");
        if (r == 0)
            r = merge_bitmap(sm, k, bitmap, err);
        if (r < 0)
            return thin_wrap(err, r, "data bitmap %" PRIu64, k);
        entry.blocknr = bm_location(bitmap);
        entry.nr_free = bitmap_count_free(bm_data(bitmap), BITMAP_ENTRIES);
        entry.none_free_before = bitmap_find_free(bm_data(bitmap), 0, BITMAP_ENTRIES);
    }
    index_entry_encode(&entry, value);
    r = btree_insert(&sm->index, sm->core.root.bitmap_root, k, value,
                     &sm->core.root.bitmap_root, &inserted, err);
    if (r < 0)
        return thin_wrap(err, r, "index of data bitmap %" PRIu64, k);
    sm->merge_at = SM_AT_NOTHING;
    *ret_more = sm->nr_deltas > 0;
    return 0;
}
