#include "core/persist/transaction_manager.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/seeded_bug.h"
#include "core/persist/bm_private.h"
#include "core/persist/tm_private.h"

int
tm_create(const struct tm_params *params, struct transaction_manager **ret_tm)
{
    struct transaction_manager *tm = calloc(1, sizeof(*tm));

    if (!tm)
        return -ENOMEM;
    tm->bm = params->bm;
    tm->params = *params;
    tm->txn = 1;
    TAILQ_INIT(&tm->pins);
    tm->overflow_tree = (struct btree){
        .tm = tm,
        .value.size = VALUE_SIZE_COUNT,
        .leaf_max = params->node_max,
        .internal_max = params->node_max,
    };
    *ret_tm = tm;
    return 0;
}

void
tm_destroy(struct transaction_manager *tm)
{
    if (!tm)
        return;
    THIN_ASSERT(!tm->op_open);
    tm_undo_fini(tm);
    tm_space_map_fini(tm);
    bitset_fini(&tm->made);
    free(tm->freed);
    free(tm);
}

struct block_manager *
tm_bm(struct transaction_manager *tm)
{
    return tm->bm;
}

void
tm_get_stats(const struct transaction_manager *tm, struct tm_stats *ret_stats)
{
    *ret_stats = (struct tm_stats){
        .txn = tm->txn,
        .nr_blocks = tm->core.nr_blocks,
        .nr_allocated = tm->core.nr_allocated,
        .nr_pending = tm->core.nr_pending,
        .reserve = tm->core.reserve,
        .bm_dirty = bm_nr_dirty(tm->bm),
        .op_nodes_high_water = tm->images_high_water,
    };
}

/* ---- operations ------------------------------------------------------------------------ */

static uint64_t
commit_need(const struct transaction_manager *tm)
{
    return tm_own_need(tm) + tm->core.owner_need;
}

void
tm_op_begin(struct transaction_manager *tm, enum tm_purse purse)
{
    THIN_ASSERT(!tm->op_open);
    THIN_ASSERT(!tm->prepared);
    tm->op_open = true;
    tm->purse = purse;
    tm->op++;
    tm->before = tm->core;
    tm->need_before = commit_need(tm);
    tm->nr_op_allocs = 0;
    tm->nr_op_freed = 0;
    bm_clear_missing(tm->bm);
}

bool
tm_op_open(const struct transaction_manager *tm)
{
    return tm->op_open;
}

void
tm_set_commit_need(struct transaction_manager *tm, uint64_t blocks)
{
    tm->core.owner_need = blocks;
}

int
tm_op_admit(struct transaction_manager *tm, struct thin_error *err)
{
    uint64_t need = commit_need(tm), reserve, frames;
    struct bm_stats stats;

    THIN_ASSERT(tm->op_open);
    if (tm->purse == TM_COMMIT || (tm->nr_op_allocs == 0 && need <= tm->need_before))
        return 0;
    reserve = tm->purse == TM_NORMAL ? tm->core.reserve : 0;
    /* What snapshots shared becomes a volume's own before a block goes out of it, for good:
       however much of that there is, it leaves deletes their part. */
    if (tm->purse == TM_DISCARD && tm->nr_op_allocs > tm->nr_op_freed)
        reserve = tm->core.reserve / 2;
    if (tm_nr_free(tm) < need + reserve) {
        /* After a commit only this operation's own part would have to be covered. */
        uint64_t alone = tm_base_need(tm) + need - min_u64(need, tm->need_before);

        return tm_no_space(tm, need + reserve, min_u64(alone, need) + reserve, err);
    }

    /* The commit needs frames to copy into, beside those that are dirty by then. An
       empty transaction could not be made smaller by a commit. */
    bm_get_stats(tm->bm, &stats);
    frames = (uint64_t)stats.frames_dirty + stats.frames_writing;
    if (frames + need + TM_FRAMES_MARGIN > stats.frames && frames > tm->nr_op_allocs)
        return thin_fail(err, -THIN_E_CACHE_FULL,
                         "metadata cache of %u blocks has %u to write, and the commit "
                         "needs %" PRIu64 " more",
                         stats.frames, stats.frames_dirty, need);
    return 0;
}

static void
push_freed(struct transaction_manager *tm, mblock_t b)
{
    uint32_t at = (tm->freed_head + tm->nr_freed) % tm->cap_freed;

    THIN_ASSERT(tm->nr_freed < tm->cap_freed);
    tm->freed[at] = (struct tm_freed){.txn = tm->txn, .block = b};
    tm->nr_freed++;
}

void
tm_op_keep(struct transaction_manager *tm)
{
    THIN_ASSERT(tm->op_open);
    for (uint32_t i = 0; i < tm->nr_op_freed; i++) {
        mblock_t b = tm->op_freed[i];

        if (!bitset_test(&tm->made, b)) {
            push_freed(tm, b);
            continue;
        }
        /* Made and freed in one transaction: nothing durable ever knew it. */
        bm_forget(tm->bm, b);
        bitset_clear(&tm->made, b);
        bitset_clear(&tm->pending, b);
        tm->core.nr_pending--;
    }
    tm->nr_log = 0;
    tm->nr_images = 0;
    tm->nr_saves = 0;
    tm->op_open = false;
}

