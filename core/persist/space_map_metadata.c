/*
 * The metadata space map: all bitmaps in memory, counts above 2 in a table that knows
 * what the overflow tree does not. Written out by tm_prepare_cut, and only there, so
 * counting never allocates.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/persist/btree_private.h"
#include "core/persist/tm_private.h"

#define RESERVE_MAX         4096u
#define OVERFLOW_CACHED_MAX 65536u /* clean entries kept beyond a cut */
#define OP_FREED_FIRST      64u
#define FREED_FIRST         256u
#define COUNT_MAX           UINT32_MAX

const struct bm_validator tm_bitmap_validator = {.kind = BLOCK_BITMAP};
const struct bm_validator tm_index_validator = {.kind = BLOCK_INDEX};

/* ---- counts ------------------------------------------------------------------------------- */

uint64_t
tm_nr_free(const struct transaction_manager *tm)
{
    return tm->core.nr_blocks - tm->core.nr_allocated - tm->core.nr_pending;
}

int
tm_check_block(const struct transaction_manager *tm, mblock_t b, struct thin_error *err)
{
    if (b == 0 || b >= tm->core.nr_blocks)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "pointer to metadata block %" PRIu64 ", there are %" PRIu64, b,
                         tm->core.nr_blocks);
    return 0;
}

int
tm_no_space(const struct transaction_manager *tm, uint64_t wanted, uint64_t after,
            struct thin_error *err)
{
    /* What this operation itself freed it would free again; a pinned view keeps what the
       commit would free; and the commit of an empty transaction changes nothing. */
    uint64_t freed = TAILQ_EMPTY(&tm->pins) ? tm->before.nr_pending : 0;
    bool commit_helps = (freed || after < wanted) && tm_nr_free(tm) + freed >= after;

    return thin_fail(err, commit_helps ? -THIN_E_NEED_COMMIT : -THIN_E_NO_METADATA_SPACE,
                     "%" PRIu64 " of %" PRIu64 " metadata blocks are free, %" PRIu64
                     " must be, %" PRIu64 " wait for a commit",
                     tm_nr_free(tm), tm->core.nr_blocks, wanted, tm->core.nr_pending);
}

uint64_t
tm_base_need(const struct transaction_manager *tm)
{
    return tm->core.nr_bitmaps + 1;
}

uint64_t
tm_own_need(const struct transaction_manager *tm)
{
    return tm_base_need(tm) +
           btree_change_need(&tm->overflow_tree,
                             tm->core.nr_overflow + tm->core.nr_changed,
                             tm->core.nr_changed);
}

static unsigned
pair_of(const struct transaction_manager *tm, mblock_t b)
{
    return bitmap_get(tm->bitmaps[b / BITMAP_ENTRIES].image,
                      (uint32_t)(b % BITMAP_ENTRIES));
}

/* Room for one entry more; makes it if the block has none. */
static int
overflow_entry(struct transaction_manager *tm, mblock_t b, uint32_t *ret_at,
               struct thin_error *err)
{
    if (u64_map_get(&tm->overflow_at, b, ret_at))
        return 0;
    if (tm->nr_overflow == tm->cap_overflow) {
        uint32_t cap = tm->cap_overflow ? tm->cap_overflow * 2 : 64;
        struct tm_overflow *bigger = realloc(tm->overflow, cap * sizeof(*tm->overflow));

        if (!bigger)
            return thin_fail_code(err, -ENOMEM, "reference counts");
        tm->overflow = bigger;
        tm->cap_overflow = cap;
    }
    if (u64_map_reserve(&tm->overflow_at, 1) < 0)
        return thin_fail_code(err, -ENOMEM, "reference counts");
    tm->overflow[tm->nr_overflow] = (struct tm_overflow){0};
    u64_map_set(&tm->overflow_at, b, tm->nr_overflow);
    *ret_at = tm->nr_overflow++;
    return 0;
}

static int
load_overflow(struct transaction_manager *tm, mblock_t b, uint32_t *ret_count,
              struct thin_error *err)
{
    uint8_t value[VALUE_SIZE_COUNT];
    bool found;
    uint32_t at, count;
    int r;

