/*
 * Windows: contiguous free blocks for an aligned stretch of a volume, in memory only.
 *
 *   FINDING ─► EXTENTS ─► ALLOCATING ─► READY ─ all places used, or dropped ─► free
 *     │        (does it read as zeros?) (its place on the file system)
 *     └─ nothing free ─► other windows dropped │ wait for claims, holds, a commit │ full
 */
#include <stdlib.h>

#include "core/ondisk/bitmap.h"
#include "core/pool/limits.h"
#include "core/pool/space_private.h"

#define FIND_LOOKS_STEP  8u  /* looks in one step on the loop */
#define FIND_COMMITS_MAX 2u  /* commits that a claim waits for */
#define FIND_PENDING_MAX 64u /* the same while freed blocks are on their way back */
#define FIND_LOOKS_WHOLE 32u /* looks after which a shorter run will do */

static struct window_list *
bucket_of(const struct volume_core *core, vblock_t v)
{
    uint64_t key = v / WINDOW_BLOCKS_MAX + ((uint64_t)core->dev_id << 40);

    return &core->pool->space
                ->buckets[(key * 0x9E3779B97F4A7C15ull >> 40) % WINDOW_BUCKETS];
}

static void
window_unlink(struct space_window *w)
{
    struct space *sp = w->pool->space;

    if (w->has_run)
        runs_remove(&sp->windows, w->dbase, w->dbase + w->nr);
    w->has_run = false;
    TAILQ_REMOVE(bucket_of(w->core, w->v), w, near);
    TAILQ_REMOVE(&w->core->windows, w, link);
    w->core->nr_windows--;
    TAILQ_REMOVE(&sp->all, w, all);
    w->core = NULL;
    TAILQ_INSERT_HEAD(&sp->free_windows, w, link);
}

static bool
window_idle(const struct space_window *w)
{
    return w->state == WINDOW_READY && w->claims == 0;
}

bool
windows_drop_idle(struct pool *pool, const struct space_window *keep)
{
    struct space_window *w, *next;
    bool dropped = false;

    for (w = TAILQ_FIRST(&pool->space->all); w; w = next) {
        next = TAILQ_NEXT(w, all);
        if (w == keep || !window_idle(w))
            continue;
        window_unlink(w);
        dropped = true;
    }
    return dropped;
}

static void
waiters_run(struct space_window *w)
{
    struct volume_frag *frag;

    while ((frag = TAILQ_FIRST(&w->waiters))) {
        TAILQ_REMOVE(&w->waiters, frag, link);
        frag_run_later(frag, NULL);
    }
}

static void
waiters_fail(struct volume_frag *frag)
{
    int code = frag->result;

    if (!frag_alive(frag))
        return;
    if (code == -THIN_E_NO_DATA_SPACE)
        frag_no_space(frag);
    else
        frag_end(frag, code);
}

/* The window comes to nothing. */
static void
window_fail(struct space_window *w, int code)
{
    struct volume_frag *frag;

    while ((frag = TAILQ_FIRST(&w->waiters))) {
        TAILQ_REMOVE(&w->waiters, frag, link);
        frag->result = code;
        frag_run_later(frag, waiters_fail);
    }
    window_unlink(w);
}

/* ---- becoming ready ----------------------------------------------------------------------- */

static bool
window_dead(struct space_window *w)
{
    if (w->epoch == w->pool->epoch)
        return false;
    window_fail(w, -THIN_E_ROLLED_BACK);
    return true;
}

static void
window_ready(struct space_window *w)
{
    struct pool *pool = w->pool;

    w->state = WINDOW_READY;
    waiters_run(w);
    if (!TAILQ_EMPTY(&pool->space->waiters))
        loop_defer(pool->loop, &pool->space->wake_task);
    if (pool->mode == POOL_OUT_OF_DATA_SPACE && limits_room(pool))
        space_resume(pool);
}