void
tm_op_undo(struct transaction_manager *tm)
{
    THIN_ASSERT(tm->op_open);
    tm_undo_all(tm);
    tm->core = tm->before;
    tm->op_open = false;
}

/* ---- blocks ------------------------------------------------------------------------------ */

int
tm_new_block_at(struct transaction_manager *tm, const struct bm_validator *v,
                struct bm_block **ret_block, const char *where, struct thin_error *err)
{
    struct bm_block *block;
    mblock_t b;
    int r;

    r = tm_alloc(tm, &b, err);
    if (r < 0)
        return r;
    r = bm_new_lock_at(tm->bm, b, v, &block, where, err);
    if (r < 0)
        return r;
    block->op = tm->op;
    *ret_block = block;
    return 0;
}

static int
copy_block(struct transaction_manager *tm, mblock_t orig, const struct bm_validator *v,
           struct bm_block **ret_block, const char *where, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *from = NULL;
    BLOCK_LOCK struct bm_block *to = NULL;
    int r;

    r = bm_read_lock_at(tm->bm, orig, v, &from, where, err);
    if (r < 0)
        return r;
    r = tm_new_block_at(tm, v, &to, where, err);
    if (r < 0)
        return r;
    memcpy(to->data, from->data, METADATA_BLOCK_SIZE);
    store_le64(to->data + 8, to->number);
    *ret_block = to;
    to = NULL;
    return 0;
}

int
tm_shadow_block_at(struct transaction_manager *tm, mblock_t orig,
                   const struct bm_validator *v, struct bm_block **ret_block,
                   bool *ret_inc_children, const char *where, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    uint32_t count;
    int r;

    r = tm_ref(tm, orig, &count, err);
    if (r < 0)
        return r;
    if (count == 0)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "metadata block %" PRIu64 " is in use and has count 0", orig);
    if (count == 1 && bitset_test(&tm->made, orig)) {
        r = bm_write_lock_at(tm->bm, orig, v, &block, where, err);
        if (r < 0)
            return r;
        r = tm_save_image(tm, block, err);
    } else {
        r = copy_block(tm, orig, v, &block, where, err);
        if (r == 0)
            r = tm_dec(tm, orig, err);
    }
    if (r < 0)
        return r;
    *ret_inc_children = count > 1;
    *ret_block = block;
    block = NULL;
    return 0;
}

int
tm_read_lock_at(struct transaction_manager *tm, mblock_t b, const struct bm_validator *v,
                struct bm_block **ret_block, const char *where, struct thin_error *err)
{
    int r = tm_check_block(tm, b, err);

    return r < 0 ? r : bm_read_lock_at(tm->bm, b, v, ret_block, where, err);
}

void
tm_unlock(struct transaction_manager *tm, struct bm_block *block)
{
    (void)tm;
    bm_unlock(block);
}

/* ---- the cut, and what it makes free -------------------------------------------------------- */

uint64_t
tm_cut(struct transaction_manager *tm)
{
    uint64_t b;

    THIN_ASSERT(!tm->op_open);
    THIN_ASSERT(tm->prepared);
    tm->prepared = false;
    bm_cut(tm->bm);
    for (b = 0; bitset_next(&tm->made, b, &b); b++)
        bitset_clear(&tm->made, b);
    tm_forget_changed(tm);
    tm->core.owner_need = 0;
    return tm->txn++;
}

uint64_t
tm_freed_up_to(const struct transaction_manager *tm)
{
    uint64_t txn = tm->durable;
    const struct tm_pin *pin;

    if (seeded_bug(SEEDED_REUSE_PINNED))
        return txn;
    TAILQ_FOREACH(pin, &tm->pins, link)
        txn = min_u64(txn, pin->txn);
    return txn;
}

bool
tm_free_some(struct transaction_manager *tm, uint32_t max)
{
    uint64_t txn = tm_freed_up_to(tm);

    THIN_ASSERT(!tm->op_open);
    txn += seeded_bug(SEEDED_EARLY_REUSE) ? 1 : 0;
    while (tm->nr_freed && tm->freed[tm->freed_head].txn <= txn && max-- > 0) {
        bitset_clear(&tm->pending, tm->freed[tm->freed_head].block);
        tm->core.nr_pending--;
        tm->freed_head = (tm->freed_head + 1) % tm->cap_freed;
        tm->nr_freed--;
    }
    return tm->nr_freed && tm->freed[tm->freed_head].txn <= txn;
}

void
tm_set_durable(struct transaction_manager *tm, uint64_t txn)
{
    THIN_ASSERT(txn < tm->txn && txn >= tm->durable);
    tm->durable = txn;
}

void
tm_durable(struct transaction_manager *tm, uint64_t txn)
{
    tm_set_durable(tm, txn);
    tm_free_some(tm, UINT32_MAX);
}

void
tm_pin_view(struct transaction_manager *tm, struct tm_pin *pin)
{
    pin->txn = tm->durable;
    TAILQ_INSERT_TAIL(&tm->pins, pin, link);
}

void
tm_unpin_view(struct transaction_manager *tm, struct tm_pin *pin)
{
    THIN_ASSERT(!tm->op_open);
    TAILQ_REMOVE(&tm->pins, pin, link);
}
