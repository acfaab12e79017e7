/* How a pool ends: in good order, by force, or because it could not be opened. */
#include <stdlib.h>

#include "core/pool/limits.h"
#include "core/pool/origin.h"
#include "core/pool/pieces.h"

/* ---- freeing ----------------------------------------------------------------------------------- */

static void
pool_free(struct pool *pool)
{
    free(pool->end);
    free(pool);
}

static void
pool_gone(struct pool *pool)
{
    struct pool_end end = *pool->end;

    pool_free(pool);
    if (end.opened)
        end.opened(end.opened_arg, NULL, end.result, &end.err);
    else
        end.done.fn(end.done.arg, end.result, &end.err);
}

static void
device_closed(void *arg)
{
    struct pool *pool = arg;

    pool->end->devices--;
    pool_origin_closed(pool);
}

void
pool_origin_closed(struct pool *pool)
{
    if (pool->end->dismantled) {
        if (pool->end->devices == 0 && origins_closing(pool) == 0)
            pool_gone(pool);
    } else {
        pool_check_idle(pool);
    }
}

static void
no_devices(struct thin_task *task)
{
    pool_gone(container_of(task, struct pool_end, task)->pool);
}

void
pool_dismantle(struct pool *pool)
{
    struct volume_core *core;
    struct volume *volume;

    while ((core = TAILQ_FIRST(&pool->cores))) {
        volume_core_hold(core);
        while ((volume = TAILQ_FIRST(&core->handles)))
            volume_detach(volume);
        volume_core_put(core);
    }
    admin_close(pool);
    catalogue_close(pool);
    commit_stop(pool);
    copier_destroy(pool);
    limits_destroy(pool);
    pieces_destroy(pool);
    space_destroy(pool);
    mapcache_destroy(pool);
    counts_destroy(pool);
    loop_defer_cancel(pool->loop, &pool->ops_task);
    io_destroy(pool);
    metadata_destroy(pool->md);
    pool->end->dismantled = true;
    pool->end->devices = (pool->data != NULL) + (pool->metadata_dev != NULL);
    if (pool->end->devices == 0 && origins_closing(pool) == 0) {
        pool->end->task.run = no_devices;
        loop_defer(pool->loop, &pool->end->task);
        return;
    }
    if (pool->data)
        device_close(pool->data, device_closed, pool);
    if (pool->metadata_dev)
        device_close(pool->metadata_dev, device_closed, pool);
}

/* ---- closing -------------------------------------------------------------------------------------- */

static void
close_committed(struct commit_wait *wait, int result)
{
    struct pool_end *end = container_of(wait, struct pool_end, wait);
    struct pool *pool = end->pool;

    if (result < 0) {
        end->result = thin_fail(&end->err, result, "the last commit failed: %s",
                                pool->why[0] ? pool->why : thin_strerror(result));
        log_error("the pool was closed without its last commit pool=%s error=%s",
                  pool->name, thin_error_name(result));
    }
    end->stage = CLOSE_LAST;
    pool_check_idle(pool);
}

static void
admin_stopped(struct pool *pool)
{
    pool->end->stage = CLOSE_DRAIN;
    pool_check_idle(pool);
}

static bool
pool_is_idle(struct pool *pool)
{
    struct committer *c = &pool->commit;

    return !pool->in->frags_used && !pool->data_in_flight && !pool->nr_ops && !c->md_io &&
           !c->fetching && !c->flushing && space_idle(pool) && origins_idle(pool) &&
           TAILQ_EMPTY(&pool->in->starved) && TAILQ_EMPTY(&c->ready) &&
           TAILQ_EMPTY(&c->failed);
}

static void
close_commit(struct pool *pool)
{
    struct pool_end *end = pool->end;

    end->wait.done = close_committed;
    /* Read-only, the needs-check flag may still be on its way to the disk. */
    end->wait.txn =
        pool->metadata_ready && (pool_may_change(pool, NULL) == 0 || pool->marking)
            ? commit_last_txn(pool)
            : 0;
    end->wait.flush_data = pool_may_change(pool, NULL) == 0;
    commit_join(pool, &end->wait);
}

bool
pool_closes_clean(const struct pool *pool)
{
    return pool->end->stage == CLOSE_COMMIT && pool_may_change(pool, NULL) == 0;
}

static void
close_marked(struct pool *pool, int result)
{
    (void)result; /* without the mark: it counts as a crash */
    close_commit(pool);
}

static void
close_continue(struct pool *pool)
{
    struct pool_end *end = pool->end;

    if (end->stage == CLOSE_DRAIN && pool_is_idle(pool)) {
        end->stage = CLOSE_COMMIT;
        if (pool->opened && (pool->commit.nr_commits || pool->commit.write_seq) &&
            pool->metadata_ready && pool_may_change(pool, NULL) == 0 &&
            catalogue_can_be_clean(pool))
            owner_write_mark(pool, "mark a clean end", close_marked);
        else
            close_commit(pool);
    } else if (end->stage == CLOSE_LAST && pool_is_idle(pool) &&
               pool->commit.state == COMMIT_IDLE) {
        end->stage = CLOSE_DEVICES;
        pool_dismantle(pool);
    }
}

void
pool_idle_run(struct thin_task *task)
{
    struct pool_internals *in = container_of(task, struct pool_internals, idle_task);
    struct pool *pool = in->pool;

    if (pool->rolling_back)
        rollback_continue(pool);
    else if (pool->closing)
        close_continue(pool);
}

void
pool_check_idle(struct pool *pool)
{
    if (pool->rolling_back || pool->closing)
        loop_defer(pool->loop, &pool->in->idle_task);
}

static void
close_refused(struct thin_task *task)
{
    struct pool_end *refusal = container_of(task, struct pool_end, task);

    refusal->done.fn(refusal->done.arg, refusal->result, &refusal->err);
    free(refusal);
}

static void
close_refuse(struct pool *pool, struct pool_done done, int code, const char *words)
{
    struct pool_end *refusal = calloc(1, sizeof(*refusal));

    if (!refusal) {
        done.fn(done.arg, code, NULL);
        return;
    }
    refusal->done = done;
    refusal->result = thin_fail(&refusal->err, code, "%s", words);
    refusal->task.run = close_refused;
    loop_defer(pool->loop, &refusal->task);
}

void
pool_close(struct pool *pool, bool force, struct pool_done done)
{
    struct pool_end *end = pool->end;
    struct volume_core *core;

    if (pool->closing) {
        close_refuse(pool, done, -THIN_E_BUSY, "the pool is being closed");
        return;
    }
    TAILQ_FOREACH(core, &pool->cores, link) {
        if (core->nr_handles == 0)
            continue;
        if (!force) {
            close_refuse(pool, done, -THIN_E_BUSY,
                         "volumes of the pool are open; detach them first, "
                         "or end them with thincli pool close --force");
            return;
        }
    }
    pool->closing = true;
    pins_drop_all(pool, -THIN_E_SHUTDOWN);
    end->done = done;
    end->result = 0;
    thin_error_init(&end->err);
    TAILQ_FOREACH(core, &pool->cores, link)
        volume_core_fence(core, -THIN_E_SHUTDOWN);
    space_fail_parked(pool, NULL, -THIN_E_SHUTDOWN);
    space_stop(pool);
    limits_stop(pool);
    volume_openings_go_on(pool);
    space_resume(pool); /* claims that wait learn it */
    loop_defer(pool->loop, &pool->in->starved_task);
    end->stage = CLOSE_ADMIN;
    admin_stop(pool, admin_stopped);
}