static void
window_allocated(struct device_io *dio, int result)
{
    struct space_window *w = container_of(dio, struct space_window, dio);
    struct pool *pool = w->pool;

    if (window_dead(w)) {
        pool_data_end(pool, false, 0);
        return;
    }
    if ((result == -ENOSPC || result == -EDQUOT) && w->nr > 1) {
        /* It may have a place for what is written now, if not for all of the window. */
        pool->space->host_tight_ns = loop_now_ns(pool->loop) + HOST_FULL_RETRY_NS;
        waiters_run(w);
        window_unlink(w);
    } else if (result == -ENOSPC || result == -EDQUOT) {
        /* The file system is full before anything was promised. */
        log_debug("no place for new blocks on the file system pool=%s", pool->name);
        pool->space->host_full = true;
        window_fail(w, -THIN_E_NO_DATA_SPACE);
    } else {
        pool->space->host_full = false;
        window_ready(w); /* what cannot be allocated ahead will tell when written */
    }
    pool_data_end(pool, false, 0);
}

static void
window_allocate(struct space_window *w)
{
    struct pool *pool = w->pool;

    if (!pool->data->limits.grows) {
        window_ready(w);
        return;
    }
    w->state = WINDOW_ALLOCATING;
    w->dio.op = DEVICE_ALLOCATE;
    w->dio.flags = 0;
    w->dio.offset = w->dbase * pool->block_size;
    w->dio.len = (uint64_t)w->nr * pool->block_size;
    w->dio.done = window_allocated;
    pool_data_begin(pool);
    device_submit(pool->data, &w->dio);
}

static void
window_proved(struct device_io *dio, int result)
{
    struct space_window *w = container_of(dio, struct space_window, dio);
    struct pool *pool = w->pool;
    uint64_t bs = pool->block_size, at = 0;

    if (window_dead(w)) {
        pool_data_end(pool, false, 0);
        return;
    }
    for (unsigned i = 0; result == 0 && i < dio->ret_nr_extents; i++) {
        uint64_t to = at + w->extents[i].len;

        if (w->extents[i].kind != DEVICE_EXTENT_DATA)
            for (uint64_t b = div_up_u64(at, bs); b < w->nr && (b + 1) * bs <= to; b++)
                w->zero |= 1ull << b;
        at = to;
    }
    window_allocate(w);
    pool_data_end(pool, false, 0);
}

static void
window_prove(struct space_window *w)
{
    struct pool *pool = w->pool;

    if (!pool->config.zeroing || !pool->data->limits.zeroes_fresh) {
        window_allocate(w);
        return;
    }
    w->state = WINDOW_EXTENTS;
    w->dio.op = DEVICE_EXTENTS;
    w->dio.flags = 0;
    w->dio.offset = w->dbase * pool->block_size;
    w->dio.len = (uint64_t)w->nr * pool->block_size;
    w->dio.extents = w->extents;
    w->dio.max_extents = WINDOW_EXTENTS_MAX;
    w->dio.ret_nr_extents = 0;
    w->dio.done = window_proved;
    pool_data_begin(pool);
    device_submit(pool->data, &w->dio);
}

/* ---- finding ---------------------------------------------------------------------------------- */

static void window_find(struct space_window *w, bool now);

static int
find_run(struct metaop *op, struct thin_error *err)
{
    struct space_window *w = container_of(op, struct space_window, op);
    struct pool *pool = w->pool;
    struct space *sp = pool->space;
    bool empty = false; /* a look that found nothing was a long one */
    int r;

    w->undecided = false;
    for (unsigned looks = 0;; looks++) {
        dblock_t begin = 0, next = 0;
        uint64_t len = 0;

        if (w->scan >= w->scan_end) {
            if (w->wrapped || sp->cursor == 0)
                break;
            w->wrapped = true;
            w->scan = 0;
            w->scan_end = sp->cursor;
        }
        if (looks == FIND_LOOKS_STEP || empty) {
            w->undecided = true;
            return 0;
        }
        r = space_look(pool, w->scan, w->scan_end, w->want_nr, &begin, &len, &next, err);
        if (is_damage(r)) {
            /* Behind a damaged bitmap nothing is handed out; others go on. */
            len = 0;
            next = (w->scan / BITMAP_ENTRIES + 1) * BITMAP_ENTRIES;
        } else if (r < 0) {
            return r;
        }
        w->scan = next;
        empty = len == 0;
        if (len > w->best_len) {
            w->best_len = len;
            w->best_begin = begin;
        }
        /* Half a window is good enough: once the pool has been gone round, one place
           taken out of each window would make every search a long one. */
        if (w->best_len * 2 >= w->want_nr ||
            (w->best_len > 0 && ++w->looks >= FIND_LOOKS_WHOLE))
            break;
    }
    if (w->best_len == 0)
        return 0;
    /* It may have been found some turns ago: still free? */
    r = space_look(pool, w->best_begin, w->best_begin + w->best_len, w->want_nr,
                   &w->best_begin, &w->best_len, &w->dbase, err);
    return r;
}

