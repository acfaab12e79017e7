#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/log.h"
#include "core/base/seeded_bug.h"
#include "core/persist/btree_private.h"
#include "core/persist/sm_private.h"
#include "core/persist/tm_private.h"

#define SCAN_BITMAPS 8u    /* bitmaps that one sm_find_free looks into */
#define SCAN_TAKEN   1024u /* blocks that it passes whose count is 0, yet not to be had */

const struct bm_validator sm_bitmap_validator = {.kind = BLOCK_BITMAP};

/* ---- life --------------------------------------------------------------------------------- */

static struct space_map *
new_map(struct transaction_manager *tm, uint64_t nr_blocks)
{
    struct space_map *sm = calloc(1, sizeof(*sm));
    uint64_t nr_bitmaps = div_up_u64(nr_blocks, BITMAP_ENTRIES);
    uint32_t node_max = tm->params.node_max;

    if (!sm)
        return NULL;
    sm->tm = tm;
    sm->free_delta = sm->free_group = sm->free_page = SM_NONE;
    sm->index = (struct btree){
        .tm = tm,
        .value.size = VALUE_SIZE_INDEX,
        .leaf_max = node_max,
        .internal_max = node_max,
    };
    sm->overflow = (struct btree){
        .tm = tm,
        .value.size = VALUE_SIZE_COUNT,
        .leaf_max = node_max,
        .internal_max = node_max,
    };
    if (bitset_resize(&sm->group_set, nr_bitmaps) < 0 ||
        bitset_resize(&sm->full, nr_bitmaps) < 0 ||
        bitset_resize(&sm->parked, nr_bitmaps) < 0 ||
        bitset_resize(&sm->suspect, nr_bitmaps) < 0 ||
        sm_deltas_prepare(sm, nr_blocks) < 0 || sm_pending_prepare(sm, nr_blocks) < 0) {
        sm_destroy(sm);
        return NULL;
    }
    return sm;
}

void
sm_destroy(struct space_map *sm)
{
    if (!sm)
        return;
    sm_deltas_fini(sm);
    sm_pending_fini(sm);
    bitset_fini(&sm->full);
    bitset_fini(&sm->suspect);
    bitset_fini(&sm->parked);
    u64_map_fini(&sm->parked_blocks);
    free(sm);
}

int
sm_create(struct transaction_manager *tm, struct space_map **ret_sm,
          struct thin_error *err)
{
    struct space_map *sm = new_map(tm, 0);
    int r;

    if (!sm)
        return thin_fail_code(err, -ENOMEM, "data space map");
    r = btree_create(&sm->index, &sm->core.root.bitmap_root, err);
    if (r == 0)
        r = btree_create(&sm->overflow, &sm->core.root.ref_count_root, err);
    if (r < 0) {
        sm_destroy(sm);
        return thin_wrap(err, r, "create the data space map");
    }
    sm->core.overflow_learnt = true;
    *ret_sm = sm;
    return 0;
}

int
sm_open(struct transaction_manager *tm, const struct space_map_root *root,
        struct space_map **ret_sm, struct thin_error *err)
{
    struct space_map *sm;

    if (root->nr_blocks > DATA_BLOCK_NR_MAX + 1 || root->nr_allocated > root->nr_blocks)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "data space map of %" PRIu64 " blocks, %" PRIu64 " of them used",
                         root->nr_blocks, root->nr_allocated);
    sm = new_map(tm, root->nr_blocks);
    if (!sm)
        return thin_fail_code(err, -ENOMEM, "data space map");
    sm->core.root = *root;
    sm->core.overflow_max = root->nr_allocated;
    *ret_sm = sm;
    return 0;
}

void
sm_save_core(struct space_map *sm)
{
    tm_op_save(sm->tm, &sm->core, sizeof(sm->core));
}

void
sm_get_root(const struct space_map *sm, struct space_map_root *ret_root)
{
    *ret_root = sm->core.root;
}

void
sm_get_stats(const struct space_map *sm, struct sm_stats *ret_stats)
{
    *ret_stats = (struct sm_stats){
        .nr_blocks = sm->core.root.nr_blocks,
        .nr_allocated = sm->core.root.nr_allocated + sm->nr_fresh,
        .nr_pending = sm->nr_pending,
        .nr_deltas = sm->nr_deltas,
    };
}

/* ---- counts --------------------------------------------------------------------------------- */

int
sm_read_bitmap(struct space_map *sm, uint64_t k, struct bm_block **ret_block,
               struct index_entry *ret_entry, struct thin_error *err)
{
    uint8_t value[VALUE_SIZE_INDEX];
    bool found;
    int r;

