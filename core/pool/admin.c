/* The queue of changes, and a job's way through it: admin_private.h draws it. */
#include "core/pool/admin_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/base/seeded_bug.h"

static void pump(struct admin *admin);
static void job_begin(struct admin_job *job);
static void checkpoint_started(struct admin *admin);

/* ---- refusals ------------------------------------------------------------------------------ */

static void
refuse_run(struct thin_task *task)
{
    struct admin *admin = container_of(task, struct admin, refuse_task);

    while (admin->nr_refusals > 0) {
        /* The call may refuse another one: it takes the place of this. */
        struct admin_refusal r = admin->refusals[0];

        admin->nr_refusals--;
        memmove(admin->refusals, admin->refusals + 1,
                admin->nr_refusals * sizeof(admin->refusals[0]));
        if (r.list)
            r.list(r.done.arg, r.result, &r.err, NULL, 0);
        else if (r.done.fn)
            r.done.fn(r.done.arg, r.result, &r.err);
    }
    admin_check_stopped(admin);
}

static void
refuse(struct pool *pool, struct pool_done done, admin_list_fn list, int result,
       const struct thin_error *err)
{
    struct admin *admin = pool->admin;
    struct admin_refusal *refusal;

    if (admin->nr_refusals == ADMIN_REFUSE_MAX) {
        /* So many in one turn: there is nowhere left to remember one more. */
        if (list)
            list(done.arg, result, err, NULL, 0);
        else if (done.fn)
            done.fn(done.arg, result, err);
        return;
    }
    refusal = &admin->refusals[admin->nr_refusals++];
    refusal->done = done;
    refusal->list = list;
    refusal->result = result;
    thin_error_init(&refusal->err);
    if (err)
        refusal->err = *err;
    loop_defer(pool->loop, &admin->refuse_task);
}

void
admin_refuse(struct pool *pool, struct admin_job *job, struct pool_done done, int result,
             const struct thin_error *err)
{
    admin_job_destroy(job);
    refuse(pool, done, NULL, result, err);
}

void
admin_refuse_list(struct pool *pool, admin_list_fn fn, void *arg, int result,
                  const struct thin_error *err)
{
    refuse(pool, (struct pool_done){NULL, arg}, fn, result, err);
}

/* ---- jobs ------------------------------------------------------------------------------------ */

struct admin_job *
admin_job_create(struct pool *pool, const struct admin_kind *kind, struct pool_done done)
{
    struct admin_job *job = calloc(1, sizeof(*job));
    struct thin_error err;

    if (!job) {
        thin_error_init(&err);
        thin_fail_code(&err, -ENOMEM, "%s", kind->name);
        admin_refuse(pool, NULL, done, -ENOMEM, &err);
        return NULL;
    }
    job->kind = kind;
    job->pool = pool;
    job->done = done;
    return job;
}

void
admin_job_destroy(struct admin_job *job)
{
    if (!job)
        return;
    if (job->kind->fini)
        job->kind->fini(job);
    catalogue_change_fini(&job->change);
    free(job->origin);
    free(job->origin_identity);
    free(job->attachment);
    free(job->snaps);
    free(job->ids);
    free(job);
}

void
admin_submit(struct admin_job *job, bool internal)
{
    struct admin *admin = job->pool->admin;
    struct thin_error err;
    int r = 0;

    thin_error_init(&err);
    if (admin->stopping && !internal)
        r = thin_fail(&err, -THIN_E_SHUTDOWN, "the pool is being closed");
    else if (admin->nr_queued >= ADMIN_QUEUE_MAX && !internal)
        r = thin_fail(&err, -THIN_E_LIMIT, "%u changes are waiting already",
                      ADMIN_QUEUE_MAX);
    if (r < 0) {
        admin_refuse(job->pool, job, job->done, r, &err);
        return;
    }
    TAILQ_INSERT_TAIL(&admin->queue, job, link);
    admin->nr_queued++;
    loop_defer(job->pool->loop, &admin->pump_task);
}

static void
job_answer(struct admin_job *job, int result, const struct thin_error *err)
{
    struct pool_done done = job->done;
    struct thin_error words;

    thin_error_init(&words);
    if (err)
        words = *err;
    admin_job_destroy(job);
    if (done.fn)
        done.fn(done.arg, result, &words);
}

