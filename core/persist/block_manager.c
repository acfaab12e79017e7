#include "core/persist/block_manager.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/ondisk/node.h"
#include "core/ondisk/superblock.h"
#include "core/persist/bm_private.h"

/* Leaves come and go; what leads to many others stays for some rounds more. */
#define EVICT_LOOKS  256u /* frames that the clock passes for one that gives way */
#define CREDIT_LEAF  1u
#define CREDIT_INNER 3u

/* A frame that never was in use comes to the free ones when these have ended. */
static void
begin_frame(struct block_manager *bm)
{
    struct bm_block *f;

    if (!TAILQ_EMPTY(&bm->free) || bm->nr_begun == bm->nr_frames)
        return;
    f = &bm->frames[bm->nr_begun];
    memset(f, 0, sizeof(*f));
    f->bm = bm;
    f->data = bm->store + (size_t)bm->nr_begun * METADATA_BLOCK_SIZE;
    TAILQ_INIT(&f->waits);
    TAILQ_INSERT_TAIL(&bm->free, f, link);
    bm->nr_begun++;
}

int
bm_create(const struct bm_params *params, struct block_manager **ret_bm)
{
    struct block_manager *bm;
    uint32_t nr = params->nr_frames < BM_FRAMES_MIN ? BM_FRAMES_MIN : params->nr_frames;
    void *store = NULL;

    bm = calloc(1, sizeof(*bm));
    if (!bm)
        return -ENOMEM;
    bm->dev = params->dev;
    bm->waiting = params->waiting;
    bm->nr_frames = nr;
    bm->clean_max = nr - BM_DIRTY_MIN;
    if (params->nr_clean >= BM_CLEAN_MIN && params->nr_clean < bm->clean_max)
        bm->clean_max = params->nr_clean;
    bm->stats.frames = nr;
    TAILQ_INIT(&bm->free);
    TAILQ_INIT(&bm->reads_waiting);

    bm->frames = malloc(nr * sizeof(*bm->frames));
    if (posix_memalign(&store, METADATA_BLOCK_SIZE, (size_t)nr * METADATA_BLOCK_SIZE))
        store = NULL;
    bm->store = store;
    if (!bm->frames || !bm->store || u64_map_reserve(&bm->by_number, nr) < 0 ||
        bitset_resize(&bm->dirty_set, METADATA_BLOCKS_MAX) < 0 ||
        bitset_resize(&bm->writing_set, METADATA_BLOCKS_MAX) < 0) {
        bm_destroy(bm);
        return -ENOMEM;
    }
    bm->nr_free = nr;
    begin_frame(bm);
    *ret_bm = bm;
    return 0;
}

void
bm_destroy(struct block_manager *bm)
{
    if (!bm)
        return;
    THIN_ASSERT(bm->stats.locks_held == 0);
    THIN_ASSERT(bm->nr_reading == 0 && bm->write.in_flight == 0);
    THIN_ASSERT(!bm->super.busy && !bm->flush.busy);
    if (bm->write.task.queued)
        loop_defer_cancel(bm->dev->loop, &bm->write.task);
    if (bm->write.go_on.queued)
        loop_defer_cancel(bm->dev->loop, &bm->write.go_on);
    u64_map_fini(&bm->by_number);
    bitset_fini(&bm->dirty_set);
    bitset_fini(&bm->writing_set);
    free(bm->frames);
    free(bm->store);
    free(bm);
}

mblock_t
bm_nr_blocks(const struct block_manager *bm)
{
    return min_u64(bm->dev->size / METADATA_BLOCK_SIZE, METADATA_BLOCKS_MAX);
}

static uint32_t
nr_clean(const struct block_manager *bm)
{
    return bm->nr_frames - bm->nr_free - bm->nr_dirty - bm->nr_writing;
}

uint32_t
bm_clean_max(const struct block_manager *bm)
{
    return bm->clean_max;
}

void
bm_get_stats(const struct block_manager *bm, struct bm_stats *ret_stats)
{
    *ret_stats = bm->stats;
    ret_stats->frames_clean = nr_clean(bm);
    ret_stats->frames_dirty = bm->nr_dirty;
    ret_stats->frames_writing = bm->nr_writing;
}