    r = btree_lookup(&sm->index, sm->core.root.bitmap_root, k, value, &found, err);
    if (r == 0 && !found)
        r = thin_fail(err, -THIN_E_BAD_BLOCK, "it is not in the index");
    if (r == 0) {
        index_entry_decode(ret_entry, value);
        r = tm_read_lock(sm->tm, ret_entry->blocknr, &sm_bitmap_validator, ret_block,
                         err);
    }
    return r == 0 ? 0 : thin_wrap(err, r, "data bitmap %" PRIu64, k);
}

int
sm_overflow_count(struct space_map *sm, dblock_t b, uint32_t *ret_count,
                  struct thin_error *err)
{
    uint8_t value[VALUE_SIZE_COUNT];
    bool found;
    uint32_t count;
    int r;

    r = btree_lookup(&sm->overflow, sm->core.root.ref_count_root, b, value, &found, err);
    if (r < 0)
        return thin_wrap(err, r, "count of data block %" PRIu64, b);
    count = found ? load_le32(value) : 0;
    if (count < BITMAP_COUNT_OVERFLOW)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "data block %" PRIu64 " is counted 3 or more by its bitmap and "
                         "%" PRIu32 " by the overflow tree",
                         b, count);
    *ret_count = count;
    return 0;
}

static int
check_range(const struct space_map *sm, dblock_t begin, dblock_t end,
            struct thin_error *err)
{
    if (begin > end || end > sm->core.root.nr_blocks)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "data blocks %" PRIu64 " to %" PRIu64 " of a pool of %" PRIu64,
                         begin, end, sm->core.root.nr_blocks);
    return 0;
}

int
sm_count(struct space_map *sm, dblock_t b, uint32_t *ret_count, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *bitmap = NULL;
    const struct sm_delta *d = sm_delta_find(sm, b);
    struct index_entry entry;
    uint32_t count;
    int r;

    r = check_range(sm, b, b + 1, err);
    if (r == 0)
        r = sm_read_bitmap(sm, b / BITMAP_ENTRIES, &bitmap, &entry, err);
    if (r < 0)
        return r;
    count = bitmap_get(bm_data(bitmap), (uint32_t)(b % BITMAP_ENTRIES));
    if (count == BITMAP_COUNT_OVERFLOW) {
        r = sm_overflow_count(sm, b, &count, err);
        if (r < 0)
            return r;
    }
    if (d && (int64_t)count + d->delta < 0)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "count of data block %" PRIu64 " falls below 0", b);
    *ret_count = d ? count + (uint32_t)d->delta : count;
    return 0;
}

static int
change_range(struct space_map *sm, dblock_t begin, dblock_t end, int change,
             struct thin_error *err)
{
    int r = check_range(sm, begin, end, err);

    for (dblock_t b = begin; r == 0 && b < end; b++)
        r = sm_delta_add(sm, b, change, err);
    return r;
}

int
sm_inc(struct space_map *sm, dblock_t begin, dblock_t end, struct thin_error *err)
{
    return change_range(sm, begin, end, 1, err);
}

int
sm_dec(struct space_map *sm, dblock_t begin, dblock_t end, struct thin_error *err)
{
    /* Each may turn out to be free at the merge, when it is too late to refuse. */
    if (sm->nr_pending + sm->nr_deltas + (end - begin) > SM_PENDING_MAX)
        return thin_fail(err, -THIN_E_NEED_COMMIT,
                         "%" PRIu64 " data blocks wait to be "
                         "free",
                         sm->nr_pending);
    return change_range(sm, begin, end, -1, err);
}

/* ---- free blocks ---------------------------------------------------------------------------- */

/* The bitmap counts it 0; may it be handed out? */
static bool
is_usable(const struct space_map *sm, dblock_t b)
{
    return !sm_is_pending(sm, b) && !sm_delta_find(sm, b) && !sm_is_held(sm, b) &&
           !sm_is_parked(sm, b);
}

/*
 * The first usable run in [from, to) of a bitmap. *ret_any: some count there is 0. False:
 * none before *ret_first, which is less than `to` if *left, how many blocks may be passed
 * that are taken and not yet merged, came to 0.
 */