    if (u64_map_get(&tm->overflow_at, b, &at)) {
        *ret_count = tm->overflow[at].count;
        return 0;
    }
    r = btree_lookup(&tm->overflow_tree, tm->core.overflow_root, b, value, &found, err);
    if (r < 0)
        return thin_wrap(err, r, "count of metadata block %" PRIu64, b);
    count = found ? load_le32(value) : 0;
    if (count < BITMAP_COUNT_OVERFLOW)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "metadata block %" PRIu64 " is counted 3 or more by its bitmap "
                         "and %" PRIu32 " by the overflow tree",
                         b, count);
    r = overflow_entry(tm, b, &at, err);
    if (r < 0)
        return r;
    tm->overflow[at].count = count;
    *ret_count = count;
    return 0;
}

int
tm_ref(struct transaction_manager *tm, mblock_t b, uint32_t *ret_count,
       struct thin_error *err)
{
    unsigned pair;
    int r = tm_check_block(tm, b, err);

    if (r < 0)
        return r;
    pair = pair_of(tm, b);
    if (pair == BITMAP_COUNT_OVERFLOW)
        return load_overflow(tm, b, ret_count, err);
    *ret_count = pair;
    return 0;
}

/* The old state of a block as one word for the log. */
#define STATE_CHANGED (1ull << 32) /* its overflow entry was changed already */
#define STATE_DIRTY   (1ull << 33) /* its bitmap was dirty already */
#define STATE_PENDING (1ull << 34)
#define STATE_MADE    (1ull << 35)

static void
put_pair(struct transaction_manager *tm, mblock_t b, uint32_t count)
{
    bitmap_set(tm->bitmaps[b / BITMAP_ENTRIES].image, (uint32_t)(b % BITMAP_ENTRIES),
               count < BITMAP_COUNT_OVERFLOW ? count : BITMAP_COUNT_OVERFLOW);
}

void
tm_undo_count(struct transaction_manager *tm, mblock_t b, uint64_t state)
{
    uint32_t at, count = (uint32_t)state;

    put_pair(tm, b, count);
    tm->bitmaps[b / BITMAP_ENTRIES].dirty = state & STATE_DIRTY;
    if (u64_map_get(&tm->overflow_at, b, &at)) {
        tm->overflow[at].count = count;
        tm->overflow[at].changed = state & STATE_CHANGED;
    }
    if (!(state & STATE_PENDING))
        bitset_clear(&tm->pending, b);
    if (!(state & STATE_MADE) && bitset_test(&tm->made, b)) {
        bitset_clear(&tm->made, b);
        bm_forget(tm->bm, b);
    }
}

void
tm_undo_place(struct transaction_manager *tm, uint64_t i, mblock_t place)
{
    tm->bitmaps[i].place = place;
}

/* Remembers that the overflow tree must learn the block's count. */
static int
note_changed(struct transaction_manager *tm, mblock_t b, uint32_t at,
             struct thin_error *err)
{
    if (tm->overflow[at].changed)
        return 0;
    if (tm->writing_overflow)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "node %" PRIu64 " of the metadata overflow tree is shared", b);
    if (tm->core.nr_changed == TM_OVERFLOW_MAX)
        return thin_fail(err, -THIN_E_NEED_COMMIT,
                         "%u metadata counts changed in one transaction",
                         TM_OVERFLOW_MAX);
    tm->changed[tm->core.nr_changed++] = b;
    tm->overflow[at].changed = true;
    return 0;
}

/* `extra`: the flags of the new state, PENDING or MADE. */
static int
set_count(struct transaction_manager *tm, mblock_t b, uint32_t old, uint32_t count,
          uint64_t extra, struct thin_error *err)
{
    struct tm_bitmap *bitmap = &tm->bitmaps[b / BITMAP_ENTRIES];
    bool overflows = old >= BITMAP_COUNT_OVERFLOW || count >= BITMAP_COUNT_OVERFLOW;
    struct tm_undo undo = {.kind = UNDO_COUNT, .a = b, .b = old};
    bool has_entry;
    uint32_t at = 0;
    int r;

    if (overflows) {
        r = overflow_entry(tm, b, &at, err);
        if (r < 0)
            return r;
    }
    has_entry = overflows || u64_map_get(&tm->overflow_at, b, &at);
    undo.b |= has_entry && tm->overflow[at].changed ? STATE_CHANGED : 0;
    undo.b |= bitmap->dirty ? STATE_DIRTY : 0;
    undo.b |= bitset_test(&tm->pending, b) ? STATE_PENDING : 0;
    undo.b |= bitset_test(&tm->made, b) ? STATE_MADE : 0;
    r = tm_log(tm, &undo, err);
    if (r < 0)
        return r;
    if (overflows) {
        r = note_changed(tm, b, at, err);
        if (r < 0)
            return r;
        tm->core.nr_overflow += count >= BITMAP_COUNT_OVERFLOW;
        tm->core.nr_overflow -= old >= BITMAP_COUNT_OVERFLOW;
    }
    if (has_entry)
        tm->overflow[at].count = count;
    put_pair(tm, b, count);
    bitmap->dirty = true;
    if (extra & STATE_PENDING)
        bitset_set(&tm->pending, b);
    if (extra & STATE_MADE)
        bitset_set(&tm->made, b);
    tm->core.nr_allocated += count != 0;
    tm->core.nr_allocated -= old != 0;
    return 0;
}