void
bm_reset_high_water(struct block_manager *bm)
{
    bm->stats.locks_high_water = bm->stats.locks_held;
}

uint32_t
bm_nr_dirty(const struct block_manager *bm)
{
    return bm->nr_dirty;
}

/* ---- frames ------------------------------------------------------------------------- */

struct bm_block *
bm_find(const struct block_manager *bm, mblock_t b)
{
    uint32_t i;

    return u64_map_get(&bm->by_number, b, &i) ? &bm->frames[i] : NULL;
}

static bool
frame_is_held(const struct bm_block *f)
{
    return f->readers || f->write_locked || f->pins || f->reading;
}

static void
free_if_unused(struct bm_block *f)
{
    if (f->hashed || f->state == FRAME_FREE || frame_is_held(f))
        return;
    f->state = FRAME_FREE;
    TAILQ_INSERT_TAIL(&f->bm->free, f, link);
    f->bm->nr_free++;
}

void
bm_drop(struct bm_block *f)
{
    struct block_manager *bm = f->bm;

    THIN_ASSERT(!f->readers && !f->write_locked);
    THIN_ASSERT(TAILQ_EMPTY(&f->waits));
    if (f->state == FRAME_DIRTY) {
        if (frame_is_open(f)) {
            bitset_clear(&bm->dirty_set, f->number);
            bm->nr_dirty--;
        } else {
            bitset_clear(&bm->writing_set, f->number);
            bm->nr_writing--;
        }
    } else if (f->state == FRAME_LOADING && !f->reading) {
        TAILQ_REMOVE(&bm->reads_waiting, f, link);
    }
    f->state = FRAME_LOADED;
    f->checked = false;
    if (f->hashed) {
        f->hashed = false;
        u64_map_remove(&bm->by_number, f->number);
    }
    free_if_unused(f);
}

void
bm_frame_unpin(struct bm_block *f)
{
    THIN_ASSERT(f->pins > 0);
    f->pins--;
    free_if_unused(f);
}

/*
 * A clock over all frames: what was used since the hand came by survives the round. It
 * goes a bounded way, and then takes the poorest that it saw; only where it saw none it
 * goes all round.
 */
static struct bm_block *
evict(struct block_manager *bm)
{
    struct bm_block *poorest = NULL;

    THIN_ASSERT(bm->frames);
    for (uint32_t n = 0; n < EVICT_LOOKS || (!poorest && n < bm->nr_begun); n++) {
        struct bm_block *f = &bm->frames[bm->hand];

        bm->hand = bm->hand + 1 >= bm->nr_begun ? 0 : bm->hand + 1;
        if (f->state != FRAME_LOADED || !f->hashed || frame_is_held(f))
            continue;
        if (f->credit == 0) {
            bm_drop(f);
            return f;
        }
        f->credit--;
        if (!poorest || f->credit < poorest->credit)
            poorest = f;
    }
    if (poorest)
        bm_drop(poorest);
    return poorest;
}

void
bm_trim_clean(struct block_manager *bm)
{
    while (nr_clean(bm) > bm->clean_max && evict(bm))
        ;
}

static bool
may_grow_clean(const struct block_manager *bm, enum bm_use use)
{
    uint32_t dirty = bm->nr_dirty + bm->nr_writing, max = bm->clean_max;

    if (use == BM_TO_READ_ALONE && dirty < BM_DIRTY_MIN)
        max += BM_DIRTY_MIN - dirty;
    return use == BM_TO_DIRTY || nr_clean(bm) < max;
}

struct bm_block *
bm_take_frame(struct block_manager *bm, mblock_t b, enum bm_use use)
{
    struct bm_block *f = may_grow_clean(bm, use) ? TAILQ_FIRST(&bm->free) : NULL;

    if (!f)
        f = evict(bm);
    if (!f)
        return NULL;
    TAILQ_REMOVE(&bm->free, f, link);
    bm->nr_free--;
    begin_frame(bm);
    f->number = b;
    f->state = FRAME_LOADING;
    f->hashed = true;
    f->checked = false;
    f->credit = CREDIT_LEAF;
    f->op = 0;
    f->where = "";
    u64_map_set(&bm->by_number, b, (uint32_t)(f - bm->frames));
    return f;
}

