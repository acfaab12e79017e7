/* Open volumes: handles, and the state of a thin device that they share. */
#include <stdlib.h>

#include "core/base/seeded_bug.h"
#include "core/pool/origin.h"
#include "core/pool/pieces.h"

/* ---- the shared state --------------------------------------------------------------------- */

struct volume_core *
volume_core_find(struct pool *pool, uint32_t dev_id)
{
    struct volume_core *core;

    HASH_FIND(hh, pool->cores_by_id, &dev_id, sizeof(dev_id), core);
    return core;
}

static void
quiesce_tell(struct thin_task *task)
{
    struct volume_core *core = container_of(task, struct volume_core, quiesce_task);
    struct quiesce_list told = TAILQ_HEAD_INITIALIZER(told);
    struct quiesce *q;

    TAILQ_CONCAT(&told, &core->quiesced, link);
    core->telling = false;
    while ((q = TAILQ_FIRST(&told))) {
        TAILQ_REMOVE(&told, q, link);
        q->done(q);
    }
    volume_core_put(core);
}

/* The phase that drains is empty: its waiters are served, the next ones get theirs. */
static void
quiesce_step(struct volume_core *core)
{
    while (core->writes_in_place[core->phase ^ 1] == 0) {
        TAILQ_CONCAT(&core->quiesced, &core->quiescing, link);
        if (TAILQ_EMPTY(&core->quiesce_next))
            break;
        core->phase ^= 1;
        TAILQ_CONCAT(&core->quiescing, &core->quiesce_next, link);
    }
    if (!TAILQ_EMPTY(&core->quiesced) && !core->telling) {
        /* Until they are told, though the last handle may go before. */
        core->telling = true;
        volume_core_hold(core);
        loop_defer(core->pool->loop, &core->quiesce_task);
    }
}

void
volume_core_quiesce(struct volume_core *core, struct quiesce *q)
{
    TAILQ_INSERT_TAIL(&core->quiesce_next, q, link);
    quiesce_step(core);
}

void
volume_core_write_begin(struct volume_core *core, struct pool_inflight *fl)
{
    fl->phase = core->phase;
    core->writes_in_place[core->phase]++;
}

void
volume_core_write_end(struct volume_core *core, struct pool_inflight *fl)
{
    THIN_ASSERT(core->writes_in_place[fl->phase] > 0);
    if (--core->writes_in_place[fl->phase] == 0 &&
        (!TAILQ_EMPTY(&core->quiescing) || !TAILQ_EMPTY(&core->quiesce_next)))
        quiesce_step(core);
}

void
volume_core_set_time(struct volume_core *core, uint32_t time)
{
    core->snapshotted_time = time;
}

void
volume_core_changed(struct volume_core *core, uint64_t txn)
{
    core->changed_txn = max_u64(core->changed_txn, txn);
}

static void
notify_run(struct thin_task *task)
{
    struct volume *volume = container_of(task, struct volume, notify_task);

    if (volume->notify)
        volume->notify(volume->notify_arg);
}

static void
core_notify(struct volume_core *core)
{
    struct volume *volume;

    TAILQ_FOREACH(volume, &core->handles, link)
        loop_defer(volume->loop, &volume->notify_task);
}

void
volume_core_set_size(struct volume_core *core, uint64_t size)
{
    if (core->size == size)
        return;
    core->size = size;
    core_notify(core);
}

void
volume_core_set_name(struct volume_core *core, const char *name)
{
    struct volume *volume;

    snprintf(core->name, sizeof(core->name), "%s", name);
    TAILQ_FOREACH(volume, &core->handles, link)
        snprintf(volume->name, sizeof(volume->name), "%s", name);
}

void
volume_core_follow(struct volume_core *core, const struct catalogue_volume *cv)
{
    volume_core_set_name(core, cv->name);
    volume_core_set_size(core, cv->size);
    core->read_only = cv->read_only;
    core->quota = div_up_u64(cv->quota, core->pool->block_size);
    core->origin_size = cv->origin_size;
}

void
volume_core_fence(struct volume_core *core, int code)
{
    struct volume *volume;

    TAILQ_FOREACH(volume, &core->handles, link) {
        if (!volume->fenced)
            volume->fenced = code;
        space_fail_parked(core->pool, volume, code);
    }
    core_notify(core);
}