/* What does not fit now waits for growth, if there is any to wait for. */
static bool
job_awaits_growth(struct admin_job *job, int result)
{
    struct admin *admin = job->pool->admin;

    if (result != -THIN_E_NO_METADATA_SPACE || job->has_waited || job->doomed ||
        job->bare || job->kind->makes_room || admin->stopping ||
        !space_extend_metadata(job->pool))
        return false;
    THIN_ASSERT(admin->running == job);
    admin->running = NULL;
    admin->waiting = WAITS_FOR_NOTHING;
    job->has_waited = true;
    job->tries = 0;
    catalogue_change_fini(&job->change);
    TAILQ_INSERT_TAIL(&admin->growing, job, link);
    admin->nr_queued++;
    loop_defer(job->pool->loop, &admin->pump_task);
    return true;
}

void
admin_grown(struct pool *pool)
{
    struct admin *admin = pool->admin;

    if (!admin || TAILQ_EMPTY(&admin->growing))
        return;
    TAILQ_CONCAT(&admin->growing, &admin->queue, link);
    TAILQ_CONCAT(&admin->queue, &admin->growing, link);
    loop_defer(pool->loop, &admin->pump_task);
}

/* Ends a job that is not kept; the next one may begin. */
static void
job_fail(struct admin_job *job, int result, const struct thin_error *err)
{
    struct admin *admin = job->pool->admin;

    if (job_awaits_growth(job, result))
        return;
    THIN_ASSERT(admin->running == job);
    admin->running = NULL;
    admin->waiting = WAITS_FOR_NOTHING;
    loop_defer(job->pool->loop, &admin->pump_task);
    job_answer(job, result, err);
    admin_check_stopped(admin);
}

static bool
job_is_doomed(struct admin_job *job)
{
    if (!job->doomed)
        return false;
    thin_fail_code(&job->err, -THIN_E_ROLLED_BACK, "%s", job->kind->name);
    job_fail(job, -THIN_E_ROLLED_BACK, &job->err);
    return true;
}

/* ---- after the operation ------------------------------------------------------------------------ */

static void
posted_end(struct admin_job *job, int result, const struct thin_error *err)
{
    struct admin *admin = job->pool->admin;

    TAILQ_REMOVE(&admin->posted, job, link);
    admin->nr_posted--;
    job_answer(job, result, err);
    admin_check_stopped(admin);
}

static void
job_durable(struct commit_wait *wait, int result)
{
    struct admin_job *job = container_of(wait, struct admin_job, wait);

    if (result < 0)
        thin_fail_code(&job->err, result, "%s", job->kind->name);
    posted_end(job, result, result < 0 ? &job->err : NULL);
}

void
admin_job_commit(struct admin_job *job)
{
    if (job->doomed) {
        thin_fail_code(&job->err, -THIN_E_ROLLED_BACK, "%s", job->kind->name);
        posted_end(job, -THIN_E_ROLLED_BACK, &job->err);
        return;
    }
    job->wait.done = job_durable;
    job->wait.txn = commit_last_txn(job->pool);
    job->wait.flush_data = true;
    commit_join(job->pool, &job->wait);
}

static void
job_post(struct admin_job *job)
{
    struct admin *admin = job->pool->admin;

    THIN_ASSERT(admin->running == job);
    admin->running = NULL;
    TAILQ_INSERT_TAIL(&admin->posted, job, link);
    admin->nr_posted++;
    loop_defer(job->pool->loop, &admin->pump_task);
    if (!job->kind->after || !job->kind->after(job))
        admin_job_commit(job);
}

/* ---- the operation -------------------------------------------------------------------------------- */

static int
job_run(struct metaop *op, struct thin_error *err)
{
    struct admin_job *job = container_of(op, struct admin_job, op);

    job->again = false;
    if (job->kind->apply) {
        int r = job->kind->apply(job, err);

        if (r < 0)
            return r;
    }
    if (job->change.nr > 0)
        catalogue_change_set_trailer(job->pool->catalogue, &job->change);
    return 0;
}

static void
job_ran(struct metaop *op, int result, const struct thin_error *err)
{
    struct admin_job *job = container_of(op, struct admin_job, op);

    if (job_is_doomed(job))
        return;
    /* What it would do beside the record can be done later, in smaller steps. */
    if (result == -THIN_E_NO_METADATA_SPACE && job->kind->has_first_step &&
        !job->no_first_step) {
        job->no_first_step = true;
        job->again = true;
    }
    if (result < 0 && job->again && ++job->tries < ADMIN_TRIES_MAX) {
        catalogue_change_fini(&job->change);
        job_begin(job);
        return;
    }
    if (job_awaits_growth(job, result))
        return;
    if (result < 0) {
        pool_write_failed(job->pool, result, err);
        job_fail(job, result, err);
        return;
    }
    if (job->change.nr > 0)
        catalogue_change_apply(job->pool->catalogue, &job->change);
    if (job->kind->applied && job->kind->applied(job))
        metaop_start(job->pool, &job->op, false);
    else
        job_post(job);
}

