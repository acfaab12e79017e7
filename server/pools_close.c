/* From an open pool to a closed, forgotten or destroyed one. */
#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "server/attach.h"
#include "server/backup.h"
#include "server/events.h"
#include "server/nbd_face.h"
#include "server/pools_private.h"
#include "server/pools_store.h"
#include "server/pools_watch.h"

static void
stored_closed(struct blocking_job *job)
{
    struct pool_job *j = container_of(job, struct pool_job, job);

    j->sp->state = POOLS_CLOSED;
    if (j->reopens) {
        j->sp->state = POOLS_FAILED;
        pools_watch_failed(j->pools->watch, j->sp);
    }
    pool_job_finish(j, j->result);
}

/* The pool itself is closed. Its last superblock is kept, then `next` comes. */
static void
end_backup(struct pool_job *j, void (*next)(void *arg))
{
    struct backup *backup = j->sp->backup;

    j->sp->pool = NULL;
    j->sp->backup = NULL;
    if (backup)
        backup_stop(backup, next, j);
    else
        next(j);
}

static void
closed_to_store(void *arg)
{
    struct pool_job *j = arg;

    pool_job_submit(j, pool_job_store, stored_closed);
}

static void
pool_closed(void *arg, int result, const struct thin_error *err)
{
    struct pool_job *j = arg;

    if (result == -THIN_E_BUSY) {
        j->err = *err;
        j->sp->state = POOLS_OPEN;
        pool_job_finish(j, result);
        return;
    }
    if (result < 0) {
        log_error("pool closed with an error: %s pool=%s", thin_error_text(err, result),
                  j->sp->name);
        if (err)
            j->sp->why = *err;
    }
    j->sp->data_export = j->sp->metadata_export = NULL;
    if (j->reopens) {
        attach_pool_gone(j->pools->server->attachments, j->sp->name);
        thin_fail(&j->sp->why, -THIN_E_LOST, "%s",
                  "the connection to one of its devices broke; it is opened again");
    } else if (!j->pools->stopped) {
        j->sp->want_open = false;
    }
    log_notice("pool is closed pool=%s", j->sp->name);
    events_tell(j->pools->server, "pool-closed", j->sp->name, "the pool is closed");
    end_backup(j, closed_to_store);
}

void
pool_job_close(struct pool_job *j, bool force)
{
    j->sp->state = POOLS_CLOSING;
    pool_close(j->sp->pool, force, (struct pool_done){pool_closed, j});
}

void
pools_close(struct pools *pools, const char *name, bool force, struct pools_done done)
{
    struct pool_job *j =
        pool_job_begin(pools, name, POOLS_OPEN, POOLS_FAILED, JOB_STORE, done);

    if (j && j->sp->state == POOLS_FAILED) {
        j->sp->want_open = false;
        j->sp->state = POOLS_CLOSING;
        pool_job_submit(j, pool_job_store, stored_closed);
    } else if (j) {
        pool_job_close(j, force);
    }
}

void
pools_reopen(struct pools *pools, struct server_pool *sp)
{
    struct pool_job *j = pool_job_create(pools, sp, JOB_STORE, (struct pools_done){0});

    if (!j)
        return; /* the next look finds it again */
    log_warning("pool is closed and opened again: the connection to one of its devices "
                "broke pool=%s",
                sp->name);
    j->reopens = true;
    nbd_face_drop_askers(sp->name);
    pool_job_close(j, true);
}

static void
work_forget(struct blocking_job *job)
{
    struct pool_job *j = container_of(job, struct pool_job, job);

    j->result = pools_store_remove(pool_job_state_dir(j), j->copy.name, &j->err);
}

static void
forgotten(struct blocking_job *job)
{
    struct pool_job *j = container_of(job, struct pool_job, job);

    if (j->result == 0) {
        log_notice("pool is %s pool=%s",
                   j->kind == JOB_DESTROY ? "destroyed" : "no longer known", j->sp->name);
        pools_drop(j->sp);
    } else {
        j->sp->state = POOLS_CLOSED;
    }
    j->sp = NULL;
    pool_job_finish(j, j->result);
}

static void
wiped(struct pool_devices *d)
{
    struct pool_job *j = container_of(d, struct pool_job, devices);

    if (d->result == 0) {
        pool_job_submit(j, work_forget, forgotten);
        return;
    }
    j->err = d->err;
    j->sp->state = POOLS_CLOSED;
    j->sp = NULL;
    pool_job_finish(j, d->result);
}

static void
start_forget(struct pool_job *j)
{
    j->sp->state = POOLS_CLOSING;
    j->devices.sp = j->sp;
    if (j->kind == JOB_DESTROY)
        pool_devices_wipe(&j->devices, wiped);
    else
        pool_job_submit(j, work_forget, forgotten);
}

void
pools_forget(struct pools *pools, const char *name, struct pools_done done)
{
    struct pool_job *j =
        pool_job_begin(pools, name, POOLS_CLOSED, POOLS_FAILED, JOB_FORGET, done);

    if (j)
        start_forget(j);
}

static void
closed_to_forget(void *arg)
{
    start_forget(arg);
}

static void
closed_to_destroy(void *arg, int result, const struct thin_error *err)
{
    struct pool_job *j = arg;

    if (result == -THIN_E_BUSY) {
        pool_closed(j, result, err);
        return;
    }
    end_backup(j, closed_to_forget);
}

void
pools_destroy(struct pools *pools, const char *name, struct pools_done done)
{
    struct server_pool *sp = pools_find(pools, name);
    struct pool_job *j;

    if (sp && sp->state == POOLS_FAILED)
        sp->state = POOLS_CLOSED;
    j = pool_job_begin(pools, name, POOLS_OPEN, POOLS_CLOSED, JOB_DESTROY, done);
    if (!j)
        return;
    if (j->sp->state == POOLS_CLOSED) {
        start_forget(j);
        return;
    }
    j->sp->state = POOLS_CLOSING;
    pool_close(j->sp->pool, false, (struct pool_done){closed_to_destroy, j});
}