static struct volume_core *
core_make(struct pool *pool, const struct catalogue_volume *cv)
{
    struct volume_core *core = calloc(1, sizeof(*core));

    if (!core)
        return NULL;
    core->pool = pool;
    core->dev_id = cv->dev_id;
    TAILQ_INIT(&core->handles);
    TAILQ_INIT(&core->quiescing);
    TAILQ_INIT(&core->quiesce_next);
    TAILQ_INIT(&core->quiesced);
    TAILQ_INIT(&core->windows);
    LIST_INIT(&core->pages);
    core->quiesce_task.run = quiesce_tell;
    volume_core_follow(core, cv);
    core->epoch = pool->epoch;
    /* It may have been open before, and written to: what is not durable counts as its. */
    core->changed_txn = commit_last_txn(pool);
    core->write_seq = pool->commit.write_seq;
    if (cv->origin) {
        snprintf(core->origin_identity, sizeof(core->origin_identity), "%s",
                 cv->origin_identity);
        core->origin = origin_get(pool, cv->origin);
        if (!core->origin) {
            free(core);
            return NULL;
        }
    }
    HASH_ADD(hh, pool->cores_by_id, dev_id, sizeof(core->dev_id), core);
    if (!core->hh.tbl) {
        origin_put(core->origin);
        free(core);
        return NULL;
    }
    core->stats = counts_of(pool, core->dev_id);
    TAILQ_INSERT_TAIL(&pool->cores, core, link);
    return core;
}

void
volume_core_hold(struct volume_core *core)
{
    core->holds++;
}

void
volume_core_put(struct volume_core *core)
{
    struct pool *pool = core->pool;

    if (--core->holds > 0)
        return;
    THIN_ASSERT(TAILQ_EMPTY(&core->quiescing) && TAILQ_EMPTY(&core->quiesce_next));
    THIN_ASSERT(!core->telling);
    pieces_drop_core(core);
    mapcache_drop_core(core);
    space_drop_core(core);
    HASH_DELETE(hh, pool->cores_by_id, core);
    TAILQ_REMOVE(&pool->cores, core, link);
    origin_put(core->origin);
    free(core);
}

/*
 * ---- opening --------------------------------------------------------------------------------
 *
 * Who comes while the pool is rolled back, or is on his way when that begins, waits for its
 * end, and then begins anew; for a bounded time, since it may have to wait for a device.
 */
#define OPENING_WAIT_NS   (10000 * NS_PER_MS)
#define OPENING_TRIES_MAX 4u

struct opening {
    TAILQ_ENTRY(opening) link; /* in pool->in->openings, while it waits for a roll-back */
    struct thin_timer timer;
    unsigned tries;
    char name[THIN_NAME_MAX + 1];
    struct pool *pool;
    struct volume_core *core; /* held */
    struct volume *volume;
    bool read_only;
    int result;
    struct thin_error err;
    void (*opened)(void *arg, struct volume *volume, int result,
                   const struct thin_error *err);
    void *arg;
    struct metaop op;
    struct commit_wait wait;
    struct origin_wait origin_wait;
    struct settle_wait settle;
    struct thin_task task;
    struct device_details details;
};

static void opening_begin(struct opening *o);

static void
opening_end(struct opening *o, int result)
{
    if (result < 0) {
        free(take(o->volume));
        if (o->core)
            volume_core_put(take(o->core));
    }
    if (result == -THIN_E_ROLLED_BACK && o->tries < OPENING_TRIES_MAX) {
        opening_begin(o);
        return;
    }
    o->opened(o->arg, result < 0 ? NULL : o->volume, result, &o->err);
    free(o);
}

static int
opening_run(struct metaop *op, struct thin_error *err)
{
    struct opening *o = container_of(op, struct opening, op);
    bool found = false;
    int r;

    r = metadata_get_device(o->pool->md, o->core->dev_id, &o->details, &found, err);
    if (r < 0)
        return r;
    if (!found)
        return thin_fail(err, -THIN_E_NOT_FOUND, "thin device %u is not there",
                         o->core->dev_id);
    return 0;
}