void
bm_forget(struct block_manager *bm, mblock_t b)
{
    struct bm_block *f = bm_find(bm, b);

    if (!f)
        return;
    THIN_ASSERT(!frame_is_writing(f));
    bm_wake(f, 0);
    bm_drop(f);
}

/* ---- locks -------------------------------------------------------------------------- */

static void
note_missing(struct block_manager *bm, mblock_t b)
{
    for (unsigned i = 0; i < bm->nr_missing; i++)
        if (bm->missing[i] == b)
            return;
    if (bm->nr_missing == BM_MISSING_MAX) {
        memmove(bm->missing, bm->missing + 1,
                (BM_MISSING_MAX - 1) * sizeof(bm->missing[0]));
        bm->nr_missing--;
    }
    bm->missing[bm->nr_missing++] = b;
}

static int
read_now(struct block_manager *bm, mblock_t b, struct bm_block **ret_frame,
         struct thin_error *err)
{
    struct bm_block *f = bm_take_frame(bm, b, BM_TO_READ);
    int r;

    if (!f)
        return thin_fail_code(err, -THIN_E_CACHE_FULL, "read metadata block %" PRIu64, b);
    f->reading = true;
    bm->stats.reads++;
    r = device_read_wait(bm->dev, b * METADATA_BLOCK_SIZE, f->data, METADATA_BLOCK_SIZE);
    f->reading = false;
    f->state = FRAME_LOADED;
    if (r < 0) {
        bm_drop(f);
        return thin_fail_code(err, r, "read metadata block %" PRIu64, b);
    }
    *ret_frame = f;
    return 0;
}

/* The checksum is good for one kind for ever; what the contents must be depends on who
   asks, and hostile metadata may lead two kinds of owner to one block. */
static int
check(struct bm_block *f, const struct bm_validator *v, struct thin_error *err)
{
    bool same_kind = f->checked && f->v.kind == v->kind;
    int r = 0;

    if (same_kind && f->v.judge == v->judge && f->v.arg == v->arg)
        return 0;
    if (f->state == FRAME_DIRTY && !same_kind)
        r = thin_fail(err, -THIN_E_BAD_BLOCK,
                      "metadata block %" PRIu64 " is wanted as %s and is %s", f->number,
                      block_kind_name(v->kind), block_kind_name(f->v.kind));
    if (r == 0 && !same_kind)
        r = block_check(v->kind, f->data, f->number, err);
    if (r == 0 && v->judge)
        r = v->judge(f->data, f->number, v->arg, err);
    if (r < 0) {
        /* The next try reads again: the damage may have been in the transfer. */
        if (f->state == FRAME_LOADED && !f->checked && !f->readers)
            bm_drop(f);
        return r;
    }
    if (!f->checked || f->state != FRAME_DIRTY)
        f->v = *v;
    f->checked = true;
    return 0;
}

static void
count_lock(struct bm_block *f, const char *where)
{
    struct bm_stats *stats = &f->bm->stats;

    f->where = where;
    f->credit =
        f->v.kind == BLOCK_NODE && node_is_leaf(f->data) ? CREDIT_LEAF : CREDIT_INNER;
    stats->locks_held++;
    if (stats->locks_held > stats->locks_high_water)
        stats->locks_high_water = stats->locks_held;
    THIN_ASSERT(stats->locks_held <= BM_LOCKS_MAX);
}

static int
lock_block(struct block_manager *bm, mblock_t b, const struct bm_validator *v, bool write,
           struct bm_block **ret_block, const char *where, struct thin_error *err)
{
    struct bm_block *f;
    int r;