int
tm_inc(struct transaction_manager *tm, mblock_t b, uint32_t by, struct thin_error *err)
{
    uint32_t count;
    int r = tm_ref(tm, b, &count, err);

    if (r < 0)
        return r;
    if (count == 0 || by > COUNT_MAX - count)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "count of metadata block %" PRIu64 " is %" PRIu32
                         " and should rise by %" PRIu32,
                         b, count, by);
    return set_count(tm, b, count, count + by, 0, err);
}

/* Room to remember one more freed block, here and in the ring that `keep` fills. */
static int
room_for_freed(struct transaction_manager *tm, struct thin_error *err)
{
    if (tm->core.nr_pending >= TM_PENDING_MAX)
        return thin_fail(err, -THIN_E_NEED_COMMIT, "%u metadata blocks wait to be free",
                         TM_PENDING_MAX);
    if (tm->nr_op_freed == tm->cap_op_freed) {
        uint32_t cap = tm->cap_op_freed ? tm->cap_op_freed * 2 : OP_FREED_FIRST;
        mblock_t *bigger = realloc(tm->op_freed, cap * sizeof(*bigger));

        if (!bigger)
            return thin_fail_code(err, -ENOMEM, "freed metadata blocks");
        tm->op_freed = bigger;
        tm->cap_op_freed = cap;
    }
    if (tm->nr_freed + tm->nr_op_freed >= tm->cap_freed) {
        uint32_t cap = tm->cap_freed ? tm->cap_freed * 2 : FREED_FIRST;
        struct tm_freed *bigger = malloc(cap * sizeof(*bigger));

        if (!bigger)
            return thin_fail_code(err, -ENOMEM, "freed metadata blocks");
        THIN_ASSERT(tm->nr_freed <= tm->cap_freed);
        for (uint32_t i = 0; i < tm->nr_freed; i++)
            bigger[i] = tm->freed[(tm->freed_head + i) % tm->cap_freed];
        free(tm->freed);
        tm->freed = bigger;
        tm->freed_head = 0;
        tm->cap_freed = cap;
    }
    return 0;
}

int
tm_dec(struct transaction_manager *tm, mblock_t b, struct thin_error *err)
{
    uint32_t count;
    int r = tm_ref(tm, b, &count, err);

    if (r < 0)
        return r;
    if (count == 0)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "count of metadata block %" PRIu64 " falls below 0", b);
    if (count > 1)
        return set_count(tm, b, count, count - 1, 0, err);

    r = room_for_freed(tm, err);
    if (r < 0)
        return r;
    r = set_count(tm, b, 1, 0, STATE_PENDING, err);
    if (r < 0)
        return r;
    tm->core.nr_pending++;
    tm->op_freed[tm->nr_op_freed++] = b;
    return 0;
}

/* A free block in [begin, end) that is not pending. */
static bool
find_free(const struct transaction_manager *tm, mblock_t begin, mblock_t end,
          mblock_t *ret_block)
{
    mblock_t b = begin;

    while (b < end) {
        uint64_t i = b / BITMAP_ENTRIES;
        uint32_t limit = (uint32_t)min_u64(BITMAP_ENTRIES, end - i * BITMAP_ENTRIES);
        uint32_t e =
            bitmap_find_free(tm->bitmaps[i].image, (uint32_t)(b % BITMAP_ENTRIES), limit);

        b = i * BITMAP_ENTRIES + e;
        if (e == limit)
            continue;
        if (!bitset_test(&tm->pending, b)) {
            *ret_block = b;
            return true;
        }
        b++;
    }
    return false;
}