static void
job_operate(struct admin_job *job)
{
    memset(&job->op, 0, sizeof(job->op));
    job->op.run = job_run;
    job->op.done = job_ran;
    job->op.purse = job->kind->purse;
    job->op.name = job->kind->name;
    metaop_start(job->pool, &job->op, false);
}

/* ---- pages and their room --------------------------------------------------------------------------- */

static void
job_written(struct catalogue_io *io, int result)
{
    struct admin_job *job = container_of(io, struct admin_job, io);

    if (job_is_doomed(job))
        return;
    if (result < 0) {
        thin_fail_code(&job->err, result, "write the catalogue");
        job_fail(job, result, &job->err);
        return;
    }
    job_operate(job);
}

static void
job_write(struct admin_job *job)
{
    struct catalogue *cat = job->pool->catalogue;

    if (seeded_bug(SEEDED_CATALOGUE_LOST)) {
        job_operate(job);
        return;
    }
    memset(&job->io, 0, sizeof(job->io));
    job->io.done = job_written;
    job->io.pool = job->pool;
    job->io.area = &cat->areas[cat->current];
    job->io.write = true;
    job->io.page =
        job->change.root.first + job->change.root.nr_pages - job->change.nr_pages;
    job->io.nr_pages = job->change.nr_pages;
    job->io.bytes = job->change.pages;
    catalogue_io_start(&job->io);
}

/* Lets the job wait until the checkpoint has ended (and begins one if there is none). */
static void
job_wait_checkpoint(struct admin_job *job, bool until_settled)
{
    struct admin *admin = job->pool->admin;
    enum checkpoint_state state = job->pool->catalogue->checkpoint->state;

    catalogue_change_fini(&job->change);
    admin->waiting = until_settled || state >= CHECKPOINT_SETTLING ? WAITS_FOR_SETTLED
                                                                   : WAITS_FOR_CHECKPOINT;
    if (state == CHECKPOINT_IDLE)
        checkpoint_started(admin);
    else if (state == CHECKPOINT_WRITTEN)
        loop_defer(job->pool->loop, &admin->pump_task);
}

static void
job_mapped(struct catalogue_mapping *m, int result, const struct thin_error *err)
{
    struct admin_job *job = container_of(m, struct admin_job, mapping);

    if (job_is_doomed(job))
        return;
    if (result == 0) {
        job_begin(job);
    } else if (m->area == m->cat->current && !job->compacted) {
        /* No room behind the log: then without what is dead in it. */
        job->compacted = true;
        job_wait_checkpoint(job, false);
    } else {
        job_fail(job, result, err);
    }
}

static void
job_find_room(struct admin_job *job)
{
    struct catalogue *cat = job->pool->catalogue;
    unsigned area = 0;
    uint64_t nr_blocks = 0;

    switch (
        catalogue_judge_room(cat, &job->change, job->kind->growth, &area, &nr_blocks)) {
    case ROOM_ENOUGH:
        job_write(job);
        return;
    case ROOM_CHECKPOINT:
        job_wait_checkpoint(job, false);
        return;
    case ROOM_MAP:
        if (cat->checkpoint->state >= CHECKPOINT_SETTLING) {
            job_wait_checkpoint(job, true);
            return;
        }
        catalogue_change_fini(&job->change);
        job->mapping.done = job_mapped;
        job->mapping.area = area;
        job->mapping.nr_blocks = nr_blocks;
        catalogue_map(cat, &job->mapping);
        return;
    }
}

/* Memory follows first: nobody must find what is about to go. */
static void
job_begin_bare(struct admin_job *job)
{
    struct catalogue *cat = job->pool->catalogue;
    int r = catalogue_records_reserve(&cat->records, job->change.nr);

    if (r < 0) {
        thin_fail_code(&job->err, r, "%s", job->kind->name);
        job_fail(job, r, &job->err);
        return;
    }
    catalogue_change_apply_records(cat, &job->change);
    catalogue_change_fini(&job->change);
    job_operate(job);
}

