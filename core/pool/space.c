/*
 * Free data blocks: which may be handed out, pass-down of freed ones, and requests that
 * wait for room.
 *
 * A free block may be out of bounds for two reasons, each a sorted set of runs: it lies
 * in a window (somebody will write there), or it was freed but a request still uses it
 * or its pass-down has not ended. Windows are in window.c.
 */
#include <stdlib.h>

#include "core/base/seeded_bug.h"
#include "core/pool/limits.h"
#include "core/pool/space_private.h"

#define METADATA_STEP_BYTES (4u << 20) /* least growth of the metadata by itself */

/* ---- sets of runs ------------------------------------------------------------------------ */

/* Index of the first run that ends beyond `b`. */
static unsigned
runs_at(const struct run_set *set, dblock_t b)
{
    unsigned lo = 0, hi = set->nr;

    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;

        if (set->runs[mid].end > b)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

bool
runs_add(struct run_set *set, dblock_t begin, dblock_t end)
{
    unsigned at = runs_at(set, begin);

    if (set->nr == set->max)
        return false;
    THIN_ASSERT(at == set->nr || set->runs[at].begin >= end);
    memmove(&set->runs[at + 1], &set->runs[at], (set->nr - at) * sizeof(set->runs[0]));
    set->runs[at].begin = begin;
    set->runs[at].end = end;
    set->nr++;
    return true;
}

void
runs_remove(struct run_set *set, dblock_t begin, dblock_t end)
{
    unsigned at = runs_at(set, begin);

    THIN_ASSERT(at < set->nr);
    THIN_ASSERT(set->runs[at].begin == begin && set->runs[at].end == end);
    set->nr--;
    memmove(&set->runs[at], &set->runs[at + 1], (set->nr - at) * sizeof(set->runs[0]));
}

/* Cuts [*begin, *begin + *len) down to its first part outside the set; *len may be 0.
   Returns where to look on when nothing was left. */
static dblock_t
runs_trim(const struct run_set *set, dblock_t *begin, uint64_t *len)
{
    dblock_t end = *begin + *len;
    unsigned at = runs_at(set, *begin);

    while (at < set->nr && set->runs[at].begin <= *begin) {
        *begin = set->runs[at].end;
        at++;
    }
    if (*begin >= end) {
        *len = 0;
        return *begin;
    }
    if (at < set->nr && set->runs[at].begin < end)
        end = set->runs[at].begin;
    *len = end - *begin;
    return end;
}

/*
 * One look from `from` on: a run that may be handed out, or *ret_len 0. *ret_next: where
 * the next look begins; `end` when all was seen.
 */
int
space_look(struct pool *pool, dblock_t from, dblock_t end, uint64_t wanted,
           dblock_t *ret_begin, uint64_t *ret_len, dblock_t *ret_next,
           struct thin_error *err)
{
    struct space *sp = pool->space;
    dblock_t begin = 0, next = end, after;
    uint64_t len = 0, before;
    int r;

    r = metadata_find_free(pool->md, from, end, wanted, &begin, &len, &next, err);
    if (r < 0)
        return r;
    *ret_len = 0;
    *ret_next = next;
    if (len == 0)
        return 0;
    /* What one set takes away may leave a piece inside the other. */
    after = begin + len;
    do {
        before = len;
        runs_trim(&sp->windows, &begin, &len);
        if (len > 0)
            runs_trim(&sp->held, &begin, &len);
    } while (len > 0 && len != before);
    *ret_begin = begin;
    *ret_len = len;
    *ret_next = len > 0 ? begin + len : max_u64(begin, after);
    if (*ret_next > end)
        *ret_next = end;
    return 0;
}

int
space_find(struct pool *pool, uint64_t wanted, dblock_t *ret_begin, uint64_t *ret_len,
           struct thin_error *err)
{
    struct metadata_space ms;
    dblock_t at = 0, begin = 0;
    uint64_t len = 0;
    int r;

    *ret_len = 0;
    metadata_data_space(pool->md, &ms);
    if (ms.nr_free == 0 || pool->space->hold_all || !limits_room(pool))
        return 0;
    wanted = min_u64(wanted, max_u64(limits_unreserved(pool), 1));
    while (at < pool->nr_data_blocks && len == 0) {
        r = space_look(pool, at, pool->nr_data_blocks, wanted, &begin, &len, &at, err);
        if (r < 0)
            return r;
    }
    if (len == 0) {
        /* Windows are only wishes. */
        windows_drop_idle(pool, NULL);
        for (at = 0; at < pool->nr_data_blocks && len == 0;) {
            r = space_look(pool, at, pool->nr_data_blocks, wanted, &begin, &len, &at,
                           err);
            if (r < 0)
                return r;
        }
    }
    *ret_begin = begin;
    *ret_len = len;
    return 0;
}

/* ---- freed blocks -------------------------------------------------------------------------- */

static void passdown_kick(struct pool *pool);

/* One that never was in use, when the free ones have ended: an open touches none of them. */
static void
begin_run(struct space *sp)
{
    struct held_run *run = &sp->run_objects[sp->nr_runs_begun];

    if (!TAILQ_EMPTY(&sp->free_runs) || sp->nr_runs_begun == HELD_MAX)
        return;
    memset(run, 0, sizeof(*run));
    TAILQ_INSERT_TAIL(&sp->free_runs, run, link);
    sp->nr_runs_begun++;
}

static void
held_release(struct pool *pool, struct held_run *run)
{
    struct space *sp = pool->space;

    runs_remove(&sp->held, run->begin, run->end);
    TAILQ_INSERT_HEAD(&sp->free_runs, run, link);
    sp->freed_some = true;
    loop_defer(pool->loop, &sp->wake_task);
    if (commit_freeing(pool))
        commit_free(pool); /* it may have waited for room here */
}

static bool
passdown_wanted(const struct pool *pool)
{
    return pool->config.discards == POOL_DISCARD_PASSDOWN &&
           pool->data->limits.discards && !pool->closing && !pool->rolling_back;
}

static void
passdown_done(struct device_io *dio, int result)
{
    struct passdown *pd = container_of(dio, struct passdown, dio);
    struct pool *pool = pd->pool;
    struct held_run *run = pd->run;

    if (result < 0 && result != -EOPNOTSUPP)
        log_debug("a discard was not passed down pool=%s error=%s", pool->name,
                  thin_error_name(result));
    pd->run = NULL;
    if (seeded_bug(SEEDED_REUSE_IN_PASSDOWN)) {
        TAILQ_INSERT_HEAD(&pool->space->free_runs, run, link);
        pool_data_end(pool, true, 0);
        passdown_kick(pool);
        return;
    }
    /* It changed the device: the next flush has to cover it, or an old write to a block
       that is used again could be overtaken by it. */
    held_release(pool, run);
    pool_data_end(pool, true, 0);
    passdown_kick(pool);
}

static void
passdown_kick(struct pool *pool)
{
    struct space *sp = pool->space;

    for (unsigned i = 0; i < PASSDOWN_IN_FLIGHT; i++) {
        struct passdown *pd = &sp->passdowns[i];
        struct held_run *run = TAILQ_FIRST(&sp->to_pass);
        uint64_t bs = pool->block_size;

        if (!run)
            return;
        if (pd->run)
            continue;
        TAILQ_REMOVE(&sp->to_pass, run, link);
        if (!passdown_wanted(pool)) {
            held_release(pool, run);
            i--;
            continue;
        }
        pd->pool = pool;
        pd->run = run;
        pd->dio.op = DEVICE_DISCARD;
        pd->dio.flags = 0;
        pd->dio.offset = run->begin * bs;
        pd->dio.len = (run->end - run->begin) * bs;
        pd->dio.done = passdown_done;
        pool_data_begin(pool);
        if (seeded_bug(SEEDED_REUSE_IN_PASSDOWN)) {
            runs_remove(&sp->held, run->begin, run->end);
            loop_defer(pool->loop, &sp->wake_task);
        }
        device_submit(pool->data, &pd->dio);
    }
}

void
space_pass_down(struct pool *pool)
{
    passdown_kick(pool);
}

uint64_t
space_room_for_freed(struct pool *pool)
{
    struct space *sp = pool->space;
    uint64_t each = max_u64(1, DEVICE_IO_MAX / pool->block_size);

    if (!passdown_wanted(pool))
        return UINT64_MAX;
    /* One run is kept for the part that a run may be cut into. */
    return sp->held.nr + 1 >= HELD_MAX ? 0 : (HELD_MAX - 1 - sp->held.nr) * each;
}

void
space_freed(void *arg, dblock_t begin, dblock_t end)
{
    struct pool *pool = arg;
    struct space *sp = pool->space;
    uint64_t bs = pool->block_size;

    sp->freed_some = true;
    while (begin < end) {
        /* A piece is no longer than what one discard should be. */
        dblock_t to = min_u64(end, begin + max_u64(1, DEVICE_IO_MAX / bs));
        bool used = inflight_overlaps(pool, begin * bs, to * bs, 0) &&
                    !seeded_bug(SEEDED_REUSE_WHILE_READ);
        bool pass = passdown_wanted(pool);
        struct held_run *run = TAILQ_FIRST(&sp->free_runs);

        if (used || pass) {
            if (run && runs_add(&sp->held, begin, to)) {
                TAILQ_REMOVE(&sp->free_runs, run, link);
                begin_run(sp);
                run->begin = begin;
                run->end = to;
                TAILQ_INSERT_TAIL(used ? &sp->in_use : &sp->to_pass, run, link);
            } else if (used) {
                /* No room to remember it: then nothing is handed out until all that is
                   in flight now has ended. */
                sp->hold_all = true;
            }
        }
        begin = to;
    }
}

void
space_recheck_held(struct pool *pool)
{
    struct space *sp = pool->space;
    struct held_run *run, *next;
    uint64_t bs = pool->block_size;

    if (sp->hold_all && pool->in->nr_inflight == 0) {
        sp->hold_all = false;
        sp->freed_some = true;
        loop_defer(pool->loop, &sp->wake_task);
    }
    for (run = TAILQ_FIRST(&sp->in_use); run; run = next) {
        next = TAILQ_NEXT(run, link);
        if (inflight_overlaps(pool, run->begin * bs, run->end * bs, 0))
            continue;
        TAILQ_REMOVE(&sp->in_use, run, link);
        TAILQ_INSERT_TAIL(&sp->to_pass, run, link);
    }
    passdown_kick(pool);
}

bool
space_is_held(const struct pool *pool, dblock_t begin, dblock_t end)
{
    const struct run_set *held = &pool->space->held;
    unsigned at = runs_at(held, begin);

    return at < held->nr && held->runs[at].begin < end;
}

bool
space_has_held(const struct pool *pool)
{
    return pool->space->held.nr > 0 || pool->space->hold_all;
}

/* ---- requests that wait for room ----------------------------------------------------------- */

static void
parked_arm(struct pool *pool)
{
    struct space *sp = pool->space;
    struct volume_io *io;
    uint64_t first = UINT64_MAX;

    TAILQ_FOREACH(io, &sp->parked, link)
        first = min_u64(first, io->deadline_ns);
    if ((sp->host_full || sp->extend_failed) && !TAILQ_EMPTY(&sp->parked))
        first = min_u64(first, loop_now_ns(pool->loop) + HOST_FULL_RETRY_NS);
    if (first == UINT64_MAX)
        loop_timer_cancel(pool->loop, &sp->park_timer);
    else if (loop_timer_set(pool->loop, &sp->park_timer, first) < 0)
        space_fail_parked(pool, NULL, -THIN_E_NO_DATA_SPACE);
}

static void
parked_timeout(struct thin_timer *timer)
{
    struct space *sp = container_of(timer, struct space, park_timer);
    struct pool *pool = sp->pool;
    uint64_t now = loop_now_ns(pool->loop);
    struct volume_io_list late = TAILQ_HEAD_INITIALIZER(late);
    struct volume_io *io, *next;

    for (io = TAILQ_FIRST(&sp->parked); io; io = next) {
        next = TAILQ_NEXT(io, link);
        if (io->deadline_ns > now)
            continue;
        TAILQ_REMOVE(&sp->parked, io, link);
        TAILQ_INSERT_TAIL(&late, io, link);
    }
    while ((io = TAILQ_FIRST(&late))) {
        TAILQ_REMOVE(&late, io, link);
        io_finish(io, -THIN_E_NO_DATA_SPACE);
    }
    /* Those that find the file system full still come back. */
    if ((sp->host_full || sp->extend_failed) && !TAILQ_EMPTY(&sp->parked))
        loop_defer(pool->loop, &sp->wake_task);
    else
        parked_arm(pool);
}

void
space_fail_parked(struct pool *pool, struct volume *only, int result)
{
    struct space *sp = pool->space;
    struct volume_io_list out = TAILQ_HEAD_INITIALIZER(out);
    struct volume_io *io, *next;

    for (io = TAILQ_FIRST(&sp->parked); io; io = next) {
        next = TAILQ_NEXT(io, link);
        if (only && io->volume != only)
            continue;
        TAILQ_REMOVE(&sp->parked, io, link);
        TAILQ_INSERT_TAIL(&out, io, link);
    }
    while ((io = TAILQ_FIRST(&out))) {
        TAILQ_REMOVE(&out, io, link);
        io->result = result;
        volume_later(io);
    }
}

static void
extend_done(void *arg, int result, const struct thin_error *err)
{
    struct pool *pool = arg;
    struct space *sp = pool->space;

    sp->extending = false;
    if (result < 0) {
        sp->extend_failed = true;
        sp->extend_failed_ns = loop_now_ns(pool->loop);
        log_warning("the data device could not grow by itself: %s pool=%s",
                    thin_error_text(err, result), pool->name);
    }
    loop_defer(pool->loop, &sp->wake_task);
    pool_check_idle(pool);
}

/* True if the data device is growing, or begins to. */
static bool
space_extend(struct pool *pool)
{
    struct space *sp = pool->space;
    const struct pool_auto_extend *x = &pool->config.extend_data;
    uint64_t now_bytes = pool->nr_data_blocks * pool->block_size;
    uint64_t to =
        min_u64(now_bytes + max_u64(x->step_bytes, pool->block_size), x->limit_bytes);
    struct pool_done done = {extend_done, pool};

    if (sp->extending)
        return true;
    if (sp->extend_failed &&
        loop_now_ns(pool->loop) - sp->extend_failed_ns >= EXTEND_RETRY_NS)
        sp->extend_failed = false;
    if (!x->percent || !pool->data->limits.grows || to < now_bytes + pool->block_size ||
        sp->extend_failed || pool->closing || pool_may_change(pool, NULL) < 0)
        return false;
    sp->extending = true;
    pool_grow(pool, to, 0, done);
    return true;
}

static void
extend_metadata_done(void *arg, int result, const struct thin_error *err)
{
    struct pool *pool = arg;
    struct space *sp = pool->space;

    sp->extending_metadata = false;
    if (result < 0) {
        sp->extend_metadata_failed = true;
        log_warning("the metadata device could not grow by itself: %s pool=%s",
                    thin_error_text(err, result), pool->name);
    } else if (pool->mode == POOL_OUT_OF_METADATA_SPACE) {
        pool_set_mode(pool, POOL_WRITE, "", "%s", "");
    }
    admin_grown(pool);
    loop_defer(pool->loop, &sp->wake_task);
    pool_check_idle(pool);
}

bool
space_extend_metadata(struct pool *pool)
{
    struct space *sp = pool->space;
    uint64_t now_bytes, to, max = (uint64_t)METADATA_BLOCKS_MAX * METADATA_BLOCK_SIZE;
    struct pool_done done = {extend_metadata_done, pool};
    struct metadata_space ms;
    uint64_t reserve;

    if (sp->extending_metadata)
        return true;
    metadata_own_space(pool->md, &ms, &reserve);
    now_bytes = ms.nr_blocks * METADATA_BLOCK_SIZE;
    to = min_u64(now_bytes + max_u64(now_bytes / 2, METADATA_STEP_BYTES), max);
    if (!pool->config.extend_metadata || !pool->metadata_dev->limits.grows ||
        to <= now_bytes || sp->extend_metadata_failed || !pool->opened || pool->closing ||
        pool_may_change(pool, NULL) < 0)
        return false;
    sp->extending_metadata = true;
    pool_grow(pool, 0, to, done);
    return true;
}

int
space_park(struct pool *pool, struct volume_io *io)
{
    struct space *sp = pool->space;
    uint64_t ms = pool->config.no_space_timeout_ms;
    /* A larger file finds no more room in a file system that is full. */
    bool extends =
        sp->extending_metadata || sp->extending || (!sp->host_full && space_extend(pool));

    if (!extends && sp->host_full &&
        (pool->mode == POOL_WRITE || pool->mode == POOL_OUT_OF_DATA_SPACE))
        pool_set_mode(pool, POOL_OUT_OF_DATA_SPACE,
                      "make room there, or delete volumes or snapshots",
                      "the file system that holds the data file is full");
    else if (!extends && pool->mode == POOL_WRITE)
        pool_set_mode(pool, POOL_OUT_OF_DATA_SPACE,
                      "grow the pool, or delete volumes or snapshots",
                      "no free data block is left%s",
                      limits_reserved_bytes(pool) ? " that is not reserved" : "");
    if (sp->drained || io->volume->drained)
        return -THIN_E_SHUTDOWN;
    if (pool->closing || (!extends && pool->config.on_full == POOL_ERROR))
        return -THIN_E_NO_DATA_SPACE;
    if (io->deadline_ns == 0)
        io->deadline_ns = ms ? loop_now_ns(pool->loop) + ms * NS_PER_MS : UINT64_MAX;
    if (io->deadline_ns <= loop_now_ns(pool->loop))
        return -THIN_E_NO_DATA_SPACE;
    TAILQ_INSERT_TAIL(&sp->parked, io, link);
    parked_arm(pool);
    return 0;
}

void
pool_drain(struct pool *pool)
{
    pool->space->drained = true;
    space_fail_parked(pool, NULL, -THIN_E_SHUTDOWN);
}

void
volume_drain(struct volume *volume)
{
    volume->drained = true;
    if (volume->pool)
        space_fail_parked(volume->pool, volume, -THIN_E_SHUTDOWN);
}

static void
wake_run(struct thin_task *task)
{
    struct space *sp = container_of(task, struct space, wake_task);
    struct pool *pool = sp->pool;
    struct volume_frag *frag;

    /* Blocks may become free after the last commit, when their pass-down ends. */
    if (sp->freed_some && sp->held.nr == 0 && !pool->rolling_back &&
        pool->mode == POOL_OUT_OF_DATA_SPACE)
        pool_set_mode(pool, POOL_WRITE, "", "%s", "");
    sp->freed_some = false;
    while ((frag = TAILQ_FIRST(&sp->waiters))) {
        TAILQ_REMOVE(&sp->waiters, frag, link);
        frag_run_later(frag, NULL);
    }
    if (pool->rolling_back || TAILQ_EMPTY(&sp->parked))
        return;
    /* They begin again where they were; who finds no room comes back. */
    loop_timer_cancel(pool->loop, &sp->park_timer);
    TAILQ_CONCAT(&pool->in->starved, &sp->parked, link);
    loop_defer(pool->loop, &pool->in->starved_task);
}

void
space_resume(struct pool *pool)
{
    if (pool->mode == POOL_OUT_OF_DATA_SPACE)
        pool_set_mode(pool, POOL_WRITE, "", "%s", "");
    loop_defer(pool->loop, &pool->space->wake_task);
}

void
space_grown(struct pool *pool)
{
    struct metadata_space ms;

    metadata_data_space(pool->md, &ms);
    pool->nr_data_blocks = ms.nr_blocks;
    pool->space->extend_failed = false;
    space_resume(pool);
}

void
space_taken(struct pool *pool)
{
    struct metadata_space ms;

    low_water_look(pool);
    if (!pool->config.extend_data.percent)
        return;
    metadata_data_space(pool->md, &ms);
    if (ms.nr_blocks && (double)(ms.nr_blocks - ms.nr_free - ms.nr_pending) * 100.0 >=
                            (double)ms.nr_blocks * pool->config.extend_data.percent)
        space_extend(pool);
}

void
space_after_commit(struct pool *pool)
{
    struct space *sp = pool->space;
    struct metadata_space ms;
    uint64_t reserve;

    if (pool->closing && !TAILQ_EMPTY(&sp->waiters))
        loop_defer(pool->loop, &sp->wake_task); /* to learn it */
    if (!pool->opened || pool->closing || pool->rolling_back)
        return;
    passdown_kick(pool);
    if (sp->freed_some && sp->held.nr == 0 && pool->mode == POOL_OUT_OF_DATA_SPACE)
        space_resume(pool);
    if (sp->freed_some || !TAILQ_EMPTY(&sp->waiters))
        loop_defer(pool->loop, &sp->wake_task);
    metadata_own_space(pool->md, &ms, &reserve);
    if (ms.nr_free < ms.nr_blocks / METADATA_LOW_PART)
        space_extend_metadata(pool);
    if (ms.nr_free > 0 && pool->mode == POOL_OUT_OF_METADATA_SPACE)
        pool_set_mode(pool, POOL_WRITE, "", "%s", "");
    space_taken(pool);
}

/* ---- life --------------------------------------------------------------------------------------- */

bool
space_idle(const struct pool *pool)
{
    const struct space *sp = pool->space;

    for (unsigned i = 0; i < PASSDOWN_IN_FLIGHT; i++)
        if (sp->passdowns[i].run)
            return false;
    return !sp->extending && !sp->extending_metadata;
}

void
space_stop(struct pool *pool)
{
    passdown_kick(pool); /* lets go what waits, since nothing is passed down any more */
    loop_timer_cancel(pool->loop, &pool->space->park_timer);
}

static void
runs_reset(struct pool *pool)
{
    struct space *sp = pool->space;

    TAILQ_INIT(&sp->free_runs);
    TAILQ_INIT(&sp->in_use);
    TAILQ_INIT(&sp->to_pass);
    sp->nr_runs_begun = 0;
    begin_run(sp);
    sp->held.nr = 0;
    sp->hold_all = false;
}

int
space_create(struct pool *pool)
{
    struct space *sp = calloc(1, sizeof(*sp));

    if (!sp)
        return -ENOMEM;
    pool->space = sp;
    sp->pool = pool;
    TAILQ_INIT(&sp->waiters);
    TAILQ_INIT(&sp->parked);
    sp->wake_task.run = wake_run;
    sp->park_timer.fire = parked_timeout;
    sp->held.max = HELD_MAX;
    sp->held.runs = calloc(HELD_MAX, sizeof(struct run));
    sp->windows.max = WINDOWS_MAX;
    sp->windows.runs = calloc(WINDOWS_MAX, sizeof(struct run));
    sp->run_objects = malloc(HELD_MAX * sizeof(struct held_run));
    if (!sp->held.runs || !sp->windows.runs || !sp->run_objects)
        return -ENOMEM;
    runs_reset(pool);
    return windows_create(pool);
}

void
space_reset(struct pool *pool)
{
    windows_reset(pool);
    runs_reset(pool);
}

void
space_destroy(struct pool *pool)
{
    struct space *sp = pool->space;

    if (!sp)
        return;
    loop_defer_cancel(pool->loop, &sp->wake_task);
    loop_timer_cancel(pool->loop, &sp->park_timer);
    windows_destroy(pool);
    free(sp->held.runs);
    free(sp->windows.runs);
    free(sp->run_objects);
    free(sp);
    pool->space = NULL;
}