int
tm_alloc(struct transaction_manager *tm, mblock_t *ret_block, struct thin_error *err)
{
    mblock_t b = 0;
    int r;

    THIN_ASSERT(!tm->prepared);
    if (tm_nr_free(tm) == 0)
        return tm_no_space(tm, 1, 1, err);
    if (!find_free(tm, tm->core.cursor, tm->core.nr_blocks, &b))
        THIN_ASSERT(find_free(tm, 0, tm->core.cursor, &b));

    THIN_ASSERT(!bitset_test(&tm->pending, b));
    r = set_count(tm, b, 0, 1, STATE_MADE, err);
    if (r < 0)
        return r;
    tm->core.cursor = b + 1;
    tm->nr_op_allocs++;
    *ret_block = b;
    return 0;
}

/* ---- size ---------------------------------------------------------------------------------- */

static uint64_t
reserve_for(const struct transaction_manager *tm, uint64_t nr_blocks)
{
    return tm->params.reserve == UINT32_MAX ? min_u64(RESERVE_MAX, nr_blocks / 10)
                                            : tm->params.reserve;
}

/* Memory for a map of so many blocks; nothing is counted yet. */
static int
make_room(struct transaction_manager *tm, uint64_t nr_blocks, struct thin_error *err)
{
    uint64_t nr_bitmaps = div_up_u64(nr_blocks, BITMAP_ENTRIES);

    if (nr_blocks == 0 || nr_blocks > METADATA_BLOCKS_MAX ||
        nr_blocks > bm_nr_blocks(tm->bm))
        return thin_fail(err, -THIN_E_RANGE,
                         "metadata of %" PRIu64 " blocks on a device of %" PRIu64
                         ", %u at most",
                         nr_blocks, bm_nr_blocks(tm->bm), METADATA_BLOCKS_MAX);
    for (uint64_t i = tm->core.nr_bitmaps; i < nr_bitmaps; i++) {
        if (!tm->bitmaps[i].image)
            tm->bitmaps[i].image = malloc(METADATA_BLOCK_SIZE);
        if (!tm->bitmaps[i].image)
            return thin_fail_code(err, -ENOMEM, "metadata space map");
        memset(tm->bitmaps[i].image, 0, METADATA_BLOCK_SIZE);
        tm->bitmaps[i].place = 0;
        tm->bitmaps[i].nr_free = BITMAP_ENTRIES;
        tm->bitmaps[i].none_free_before = 0;
    }
    if (bitset_resize(&tm->pending, nr_blocks) < 0 ||
        bitset_resize(&tm->made, nr_blocks) < 0)
        return thin_fail_code(err, -ENOMEM, "metadata space map");
    return 0;
}

static void
set_size(struct transaction_manager *tm, uint64_t nr_blocks)
{
    uint32_t old = tm->core.nr_bitmaps;

    tm->core.nr_blocks = nr_blocks;
    tm->core.nr_bitmaps = (uint32_t)div_up_u64(nr_blocks, BITMAP_ENTRIES);
    tm->core.reserve = reserve_for(tm, nr_blocks);
    for (uint32_t i = old; i < tm->core.nr_bitmaps; i++)
        tm->bitmaps[i].dirty = true;
}

int
tm_extend(struct transaction_manager *tm, uint64_t nr_blocks, struct thin_error *err)
{
    int r;

    THIN_ASSERT(tm->op_open);
    if (nr_blocks <= tm->core.nr_blocks)
        return thin_fail(err, -THIN_E_RANGE,
                         "metadata has %" PRIu64 " blocks and should grow to %" PRIu64,
                         tm->core.nr_blocks, nr_blocks);
    r = make_room(tm, nr_blocks, err);
    if (r < 0)
        return r;
    set_size(tm, nr_blocks);
    return 0;
}

int
tm_format(struct transaction_manager *tm, uint64_t nr_blocks, struct thin_error *err)
{
    int r;

    THIN_ASSERT(tm->core.nr_blocks == 0 && tm->txn == 1);
    r = make_room(tm, nr_blocks, err);
    if (r < 0)
        return r;
    tm_op_begin(tm, TM_COMMIT);
    set_size(tm, nr_blocks);
    bitmap_set(tm->bitmaps[0].image, SUPERBLOCK_LOCATION, 1);
    tm->core.nr_allocated = 1;
    tm->core.cursor = 1;
    r = btree_create(&tm->overflow_tree, &tm->core.overflow_root, err);
    if (r < 0) {
        tm_op_undo(tm);
        return thin_wrap(err, r, "format the metadata space map");
    }
    tm_op_keep(tm);
    return 0;
}