static bool
scan_bitmap(const struct space_map *sm, const void *bitmap, uint64_t k, uint32_t from,
            uint32_t to, uint64_t wanted, uint32_t *left, uint32_t *ret_first,
            uint32_t *ret_len, bool *ret_any)
{
    dblock_t base = k * BITMAP_ENTRIES;
    uint32_t e = from, len = 0;

    *ret_any = false;
    for (;; e++) {
        e = bitmap_find_free(bitmap, e, to);
        *ret_first = e;
        if (e == to)
            return false;
        *ret_any = true;
        if (is_usable(sm, base + e))
            break;
        *ret_first = e + 1;
        if (--*left == 0)
            return false;
    }
    while (len < wanted && e + len < to && bitmap_get(bitmap, e + len) == 0 &&
           is_usable(sm, base + e + len))
        len++;
    *ret_first = e;
    *ret_len = len;
    return true;
}

/* A better bound than "all that is used" for the overflow tree's entries. */
static int
learn_overflow(struct space_map *sm, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *root = NULL;
    struct btree_span span = BTREE_SPAN_ALL;
    uint64_t max;
    int r;

    r = btree_get(&sm->overflow, sm->core.root.ref_count_root, 0, &span, &root, err);
    if (r < 0)
        return r;
    if (tm_op_open(sm->tm))
        sm_save_core(sm);
    max = node_nr_entries(bm_data(root));
    if (!node_is_leaf(bm_data(root))) {
        BLOCK_LOCK struct bm_block *child = NULL;
        struct btree_span child_span = btree_child_span(bm_data(root), 0, &span);

        r = btree_get(&sm->overflow, node_value64(bm_data(root), 0), 1, &child_span,
                      &child, err);
        if (r < 0)
            return r;
        max = node_is_leaf(bm_data(child)) ? max * node_max_entries(bm_data(child))
                                           : sm->core.root.nr_allocated;
    }
    sm->core.overflow_max = min_u64(max, sm->core.overflow_max);
    sm->core.overflow_learnt = true;
    return 0;
}

/* A bitmap that cannot be trusted gives no blocks; the rest of the pool does. */
int
sm_learn(struct space_map *sm, struct thin_error *err)
{
    int r = sm->core.overflow_learnt ? 0 : learn_overflow(sm, err);

    return r < 0 && !is_damage(r) ? thin_wrap(err, r, "data overflow tree") : 0;
}

int
sm_find_free(struct space_map *sm, dblock_t begin, dblock_t end, uint64_t wanted,
             dblock_t *ret_begin, uint64_t *ret_len, dblock_t *ret_next,
             struct thin_error *err)
{
    uint64_t nr_blocks = sm->core.root.nr_blocks;
    dblock_t b = begin;
    uint32_t left = SCAN_TAKEN;
    int r;

    r = sm_learn(sm, err);
    if (r < 0)
        return r;
    end = min_u64(end, nr_blocks);
    for (unsigned looked = 0; b < end && looked < SCAN_BITMAPS;) {
        BLOCK_LOCK struct bm_block *bitmap = NULL;
        uint64_t k = b / BITMAP_ENTRIES;
        dblock_t base = k * BITMAP_ENTRIES;
        uint32_t from = (uint32_t)(b - base), first, len;
        uint32_t to = (uint32_t)min_u64(BITMAP_ENTRIES, end - base);
        struct index_entry entry;
        bool any;

        b = base + to;
        if (bitset_test(&sm->full, k))
            continue;
        looked++;
        /* The entry's own numbers are hints from who knows whom: FORMAT.md 7.3. */
        r = sm_read_bitmap(sm, k, &bitmap, &entry, err);
        if (is_damage(r) && seeded_bug(SEEDED_DAMAGED_GIVEN_OUT)) {
            *ret_begin = base + from;
            *ret_len = min_u64(wanted, to - from);
            *ret_next = *ret_begin + *ret_len;
            return 0;
        }
        if (is_damage(r) && bitset_test(&sm->suspect, k)) {
            log_error("data bitmap is damaged, none of its blocks is handed out "
                      "bitmap=%" PRIu64 " error=%s",
                      k, thin_error_name(r));
            bitset_set(&sm->full, k);
            continue;
        }
        /* It may have been the transfer: this request fails, the next reads again. */
        if (is_damage(r))
            bitset_set(&sm->suspect, k);
        if (r < 0)
            return r;
        bitset_clear(&sm->suspect, k);
        if (scan_bitmap(sm, bm_data(bitmap), k, from, to, wanted, &left, &first, &len,
                        &any)) {
            *ret_begin = base + first;
            *ret_len = len;
            *ret_next = base + first + len;
            return 0;
        }
        if (left == 0) {
            b = base + first;
            break;
        }
        if (!any && from == 0 && (to == BITMAP_ENTRIES || base + to == nr_blocks))
            bitset_set(&sm->full, k);
    }
    *ret_len = 0;
    *ret_next = b < end ? b : end;
    return 0;
}