static void
wait_commit(struct space_window *w, uint64_t txn)
{
    struct volume_frag *frag;

    TAILQ_FOREACH(frag, &w->waiters, link)
        frag->commits_waited++;
    commit_want(w->pool, txn);
}

/* Nothing was found: is there hope? */
static void
find_nothing(struct space_window *w)
{
    struct pool *pool = w->pool;
    struct space *sp = pool->space;
    struct metadata_space ms;
    struct volume_frag *frag;
    struct space_window *other;
    bool busy = space_has_held(pool) || commit_freeing(pool);
    uint64_t txn = commit_last_txn(pool);

    metadata_data_space(pool->md, &ms);
    if (windows_drop_idle(pool, w)) {
        w->rescans = 0;
        window_find(w, false);
        return;
    }
    if (ms.nr_free > 0 && w->rescans++ == 0) {
        /* The search may have passed what became free behind it. */
        sp->cursor = 0;
        window_find(w, false);
        return;
    }
    TAILQ_FOREACH(other, &sp->all, all)
        if (other != w && other->has_run)
            busy = true; /* its claims end soon, and then it may be dropped */
    frag = TAILQ_FIRST(&w->waiters);
    /* What was freed lately may show only when its transaction is durable. */
    if (!busy && txn && frag && frag->commits_waited < FIND_COMMITS_MAX) {
        wait_commit(w, txn);
        busy = true;
    }
    /* A view holds back what was freed behind it: the oldest goes before a write does. */
    if (!busy && ms.nr_pending > 0 && pins_drop_oldest(pool, -THIN_E_NO_DATA_SPACE))
        busy = true;
    /* Blocks that are on their way back are room: who has them promised must get them. */
    if (!busy && ms.nr_pending > 0 && txn && frag &&
        frag->commits_waited < FIND_PENDING_MAX) {
        wait_commit(w, txn);
        busy = true;
    }
    if (pool->closing) {
        window_fail(w, -THIN_E_SHUTDOWN);
        return;
    }
    if (!busy) {
        sp->host_full = false; /* the pool itself is full */
        window_fail(w, -THIN_E_NO_DATA_SPACE);
        return;
    }
    TAILQ_CONCAT(&sp->waiters, &w->waiters, link);
    window_unlink(w);
}

static void
find_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct space_window *w = container_of(op, struct space_window, op);
    struct pool *pool = w->pool;
    struct space *sp = pool->space;

    (void)err;
    if (result < 0) {
        window_fail(w, result);
        return;
    }
    if (w->undecided) {
        metaop_start(pool, &w->op, false);
        return;
    }
    if (w->best_len == 0) {
        find_nothing(w);
        return;
    }
    w->dbase = w->best_begin;
    w->nr = (unsigned)min_u64(w->best_len, w->want_nr);
    /* A shorter run begins at the block that is asked for. */
    w->vbase = w->nr == w->want_nr ? w->want_vbase : w->v;
    if (w->nr < w->want_nr && !w->single) {
        uint64_t stretch = w->v / WINDOW_BLOCKS_MAX + 1;

        w->nr = (unsigned)min_u64(w->nr, stretch * WINDOW_BLOCKS_MAX - w->v);
    }
    sp->cursor = w->dbase + w->nr;
    THIN_ASSERT(!space_is_held(pool, w->dbase, w->dbase + w->nr));
    w->has_run = runs_add(&sp->windows, w->dbase, w->dbase + w->nr);
    THIN_ASSERT(w->has_run); /* as many runs as windows */
    window_prove(w);
}

static void
window_find(struct space_window *w, bool now)
{
    struct pool *pool = w->pool;
    struct space *sp = pool->space;

    if (sp->cursor >= pool->nr_data_blocks)
        sp->cursor = 0;
    w->scan = sp->cursor;
    w->scan_end = pool->nr_data_blocks;
    w->wrapped = false;
    w->looks = 0;
    w->best_len = 0;
    w->op.run = find_run;
    w->op.done = find_done;
    w->op.reads_only = true;
    w->op.name = "find free data blocks";
    metaop_start(pool, &w->op, now);
}

