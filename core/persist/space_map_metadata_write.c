/* The metadata space map on its way out: overflow tree, bitmaps and index at a cut. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/persist/bm_private.h"
#include "core/persist/tm_private.h"

#define OVERFLOW_STEP     32u                   /* entries written by one step */
#define OVERFLOW_STEP_MAX (TM_OP_NODES_MAX / 2) /* ... unless so many nodes changed */
#define OVERFLOW_AT_CUT   16u                   /* a rest that the cut writes itself */
#define OVERFLOW_FRAMES   8u /* clean frames that one of its changes may need */

uint32_t
tm_step_changes(const struct transaction_manager *tm)
{
    uint32_t nr = bm_clean_max(tm->bm) / OVERFLOW_FRAMES;

    return nr > OVERFLOW_STEP ? OVERFLOW_STEP : nr;
}

static int
compare_blocks(const void *a, const void *b)
{
    mblock_t x = *(const mblock_t *)a, y = *(const mblock_t *)b;

    return x < y ? -1 : x > y;
}

/* *ret_at: the block's place in `overflow`. */
static int
write_count(struct transaction_manager *tm, mblock_t b, uint32_t *ret_at,
            struct thin_error *err)
{
    mblock_t *root = &tm->core.overflow_root;
    uint8_t value[VALUE_SIZE_COUNT];
    bool was_there;
    uint32_t at = 0;
    int r;

    THIN_ASSERT(u64_map_get(&tm->overflow_at, b, &at));
    store_le32(value, tm->overflow[at].count);
    if (tm->overflow[at].count >= BITMAP_COUNT_OVERFLOW)
        r = btree_insert(&tm->overflow_tree, *root, b, value, root, &was_there, err);
    else
        r = btree_remove(&tm->overflow_tree, *root, b, root, &was_there, err);
    if (r < 0)
        return thin_wrap(err, r, "write the count of metadata block %" PRIu64, b);
    *ret_at = at;
    return 0;
}

static int
write_overflow(struct transaction_manager *tm, struct thin_error *err)
{
    uint32_t nr = tm->core.nr_changed, at;
    int r = 0;

    qsort(tm->changed, nr, sizeof(tm->changed[0]), compare_blocks);
    for (uint32_t i = 0; i < nr && r == 0; i++)
        r = write_count(tm, tm->changed[i], &at, err);
    return r;
}

bool
tm_merge_left(const struct transaction_manager *tm)
{
    return tm->core.nr_changed > min_u64(OVERFLOW_AT_CUT, tm_step_changes(tm));
}

static void
undo_written(void *arg, uint64_t b, uint64_t unused)
{
    struct transaction_manager *tm = arg;
    uint32_t at = 0;

    (void)unused;
    THIN_ASSERT(u64_map_get(&tm->overflow_at, b, &at));
    tm->overflow[at].changed = true;
}

int
tm_merge_step(struct transaction_manager *tm, struct thin_error *err)
{
    int r = 0;

    THIN_ASSERT(tm->op_open);
    tm->writing_overflow = true;
    /* From the end: undo puts the number back, and the blocks still stand there. */
    for (unsigned i = 0; r == 0 && tm->core.nr_changed && i < tm_step_changes(tm) &&
                         tm_op_nr_nodes(tm) < OVERFLOW_STEP_MAX;
         i++) {
        mblock_t b = tm->changed[tm->core.nr_changed - 1];
        uint32_t at = 0;

        r = write_count(tm, b, &at, err);
        if (r == 0)
            r = tm_op_on_undo(tm, undo_written, tm, b, 0);
        if (r == 0) {
            tm->overflow[at].changed = false;
            tm->core.nr_changed--;
        }
    }
    tm->writing_overflow = false;
    return r;
}

static int
move_index(struct transaction_manager *tm, struct thin_error *err)
{
    mblock_t old = tm->core.index_block;
    int r;

    if (old && bitset_test(&tm->made, old))
        return 0;
    r = tm_alloc(tm, &tm->core.index_block, err);
    if (r == 0 && old)
        r = tm_dec(tm, old, err);
    return r;
}

/* Gives every dirty bitmap a place of this transaction. Moving one makes others dirty;
   each moves once. */