static void
opening_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct opening *o = container_of(op, struct opening, op);
    struct volume *volume = o->volume;

    if (result == 0 && o->pool->closing)
        result = thin_fail(&o->err, -THIN_E_SHUTDOWN, "the pool is closing");
    else if (result < 0)
        o->err = *err;
    if (result == 0)
        origin_note(o->core);
    if (result == 0 && !o->read_only && origin_changed(o->core))
        result = thin_fail(&o->err, -THIN_E_READ_ONLY,
                           "the external origin is not what it was when the volume was "
                           "made; the volume can be opened read-only");
    if (result == 0) {
        o->core->snapshotted_time = o->details.snapshotted_time;
        o->core->mapped = o->details.mapped_blocks;
        volume->core = o->core;
        TAILQ_INSERT_TAIL(&o->core->handles, volume, link);
        o->core->nr_handles++;
    }
    opening_end(o, result);
}

static void
opening_failed(struct thin_task *task)
{
    struct opening *o = container_of(task, struct opening, task);

    opening_end(o, o->result);
}

static void
opening_look(struct opening *o)
{
    memset(&o->op, 0, sizeof(o->op));
    o->op.run = opening_run;
    o->op.done = opening_done;
    o->op.reads_only = true;
    o->op.name = "open a volume";
    metaop_start(o->pool, &o->op, false);
}

static void
opening_marked(struct commit_wait *wait, int result)
{
    struct opening *o = container_of(wait, struct opening, wait);

    if (result < 0)
        opening_end(o, thin_fail(&o->err, result,
                                 "the pool could not be marked as in use: %s",
                                 o->pool->why[0] ? o->pool->why : thin_strerror(result)));
    else
        opening_look(o);
}

static void
mark_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct opening *o = container_of(op, struct opening, op);

    if (result < 0) {
        o->err = *err;
        opening_end(o, result);
        return;
    }
    o->wait.done = opening_marked;
    o->wait.txn = commit_last_txn(o->pool);
    commit_join(o->pool, &o->wait);
}

static void
opening_settled(struct settle_wait *wait, int result)
{
    struct opening *o = container_of(wait, struct opening, settle);

    if (result < 0)
        opening_end(o, thin_fail(&o->err, result, "the superblock cannot be written: %s",
                                 thin_strerror(result)));
    else
        opening_look(o);
}

/* Before the first write can be answered, the disk no longer says that the pool was closed
   in good order; and what the pool stands on is durable. */
static void
opening_mark(struct opening *o)
{
    if (o->read_only || pool_may_change(o->pool, NULL) < 0) {
        opening_look(o);
        return;
    }
    if (!catalogue_is_clean(o->pool) || seeded_bug(SEEDED_CLEAN_KEPT)) {
        o->settle.done = opening_settled;
        if (pool_is_settled(o->pool))
            opening_look(o);
        else
            pool_settle(o->pool, &o->settle);
        return;
    }
    o->op.run = catalogue_touch;
    o->op.done = mark_done;
    o->op.purse = TM_COMMIT;
    o->op.name = "mark as in use";
    metaop_start(o->pool, &o->op, false);
}

static void
opening_origin(struct origin_wait *wait)
{
    opening_mark(container_of(wait, struct opening, origin_wait));
}

static int
opening_prepare(struct opening *o)
{
    struct pool *pool = o->pool;
    struct catalogue_volume cv;
    struct volume *volume;

    if (pool->closing)
        return thin_fail(&o->err, -THIN_E_SHUTDOWN, "the pool is closing");
    if (pool->mode == POOL_FAIL || pool->rolling_back)
        return thin_fail(&o->err, -THIN_E_FAILED, "the pool cannot be read now: %s",
                         pool->why);
    if (!catalogue_find(pool, o->name, &cv)) {
        const char *damage = catalogue_damage(pool);

        return damage[0]
                   ? thin_fail(&o->err, -THIN_E_CATALOGUE,
                               "no volume of that name can be found: the "
                               "catalogue cannot be read: %.300s",
                               damage)
                   : thin_fail(&o->err, -THIN_E_NOT_FOUND, "no volume of that name");
    }
    if (cv.read_only && !o->read_only)
        return thin_fail(&o->err, -THIN_E_READ_ONLY, "the volume is read-only");
    o->volume = volume = calloc(1, sizeof(*volume));
    if (!volume)
        return thin_fail(&o->err, -ENOMEM, "out of memory");
    o->core = volume_core_find(pool, cv.dev_id);
    if (!o->core)
        o->core = core_make(pool, &cv);
    if (!o->core)
        return thin_fail(&o->err, -ENOMEM, "out of memory");
    volume_core_hold(o->core);
    volume->pool = pool;
    volume->loop = pool->loop;
    volume->read_only = o->read_only;
    volume->block_size = pool->block_size;
    volume->notify_task.run = notify_run;
    snprintf(volume->name, sizeof(volume->name), "%s", cv.name);
    TAILQ_INIT(&volume->finished);
    return 0;
}