/* One that never was in use, when the free ones have ended: an open touches none of them. */
static void
begin_window(struct space *sp)
{
    struct space_window *w = &sp->window_objects[sp->nr_windows_begun];

    if (!TAILQ_EMPTY(&sp->free_windows) || sp->nr_windows_begun == WINDOWS_MAX)
        return;
    memset(w, 0, sizeof(*w));
    TAILQ_INSERT_TAIL(&sp->free_windows, w, link);
    sp->nr_windows_begun++;
}

static struct space_window *
window_new(struct volume_core *core, vblock_t v)
{
    struct pool *pool = core->pool;
    struct space *sp = pool->space;
    struct space_window *w = TAILQ_FIRST(&sp->free_windows), *old;

    if (!w) {
        TAILQ_FOREACH(old, &sp->all, all)
            if (window_idle(old))
                break;
        if (!old)
            return NULL;
        window_unlink(old);
        w = TAILQ_FIRST(&sp->free_windows);
    }
    TAILQ_REMOVE(&sp->free_windows, w, link);
    begin_window(sp);
    w->core = core;
    w->v = v;
    w->pool = pool;
    w->state = WINDOW_FINDING;
    w->epoch = pool->epoch;
    w->used = w->zero = 0;
    w->claims = 0;
    w->nr = 0;
    w->has_run = false;
    w->rescans = 0;
    TAILQ_INIT(&w->waiters);
    TAILQ_INSERT_HEAD(&core->windows, w, link);
    TAILQ_INSERT_HEAD(bucket_of(core, v), w, near);
    core->nr_windows++;
    TAILQ_INSERT_TAIL(&sp->all, w, all);
    return w;
}

/* ---- claims ------------------------------------------------------------------------------------- */

static bool
window_take(struct volume_frag *frag, struct space_window *w, vblock_t v, unsigned wanted)
{
    unsigned at = (unsigned)(v - w->vbase), nr = 0;
    uint64_t mask = 0;

    while (nr < wanted && at + nr < w->nr && !(w->used >> (at + nr) & 1)) {
        mask |= 1ull << (at + nr);
        nr++;
    }
    if (nr == 0)
        return false;
    frag->claim.window = w;
    frag->claim.dblock = w->dbase + at;
    frag->claim.nr = nr;
    frag->claim.zero = (w->zero & mask) == mask;
    w->used |= mask;
    w->zero &= ~mask;
    w->claims++;
    return true;
}

static struct space_window *
window_at(struct volume_core *core, vblock_t v, bool *ret_taken)
{
    struct space_window *w;

    TAILQ_FOREACH(w, bucket_of(core, v), near) {
        if (w->core != core)
            continue;
        if (w->single ? w->v != v : v / WINDOW_BLOCKS_MAX != w->v / WINDOW_BLOCKS_MAX)
            continue;
        if (w->state != WINDOW_READY)
            return w;
        if (v < w->vbase || v >= w->vbase + w->nr)
            continue;
        if (!(w->used >> (v - w->vbase) & 1))
            return w;
        *ret_taken = true;
    }
    return NULL;
}

/*
 * Whether somebody wrote close by lately. A file system gives a window its place in whole,
 * so that one of full size for every lone write would take much more than is mapped.
 */
static bool
is_near(struct volume_core *core, vblock_t v, unsigned nr)
{
    for (unsigned i = 0; i < WRITE_PLACES; i++) {
        vblock_t *place = &core->places[i];

        if (v + WINDOW_BLOCKS_MAX >= *place && v <= *place + WINDOW_BLOCKS_MAX) {
            *place = v + nr;
            return true;
        }
    }
    core->places[core->next_place++ % WRITE_PLACES] = v + nr;
    return false;
}