static void
job_begin(struct admin_job *job)
{
    struct catalogue *cat = job->pool->catalogue;
    struct thin_error err;
    int r;

    thin_error_init(&err);
    r = pool_may_change(job->pool, &err);
    if (r == 0 && cat->damage[0] && !job->kind->degraded)
        r = thin_fail(&err, -THIN_E_CATALOGUE, "the catalogue is damaged: %.300s",
                      cat->damage);
    if (r < 0) {
        job_fail(job, r, &err);
        return;
    }
    if (job->kind->no_records) {
        job_operate(job);
        return;
    }
    /* Judged first, so that a wrong wish costs nothing. */
    r = job->kind->plan(job, &err);
    if (r < 0) {
        job_fail(job, r, &err);
        return;
    }
    if (job->change.nr == 0) {
        job_post(job);
        return;
    }
    if (job->tries++ == ADMIN_TRIES_MAX) {
        thin_fail_code(&err, -THIN_E_NO_DATA_SPACE, "no room for the catalogue");
        job_fail(job, -THIN_E_NO_DATA_SPACE, &err);
        return;
    }
    if (job->bare && cat->unrecorded) {
        job_begin_bare(job);
        return;
    }
    job->bare = false;
    if (!cat->present || cat->unrecorded) {
        job_wait_checkpoint(job, false);
        return;
    }
    r = catalogue_change_encode(cat, &job->change, &err);
    if (r < 0)
        job_fail(job, r, &err);
    else
        job_find_room(job);
}

/* ---- checkpoints ---------------------------------------------------------------------------------------- */

/* Goes on with the job that waited, or fails it. */
static void
checkpoint_told(struct admin *admin, int result, const struct thin_error *err)
{
    struct admin_job *job = admin->running;

    admin->waiting = WAITS_FOR_NOTHING;
    if (!job || job_is_doomed(job))
        return;
    if (job->kind->bare && !job->bare && admin->pool->catalogue->unrecorded &&
        (result == -THIN_E_NO_DATA_SPACE || result == -THIN_E_NO_METADATA_SPACE ||
         result == -THIN_E_LIMIT)) {
        job->bare = true;
        result = 0;
    }
    if (result < 0)
        job_fail(job, result, err);
    else
        job_begin(job);
}

static void
checkpoint_failed(struct catalogue *cat, int result, const struct thin_error *err)
{
    /* Cancelled: whoever did that has said why. */
    if (result != -THIN_E_ROLLED_BACK)
        log_warning("the catalogue could not be written anew pool=%s: %s",
                    cat->pool->name, thin_error_text(err, result));
}

static void
checkpoint_written(struct catalogue *cat, int result, const struct thin_error *err)
{
    struct admin *admin = cat->pool->admin;

    if (result < 0) {
        log_warning("the catalogue could not be written anew pool=%s: %s",
                    cat->pool->name, thin_error_text(err, result));
        if (admin->waiting == WAITS_FOR_CHECKPOINT || admin->waiting == WAITS_FOR_SETTLED)
            checkpoint_told(admin, result, err);
        admin_check_stopped(admin);
        return;
    }
    admin->checkpoint_written = true;
    loop_defer(cat->pool->loop, &admin->pump_task);
}

static void
checkpoint_finished(struct catalogue *cat, int result, const struct thin_error *err)
{
    struct admin *admin = cat->pool->admin;

    admin->ending = false;
    if (result < 0)
        checkpoint_failed(cat, result, err);
    if (admin->waiting == WAITS_FOR_CHECKPOINT ||
        (admin->waiting == WAITS_FOR_SETTLED && result < 0))
        checkpoint_told(admin, result, err);
    else
        loop_defer(cat->pool->loop, &admin->pump_task);
    admin_check_stopped(admin);
}

static void
checkpoint_settled(struct catalogue *cat)
{
    struct admin *admin = cat->pool->admin;

    if (admin->waiting == WAITS_FOR_SETTLED)
        checkpoint_told(admin, 0, NULL);
    admin_check_stopped(admin);
}

static void
checkpoint_started(struct admin *admin)
{
    struct catalogue *cat = admin->pool->catalogue;

    cat->checkpoint->written = checkpoint_written;
    cat->checkpoint->finished = checkpoint_finished;
    cat->checkpoint->settled = checkpoint_settled;
    catalogue_checkpoint_start(cat);
}

/* ---- the queue ------------------------------------------------------------------------------------------- */

/* The next in order; while some wait for growth, only what makes it: changes stay in the
   order in which they were asked for. */
static struct admin_job *
next_job(struct admin *admin)
{
    struct admin_job *job;

    TAILQ_FOREACH(job, &admin->queue, link)
        if (TAILQ_EMPTY(&admin->growing) || job->kind->makes_room)
            break;
    return job;
}