/* ---- load ----------------------------------------------------------------------------------- */

/* Clears what the format says must be zero, so that growth finds it so. */
static void
clear_beyond(uint8_t *image, uint32_t end)
{
    for (uint32_t e = end; e < BITMAP_ENTRIES; e++)
        bitmap_set(image, e, 0);
}

static void
take_bitmap(struct transaction_manager *tm, uint32_t i, const void *block)
{
    struct tm_bitmap *bitmap = &tm->bitmaps[i];
    uint64_t begin = (uint64_t)i * BITMAP_ENTRIES;

    memcpy(bitmap->image, block, METADATA_BLOCK_SIZE);
    if (tm->core.nr_blocks - begin < BITMAP_ENTRIES)
        clear_beyond(bitmap->image, (uint32_t)(tm->core.nr_blocks - begin));
    bitmap->nr_free = bitmap_count_free(bitmap->image, BITMAP_ENTRIES);
    bitmap->none_free_before = bitmap_find_free(bitmap->image, 0, BITMAP_ENTRIES);
    bitmap->dirty = false;
    tm->core.nr_allocated += BITMAP_ENTRIES - bitmap->nr_free;
    tm->core.nr_overflow += bitmap_count_overflows(bitmap->image);
}

/* `place` of a bitmap is set when it has been read: that is where a next try goes on. */
static int
load_bitmaps(struct transaction_manager *tm, const void *index, struct thin_error *err)
{
    unsigned nr_missing = 0;
    int result = 0;

    for (uint32_t i = 0; i < tm->core.nr_bitmaps && nr_missing < BM_MISSING_MAX; i++) {
        BLOCK_LOCK struct bm_block *block = NULL;
        struct index_entry entry;
        int r;

        if (tm->bitmaps[i].place)
            continue;
        index_entry_decode(&entry, index_block_entry_ro(index, i));
        r = tm_read_lock(tm, entry.blocknr, &tm_bitmap_validator, &block, err);
        if (r == -THIN_E_WOULD_BLOCK) {
            /* Several are fetched at once. */
            nr_missing++;
            result = r;
            continue;
        }
        if (r < 0)
            return thin_wrap(err, r, "metadata bitmap %" PRIu32, i);
        take_bitmap(tm, i, bm_data(block));
        tm->bitmaps[i].place = entry.blocknr;
    }
    return result;
}

int
tm_load(struct transaction_manager *tm, const struct space_map_root *root,
        struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    int r;

    THIN_ASSERT(!tm->op_open && tm->txn == 1);
    bm_clear_missing(tm->bm);
    if (tm->core.nr_blocks == 0) {
        r = make_room(tm, root->nr_blocks, err);
        if (r < 0)
            return r;
        set_size(tm, root->nr_blocks);
        tm->core.index_block = root->bitmap_root;
        tm->core.overflow_root = root->ref_count_root;
    }
    r = tm_check_block(tm, tm->core.overflow_root, err);
    if (r < 0)
        return thin_wrap(err, r, "metadata overflow tree");
    r = tm_read_lock(tm, tm->core.index_block, &tm_index_validator, &block, err);
    if (r < 0)
        return thin_wrap(err, r, "metadata index block");
    r = load_bitmaps(tm, bm_data(block), err);
    if (r < 0)
        return r;
    if (pair_of(tm, SUPERBLOCK_LOCATION) == 0)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "the metadata space map counts the superblock as free");
    return 0;
}

/* ---- after a cut, and the end ---------------------------------------------------------- */

void
tm_forget_changed(struct transaction_manager *tm)
{
    for (uint32_t i = 0; i < tm->core.nr_changed; i++) {
        uint32_t at = 0;

        THIN_ASSERT(u64_map_get(&tm->overflow_at, tm->changed[i], &at));
        tm->overflow[at].changed = false;
    }
    tm->core.nr_changed = 0;
    if (tm->nr_overflow > OVERFLOW_CACHED_MAX) {
        u64_map_clear(&tm->overflow_at);
        tm->nr_overflow = 0;
    }
}

void
tm_space_map_fini(struct transaction_manager *tm)
{
    for (uint32_t i = 0; i < INDEX_BLOCK_ENTRIES; i++)
        free(tm->bitmaps[i].image);
    bitset_fini(&tm->pending);
    u64_map_fini(&tm->overflow_at);
    free(tm->overflow);
}