int
sm_alloc(struct space_map *sm, dblock_t begin, dblock_t end, struct thin_error *err)
{
    int r = check_range(sm, begin, end, err);

    for (dblock_t b = begin; r == 0 && b < end; b++) {
        THIN_ASSERT(!sm_is_pending(sm, b));
        if (sm_is_parked(sm, b))
            return thin_fail(err, -THIN_E_BAD_BLOCK,
                             "the count of data block %" PRIu64 " is damaged", b);
        r = sm_delta_alloc(sm, b, err);
    }
    return r;
}

/* ---- growth ----------------------------------------------------------------------------------- */

/* Within the last bitmap. Its nr_free is counted anew: who made it may have counted only
   up to the old end. */
static int
extend_last(struct space_map *sm, uint64_t nr_blocks, struct thin_error *err)
{
    struct space_map_root *root = &sm->core.root;
    uint64_t k = root->nr_blocks / BITMAP_ENTRIES;
    uint8_t value[VALUE_SIZE_INDEX];
    struct index_entry entry;
    bool inserted;
    int r;

    {
        BLOCK_LOCK struct bm_block *bitmap = NULL;

        r = sm_read_bitmap(sm, k, &bitmap, &entry, err);
        if (r < 0)
            return r;
        entry.nr_free = bitmap_count_free(bm_data(bitmap), BITMAP_ENTRIES);
        entry.none_free_before = bitmap_find_free(bm_data(bitmap), 0, BITMAP_ENTRIES);
    }
    index_entry_encode(&entry, value);
    r = btree_insert(&sm->index, root->bitmap_root, k, value, &root->bitmap_root,
                     &inserted, err);
    if (r < 0)
        return r;
    root->nr_blocks = min_u64(nr_blocks, (k + 1) * BITMAP_ENTRIES);
    return 0;
}

static int
add_bitmap(struct space_map *sm, uint64_t nr_blocks, struct thin_error *err)
{
    struct space_map_root *root = &sm->core.root;
    uint64_t k = root->nr_blocks / BITMAP_ENTRIES;
    struct index_entry entry = {.nr_free = BITMAP_ENTRIES};
    uint8_t value[VALUE_SIZE_INDEX];
    bool inserted;
    int r;

    {
        BLOCK_LOCK struct bm_block *bitmap = NULL;

        r = tm_new_block(sm->tm, &sm_bitmap_validator, &bitmap, err);
        if (r < 0)
            return r;
        entry.blocknr = bm_location(bitmap);
    }
    index_entry_encode(&entry, value);
    r = btree_insert(&sm->index, root->bitmap_root, k, value, &root->bitmap_root,
                     &inserted, err);
    if (r < 0)
        return r;
    root->nr_blocks = min_u64(nr_blocks, (k + 1) * BITMAP_ENTRIES);
    return 0;
}

int
sm_extend(struct space_map *sm, uint64_t nr_blocks, bool *ret_done,
          struct thin_error *err)
{
    uint64_t old = sm->core.root.nr_blocks;
    int r = 0;

    if (nr_blocks < old || nr_blocks > DATA_BLOCK_NR_MAX + 1)
        return thin_fail(err, -THIN_E_RANGE,
                         "data space map has %" PRIu64 " blocks and should have %" PRIu64,
                         old, nr_blocks);
    if (bitset_resize(&sm->group_set, div_up_u64(nr_blocks, BITMAP_ENTRIES)) < 0 ||
        bitset_resize(&sm->full, div_up_u64(nr_blocks, BITMAP_ENTRIES)) < 0 ||
        bitset_resize(&sm->parked, div_up_u64(nr_blocks, BITMAP_ENTRIES)) < 0 ||
        bitset_resize(&sm->suspect, div_up_u64(nr_blocks, BITMAP_ENTRIES)) < 0)
        return thin_fail_code(err, -ENOMEM, "data space map");
    sm_save_core(sm);
    if (old < nr_blocks && old % BITMAP_ENTRIES) {
        r = extend_last(sm, nr_blocks, err);
        if (!bitset_test(&sm->parked, old / BITMAP_ENTRIES))
            bitset_clear(&sm->full, old / BITMAP_ENTRIES);
    } else if (old < nr_blocks) {
        r = add_bitmap(sm, nr_blocks, err);
    }
    if (r < 0)
        return thin_wrap(err, r, "grow the data space map");
    *ret_done = sm->core.root.nr_blocks == nr_blocks;
    return 0;
}