    if (b >= bm_nr_blocks(bm))
        return thin_fail(err, -THIN_E_RANGE,
                         "metadata block %" PRIu64 " of a device of %" PRIu64 " blocks",
                         b, bm_nr_blocks(bm));
    f = bm_find(bm, b);
    if (f && (f->write_locked || (write && f->readers)))
        return thin_fail(err, -THIN_E_RECURSIVE_LOCK,
                         "metadata block %" PRIu64 " is locked for %s at %s, wanted for "
                         "%s at %s",
                         b, f->write_locked ? "writing" : "reading", f->where,
                         write ? "writing" : "reading", where);
    if (!f || f->state == FRAME_LOADING) {
        bm->stats.misses++;
        if (f || !bm->waiting) {
            note_missing(bm, b);
            return thin_fail(err, -THIN_E_WOULD_BLOCK,
                             "metadata block %" PRIu64 " is not cached", b);
        }
        r = read_now(bm, b, &f, err);
        if (r < 0)
            return r;
    } else {
        bm->stats.hits++;
    }
    r = check(f, v, err);
    if (r < 0)
        return r;
    if (write) {
        /* Copy-on-write: only what the open transaction made is changed in place. */
        THIN_ASSERT(frame_is_open(f));
        f->write_locked = true;
    } else {
        f->readers++;
    }
    count_lock(f, where);
    *ret_block = f;
    return 0;
}

int
bm_read_lock_at(struct block_manager *bm, mblock_t b, const struct bm_validator *v,
                struct bm_block **ret_block, const char *where, struct thin_error *err)
{
    return lock_block(bm, b, v, false, ret_block, where, err);
}

int
bm_write_lock_at(struct block_manager *bm, mblock_t b, const struct bm_validator *v,
                 struct bm_block **ret_block, const char *where, struct thin_error *err)
{
    return lock_block(bm, b, v, true, ret_block, where, err);
}

int
bm_new_lock_at(struct block_manager *bm, mblock_t b, const struct bm_validator *v,
               struct bm_block **ret_block, const char *where, struct thin_error *err)
{
    struct bm_block *f = bm_find(bm, b);

    if (b >= bm_nr_blocks(bm))
        return thin_fail(err, -THIN_E_RANGE,
                         "new metadata block %" PRIu64 " of a device of %" PRIu64
                         " blocks",
                         b, bm_nr_blocks(bm));
    if (f && (f->write_locked || f->readers))
        return thin_fail(err, -THIN_E_RECURSIVE_LOCK,
                         "new metadata block %" PRIu64 " is locked for %s at %s, wanted "
                         "at %s",
                         b, f->write_locked ? "writing" : "reading", f->where, where);
    if (f && f->state == FRAME_LOADING) {
        /* Somebody reads what stood here in an older life: he looks again. */
        bm_wake(f, 0);
        bm_drop(f);
        f = NULL;
    }
    if (!f)
        f = bm_take_frame(bm, b, BM_TO_DIRTY);
    if (!f)
        return thin_fail_code(err, -THIN_E_CACHE_FULL, "new metadata block %" PRIu64, b);
    THIN_ASSERT(f->state != FRAME_DIRTY);

    memset(f->data, 0, METADATA_BLOCK_SIZE);
    f->state = FRAME_DIRTY;
    f->cut = bm->cut;
    f->v = *v;
    f->checked = true;
    f->op = 0;
    bitset_set(&bm->dirty_set, b);
    bm->nr_dirty++;
    f->write_locked = true;
    count_lock(f, where);
    *ret_block = f;
    return 0;
}

void
bm_unlock(struct bm_block *block)
{
    struct block_manager *bm = block->bm;

    THIN_ASSERT(bm->stats.locks_held > 0);
    bm->stats.locks_held--;
    if (block->write_locked) {
        block->write_locked = false;
    } else {
        THIN_ASSERT(block->readers > 0);
        block->readers--;
    }
}

const void *
bm_data(const struct bm_block *block)
{
    return block->data;
}

void *
bm_data_rw(struct bm_block *block)
{
    THIN_ASSERT(block->write_locked);
    return block->data;
}

mblock_t
bm_location(const struct bm_block *block)
{
    return block->number;
}

unsigned
bm_missing(const struct block_manager *bm, mblock_t *ret_blocks)
{
    memcpy(ret_blocks, bm->missing, bm->nr_missing * sizeof(bm->missing[0]));
    return bm->nr_missing;
}

void
bm_clear_missing(struct block_manager *bm)
{
    bm->nr_missing = 0;
}