int
space_claim(struct volume_frag *frag, vblock_t v, unsigned wanted)
{
    struct volume_core *core = frag->core;
    struct pool *pool = frag->pool;
    struct space *sp = pool->space;
    struct metadata_space ms;
    uint64_t blocks = div_up_u64(core->size, pool->block_size), stretch;
    bool taken = false, near;
    struct space_window *w;
    int r;

    if (sp->hold_all) {
        TAILQ_INSERT_TAIL(&sp->waiters, frag, link);
        return 1;
    }
    r = limits_admit(frag, v, wanted, &wanted);
    if (r != 0)
        return r;
    near = is_near(core, v, wanted);
    w = window_at(core, v, &taken);
    if (w && w->state == WINDOW_READY) {
        TAILQ_REMOVE(&sp->all, w, all); /* used last */
        TAILQ_INSERT_TAIL(&sp->all, w, all);
        if (!window_take(frag, w, v, wanted))
            return -THIN_E_NO_DATA_SPACE;
        limits_claimed(frag);
        return 0;
    }
    if (!w) {
        w = window_new(core, v);
        if (!w) {
            TAILQ_INSERT_TAIL(&sp->waiters, frag, link); /* all are at work */
            return 1;
        }
        stretch = min_u64(max_u64(WINDOW_BYTES / pool->block_size, 1), WINDOW_BLOCKS_MAX);
        metadata_data_space(pool->md, &ms);
        if (loop_now_ns(pool->loop) < sp->host_tight_ns)
            taken = true;
        w->single = taken;
        if (taken) {
            /* Its place was used before and given up since; or there may be no more. */
            w->want_vbase = v;
            w->want_nr = 1;
        } else if (!near || ms.nr_free / 16 < stretch) {
            w->want_vbase = v;
            w->want_nr =
                (unsigned)min_u64(max_u64(near ? ms.nr_free / 16 : 1, wanted), stretch);
            w->want_nr = (unsigned)min_u64(
                w->want_nr, (v / WINDOW_BLOCKS_MAX + 1) * WINDOW_BLOCKS_MAX - v);
        } else {
            w->want_vbase = v - v % stretch;
            w->want_nr =
                (unsigned)min_u64(stretch, max_u64(blocks, v + 1) - w->want_vbase);
        }
        TAILQ_INSERT_TAIL(&w->waiters, frag, link);
        window_find(w, true);
        return 1;
    }
    TAILQ_INSERT_TAIL(&w->waiters, frag, link);
    return 1;
}

void
space_claim_end(struct volume_frag *frag, bool mapped)
{
    struct pool *pool = frag->pool;
    struct space_window *w = take(frag->claim.window);
    unsigned at = (unsigned)(frag->claim.dblock - w->dbase);
    uint64_t all = w->nr == 64 ? UINT64_MAX : (1ull << w->nr) - 1;

    limits_claim_ended(frag, mapped);
    w->claims--;
    if (!mapped)
        for (unsigned i = 0; i < frag->claim.nr; i++)
            w->used &= ~(1ull << (at + i)); /* what stands there is not known: not zero */
    if (w->claims == 0 &&
        ((w->used & all) == all || w->single || w->epoch != pool->epoch))
        window_unlink(w);
    if (!TAILQ_EMPTY(&pool->space->waiters))
        loop_defer(pool->loop, &pool->space->wake_task);
}

void
space_distrust(struct pool *pool)
{
    struct space_window *w;

    windows_drop_idle(pool, NULL);
    TAILQ_FOREACH(w, &pool->space->all, all)
        if (w->state == WINDOW_READY)
            w->used = UINT64_MAX;
}

void
space_drop_core(struct volume_core *core)
{
    struct space_window *w;

    while ((w = TAILQ_FIRST(&core->windows))) {
        THIN_ASSERT(window_idle(w));
        window_unlink(w);
    }
}

/* ---- life -------------------------------------------------------------------------------------------- */

int
windows_create(struct pool *pool)
{
    struct space *sp = pool->space;

    TAILQ_INIT(&sp->free_windows);
    TAILQ_INIT(&sp->all);
    for (unsigned i = 0; i < WINDOW_BUCKETS; i++)
        TAILQ_INIT(&sp->buckets[i]);
    sp->window_objects = malloc(WINDOWS_MAX * sizeof(struct space_window));
    if (!sp->window_objects)
        return -ENOMEM;
    begin_window(sp);
    return 0;
}

void
windows_reset(struct pool *pool)
{
    struct space *sp = pool->space;

    windows_drop_idle(pool, NULL);
    THIN_ASSERT(TAILQ_EMPTY(&sp->all));
    sp->cursor = 0;
}

void
windows_destroy(struct pool *pool)
{
    free(pool->space->window_objects);
}