static void
opening_too_long(struct thin_timer *timer)
{
    struct opening *o = container_of(timer, struct opening, timer);

    TAILQ_REMOVE(&o->pool->in->openings, o, link);
    opening_end(o, thin_fail(&o->err, -THIN_E_FAILED, "the pool cannot be read now: %s",
                             o->pool->why));
}

static void
opening_begin(struct opening *o)
{
    struct pool *pool = o->pool;

    thin_error_init(&o->err);
    o->tries++;
    if (pool->rolling_back && !pool->closing) {
        o->timer.fire = opening_too_long;
        if (loop_timer_set(pool->loop, &o->timer,
                           loop_now_ns(pool->loop) + OPENING_WAIT_NS) == 0) {
            TAILQ_INSERT_TAIL(&pool->in->openings, o, link);
            return;
        }
    }
    o->result = opening_prepare(o);
    if (o->result < 0) {
        o->task.run = opening_failed;
        loop_defer(pool->loop, &o->task);
        return;
    }
    /* Whether it has changed decides how the volume may be opened. */
    o->origin_wait.done = opening_origin;
    if (!o->core->origin || !origin_wait(o->core->origin, &o->origin_wait))
        opening_mark(o);
}

void
volume_openings_go_on(struct pool *pool)
{
    struct opening_list waiting = TAILQ_HEAD_INITIALIZER(waiting);
    struct opening *o;

    TAILQ_CONCAT(&waiting, &pool->in->openings, link);
    while ((o = TAILQ_FIRST(&waiting))) {
        TAILQ_REMOVE(&waiting, o, link);
        loop_timer_cancel(pool->loop, &o->timer);
        opening_begin(o);
    }
}

void
pool_volume_open(struct pool *pool, const char *name, bool read_only,
                 void (*opened)(void *arg, struct volume *volume, int result,
                                const struct thin_error *err),
                 void *arg)
{
    struct opening *o = calloc(1, sizeof(*o));

    if (!o) {
        /* Nothing to wait with: the one callback that comes at once. */
        opened(arg, NULL, -ENOMEM, NULL);
        return;
    }
    o->pool = pool;
    o->read_only = read_only;
    o->opened = opened;
    o->arg = arg;
    snprintf(o->name, sizeof(o->name), "%s", name);
    opening_begin(o);
}

void
volume_detach(struct volume *volume)
{
    struct volume_core *core = volume->core;

    TAILQ_REMOVE(&core->handles, volume, link);
    core->nr_handles--;
    volume->size_at_close = core->size;
    volume->core = NULL;
    volume->pool = NULL;
    volume_core_put(core);
}

void
volume_close(struct volume *volume)
{
    if (!volume)
        return;
    THIN_ASSERT(volume->in_flight == 0);
    loop_defer_cancel(volume->loop, &volume->done_task);
    loop_defer_cancel(volume->loop, &volume->notify_task);
    if (volume->core)
        volume_detach(volume);
    free(volume);
}

/* ---- asking ------------------------------------------------------------------------------------- */

uint64_t
volume_size(const struct volume *volume)
{
    return volume->core ? volume->core->size : volume->size_at_close;
}

uint32_t
volume_block_size(const struct volume *volume)
{
    return volume->block_size;
}

const char *
volume_name(const struct volume *volume)
{
    return volume->name;
}

struct pool *
volume_pool(const struct volume *volume)
{
    return volume->pool;
}

void
volume_set_notify(struct volume *volume, void (*notify)(void *arg), void *arg)
{
    volume->notify = notify;
    volume->notify_arg = arg;
}