static void
pump_run(struct thin_task *task)
{
    pump(container_of(task, struct admin, pump_task));
}

static void
pump(struct admin *admin)
{
    struct catalogue *cat = admin->pool->catalogue;
    struct admin_job *job;

    if (admin->ending)
        return;
    if (admin->checkpoint_written &&
        (!admin->running || admin->waiting != WAITS_FOR_NOTHING)) {
        admin->checkpoint_written = false;
        if (cat->checkpoint->state == CHECKPOINT_WRITTEN) {
            admin->ending = true;
            catalogue_checkpoint_finish(cat);
            return;
        }
    }
    if (admin->running)
        return;
    job = next_job(admin);
    if (!job) {
        if (!admin->stopping && catalogue_wants_checkpoint(cat) &&
            pool_may_change(admin->pool, NULL) == 0)
            checkpoint_started(admin);
        admin_check_stopped(admin);
        return;
    }
    if (!admin->stopping && catalogue_wants_checkpoint(cat) &&
        pool_may_change(admin->pool, NULL) == 0)
        checkpoint_started(admin);
    TAILQ_REMOVE(&admin->queue, job, link);
    admin->nr_queued--;
    admin->running = job;
    job_begin(job);
}

/* ---- life ---------------------------------------------------------------------------------------------------- */

int
admin_open(struct pool *pool)
{
    struct admin *admin = calloc(1, sizeof(*admin));

    if (!admin)
        return -ENOMEM;
    admin->pool = pool;
    TAILQ_INIT(&admin->queue);
    TAILQ_INIT(&admin->growing);
    TAILQ_INIT(&admin->posted);
    admin->pump_task.run = pump_run;
    admin->refuse_task.run = refuse_run;
    pool->admin = admin;
    admin_background_kick(admin);
    return 0;
}

static void
stopped_run(struct thin_task *task)
{
    struct admin *admin = container_of(task, struct admin, stopped_task);
    void (*stopped)(struct pool * pool) = admin->stopped;

    admin->stopped = NULL;
    if (stopped)
        stopped(admin->pool);
}

void
admin_check_stopped(struct admin *admin)
{
    if (!admin->stopped || admin->running || !TAILQ_EMPTY(&admin->queue) ||
        admin->nr_posted > 0 || admin->nr_reads > 0 || admin->background.running ||
        admin->nr_refusals > 0 || admin->ending ||
        admin->pool->catalogue->checkpoint->state != CHECKPOINT_IDLE)
        return;
    admin->stopped_task.run = stopped_run;
    loop_defer(admin->pool->loop, &admin->stopped_task);
}

void
admin_stop(struct pool *pool, void (*done)(struct pool *pool))
{
    struct admin *admin = pool->admin;
    struct admin_job *job;
    struct thin_error err;

    thin_error_init(&err);
    thin_fail(&err, -THIN_E_SHUTDOWN, "the pool is being closed");
    admin->stopping = true;
    admin->stopped = done;
    TAILQ_CONCAT(&admin->queue, &admin->growing, link);
    while ((job = TAILQ_FIRST(&admin->queue))) {
        TAILQ_REMOVE(&admin->queue, job, link);
        admin->nr_queued--;
        admin_refuse(pool, job, job->done, -THIN_E_SHUTDOWN, &err);
    }
    /* One that a job waits for comes to its end; any other is not worth it. */
    if (!admin->running)
        catalogue_checkpoint_cancel(pool->catalogue);
    loop_defer(pool->loop, &admin->pump_task);
}

void
admin_rolled_back(struct pool *pool)
{
    struct admin *admin = pool->admin;
    struct admin_job *job;

    if (!admin)
        return;
    if (admin->running)
        admin->running->doomed = true;
    TAILQ_FOREACH(job, &admin->posted, link)
        job->doomed = true;
    catalogue_checkpoint_cancel(pool->catalogue);
}

void
admin_close(struct pool *pool)
{
    struct admin *admin = pool->admin;

    if (!admin)
        return;
    /* Whoever called after the admin had stopped still hears of it. */
    loop_defer_cancel(pool->loop, &admin->refuse_task);
    refuse_run(&admin->refuse_task);
    loop_defer_cancel(pool->loop, &admin->pump_task);
    loop_defer_cancel(pool->loop, &admin->stopped_task);
    exclusive_destroy(admin->exclusive);
    free(admin);
    pool->admin = NULL;
}