static int
move_bitmaps(struct transaction_manager *tm, struct thin_error *err)
{
    bool again;

    do {
        again = false;
        for (uint32_t i = 0; i < tm->core.nr_bitmaps; i++) {
            struct tm_bitmap *bitmap = &tm->bitmaps[i];
            struct tm_undo undo = {.kind = UNDO_PLACE, .a = i, .b = bitmap->place};
            mblock_t old = bitmap->place;
            int r;

            if (!bitmap->dirty || (old && bitset_test(&tm->made, old)))
                continue;
            again = true;
            r = tm_log(tm, &undo, err);
            if (r == 0)
                r = tm_alloc(tm, &bitmap->place, err);
            if (r == 0 && old)
                r = tm_dec(tm, old, err);
            if (r < 0)
                return r;
        }
    } while (again);
    return 0;
}

/* The frame of a block that tm_alloc gave in this transaction, maybe in this pass. */
static int
frame_for(struct transaction_manager *tm, mblock_t b, const struct bm_validator *v,
          struct bm_block **ret_block, struct thin_error *err)
{
    int r;

    if (bm_find(tm->bm, b) && frame_is_open(bm_find(tm->bm, b))) {
        r = bm_write_lock(tm->bm, b, v, ret_block, err);
        return r < 0 ? r : tm_save_image(tm, *ret_block, err);
    }
    r = bm_new_lock(tm->bm, b, v, ret_block, err);
    if (r == 0)
        (*ret_block)->op = tm->op;
    return r;
}

static int
copy_bitmap(struct transaction_manager *tm, struct tm_bitmap *bitmap,
            struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    int r = frame_for(tm, bitmap->place, &tm_bitmap_validator, &block, err);

    if (r < 0)
        return r;
    memcpy(bm_data_rw(block), bitmap->image, METADATA_BLOCK_SIZE);
    bitmap->nr_free = bitmap_count_free(bitmap->image, BITMAP_ENTRIES);
    bitmap->none_free_before = bitmap_find_free(bitmap->image, 0, BITMAP_ENTRIES);
    return 0;
}

static int
copy_out(struct transaction_manager *tm, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *index = NULL;
    int r;

    for (uint32_t i = 0; i < tm->core.nr_bitmaps; i++) {
        if (!tm->bitmaps[i].dirty)
            continue;
        r = copy_bitmap(tm, &tm->bitmaps[i], err);
        if (r < 0)
            return r;
    }
    r = frame_for(tm, tm->core.index_block, &tm_index_validator, &index, err);
    if (r < 0)
        return r;
    memset(bm_data_rw(index), 0, METADATA_BLOCK_SIZE);
    for (uint32_t i = 0; i < tm->core.nr_bitmaps; i++) {
        struct index_entry entry = {
            .blocknr = tm->bitmaps[i].place,
            .nr_free = tm->bitmaps[i].nr_free,
            .none_free_before = tm->bitmaps[i].none_free_before,
        };

        index_entry_encode(&entry, index_block_entry(bm_data_rw(index), i));
    }
    return 0;
}

int
tm_prepare_cut(struct transaction_manager *tm, struct space_map_root *ret_root,
               struct thin_error *err)
{
    int r;

    tm_op_begin(tm, TM_COMMIT);
    tm->writing_overflow = true;
    r = write_overflow(tm, err);
    tm->writing_overflow = false;
    if (r == 0)
        r = move_index(tm, err);
    if (r == 0)
        r = move_bitmaps(tm, err);
    if (r == 0)
        r = copy_out(tm, err);
    if (r < 0) {
        tm_op_undo(tm);
        return thin_wrap(err, r, "write the metadata space map");
    }
    tm_op_keep(tm);
    for (uint32_t i = 0; i < tm->core.nr_bitmaps; i++)
        tm->bitmaps[i].dirty = false;
    tm->prepared = true;
    *ret_root = (struct space_map_root){
        .nr_blocks = tm->core.nr_blocks,
        .nr_allocated = tm->core.nr_allocated,
        .bitmap_root = tm->core.index_block,
        .ref_count_root = tm->core.overflow_root,
    };
    return 0;
}
