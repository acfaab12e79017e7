#include "server/pools.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "core/base/host.h"
#include "server/backing.h"
#include "server/pools_private.h"
#include "server/pools_store.h"
#include "server/pools_watch.h"
#include "server/stack.h"

#define EXPORTS_PATIENCE_NS (2 * NS_PER_SEC) /* at start, before others are served */

const char *
pools_state_name(enum pools_state state)
{
    static const char *const names[] = {"closed", "opening", "open", "closing", "failed"};

    return names[state];
}

/* ---- the list ------------------------------------------------------------------------- */

struct server *
pools_server(struct pools *pools)
{
    return pools->server;
}

struct server_pool *
pools_find(struct pools *pools, const char *name)
{
    struct server_pool *sp;

    TAILQ_FOREACH(sp, &pools->list, link)
        if (strcmp(sp->name, name) == 0)
            return sp;
    return NULL;
}

struct server_pool *
pools_next(struct pools *pools, const struct server_pool *after)
{
    return after ? TAILQ_NEXT(after, link) : TAILQ_FIRST(&pools->list);
}

static int
no_such_pool(const char *name, struct thin_error *err)
{
    return thin_fail(err, -THIN_E_NOT_FOUND, "no such pool: %s", name);
}

struct pool *
pools_find_open(struct pools *pools, const char *name, int *ret_code,
                struct thin_error *err)
{
    struct server_pool *sp = pools_find(pools, name);

    if (!sp) {
        *ret_code = no_such_pool(name, err);
        return NULL;
    }
    if (sp->state != POOLS_OPEN) {
        *ret_code = thin_fail(err, -THIN_E_BUSY, "pool %s is %s%s%s", name,
                              pools_state_name(sp->state), sp->why.code ? ": " : "",
                              sp->why.code ? sp->why.text : "");
        return NULL;
    }
    return sp->pool;
}

struct server_pool *
pools_add(struct pools *pools, const char *name)
{
    struct server_pool *sp = calloc(1, sizeof(*sp)), *after;

    if (!sp)
        return NULL;
    snprintf(sp->name, sizeof(sp->name), "%s", name);
    sp->pools = pools;
    LIST_INIT(&sp->legs);
    sp->config = pools->server->config.pool;
    sp->direct = pools->server->config.io_direct;
    pools->nr++;
    TAILQ_FOREACH(after, &pools->list, link)
        if (strcmp(after->name, name) > 0) {
            TAILQ_INSERT_BEFORE(after, sp, link);
            return sp;
        }
    TAILQ_INSERT_TAIL(&pools->list, sp, link);
    return sp;
}

void
pools_drop(struct server_pool *sp)
{
    TAILQ_REMOVE(&sp->pools->list, sp, link);
    sp->pools->nr--;
    free(sp->volumes);
    free(sp);
}

/* ---- jobs ------------------------------------------------------------------------------ */

struct pool_job *
pool_job_create(struct pools *pools, struct server_pool *sp, int kind,
                struct pools_done done)
{
    struct pool_job *j = calloc(1, sizeof(*j));

    if (!j)
        return NULL;
    j->pools = pools;
    j->sp = sp;
    j->kind = kind;
    j->done = done;
    thin_error_init(&j->err);
    return j;
}

static void
finish_task(struct thin_task *task)
{
    struct pool_job *j = container_of(task, struct pool_job, task);

    if (j->done.fn)
        j->done.fn(j->done.arg, j->result, &j->err);
    free(j->volumes);
    free(j);
}

/* Answers on a turn of its own. */
void
pool_job_finish(struct pool_job *j, int result)
{
    j->result = result;
    j->task.run = finish_task;
    loop_defer(j->pools->server->thin_loop, &j->task);
    loop_defer(j->pools->server->thin_loop, &j->pools->check_task);
}

/* For mistakes found before there is a pool to speak of. */
void
pool_job_refuse(struct pools *pools, struct pools_done done, int code,
                const struct thin_error *err)
{
    struct pool_job *j = pool_job_create(pools, NULL, JOB_STORE, done);

    if (!j) {
        if (done.fn)
            done.fn(done.arg, -ENOMEM, NULL);
        return;
    }
    if (err)
        j->err = *err;
    pool_job_finish(j, code);
}

void
pool_job_submit(struct pool_job *j, void (*work)(struct blocking_job *),
                void (*done)(struct blocking_job *))
{
    j->job.work = work;
    j->job.done = done;
    j->job.loop = j->pools->server->loop;
    j->copy = *j->sp;
    blocking_submit(j->pools->server->blocking, &j->job);
}

const char *
pool_job_state_dir(const struct pool_job *j)
{
    return j->pools->server->config.state_dir;
}

void
pool_job_store(struct blocking_job *job)
{
    struct pool_job *j = container_of(job, struct pool_job, job);

    j->result = pools_store_write(pool_job_state_dir(j), &j->copy, &j->err);
}

/* A job on a known pool that must be in one of two states. NULL: refused already. */
struct pool_job *
pool_job_begin(struct pools *pools, const char *name, enum pools_state a,
               enum pools_state b, int kind, struct pools_done done)
{
    struct server_pool *sp = pools_find(pools, name);
    struct thin_error err;
    struct pool_job *j;

    if (!sp) {
        pool_job_refuse(pools, done, no_such_pool(name, &err), &err);
        return NULL;
    }
    if (sp->state != a && sp->state != b) {
        pool_job_refuse(pools, done,
                        thin_fail(&err, -THIN_E_BUSY, "pool %s is %s", name,
                                  pools_state_name(sp->state)),
                        &err);
        return NULL;
    }
    j = pool_job_create(pools, sp, kind, done);
    if (!j)
        pool_job_refuse(pools, done, -ENOMEM, NULL);
    return j;
}

/* ---- settings ------------------------------------------------------------------------- */

static void
stored_set(struct blocking_job *job)
{
    struct pool_job *j = container_of(job, struct pool_job, job);

    pool_job_finish(j, j->result);
}

void
pools_set(struct pools *pools, const char *name, const struct pool_config *config,
          struct pools_done done)
{
    struct pool_job *j =
        pool_job_begin(pools, name, POOLS_OPEN, POOLS_CLOSED, JOB_STORE, done);

    if (!j)
        return;
    j->sp->config = *config;
    if (j->sp->pool) {
        struct pool_info info;

        pool_get_info(j->sp->pool, &info);
        config_resolve_auto_extend(&j->sp->config.extend_data, info.data_size);
        pool_set_config(j->sp->pool, &j->sp->config);
    }
    pool_job_submit(j, pool_job_store, stored_set);
}

/* ---- start and stop ------------------------------------------------------------------------ */

static bool
is_busy(const struct server_pool *sp)
{
    const struct pools *pools = sp->pools;

    if (sp->state == POOLS_OPENING && pools->settled && pools->impatient &&
        pools_stands_on_exports(sp))
        return false;
    return sp->state == POOLS_OPENING || sp->state == POOLS_CLOSING;
}

static bool
is_stood_on(const struct server_pool *lower)
{
    const struct server_pool *sp;

    TAILQ_FOREACH(sp, &lower->pools->list, link)
        if ((sp->state == POOLS_OPEN || is_busy(sp)) && stack_stands_on(sp, lower))
            return true;
    return false;
}

bool
pools_stands_on_exports(const struct server_pool *sp)
{
    return backing_is_uri(sp->data_path) || backing_is_uri(sp->metadata_path);
}

/* Pools whose exports answer late do not keep the others from being served. */
static void
patience_over(struct thin_timer *timer)
{
    struct pools *pools = container_of(timer, struct pools, patience);

    pools->impatient = true;
    loop_defer(pools->server->thin_loop, &pools->check_task);
}

static void
check(struct thin_task *task)
{
    struct pools *pools = container_of(task, struct pools, check_task);
    struct server_pool *sp;
    void (*fn)(void *) = NULL;
    void *arg = NULL;

    TAILQ_FOREACH(sp, &pools->list, link)
        if (is_busy(sp))
            return;
    if (pools->settled) {
        fn = pools->settled;
        arg = pools->settled_arg;
        pools->settled = NULL;
        loop_timer_cancel(pools->server->thin_loop, &pools->patience);
        pools_watch_start(pools->watch);
    } else if (pools->stopped) {
        struct server_pool *open = NULL;

        TAILQ_FOREACH(sp, &pools->list, link)
            if (sp->state == POOLS_OPEN)
                open = sp;
        if (open) { /* it was opening when the stop began */
            pools_stop(pools, pools->stopped, pools->stopped_arg);
            return;
        }
        fn = pools->stopped;
        arg = pools->stopped_arg;
    }
    if (fn)
        fn(arg);
}

void
pools_start(struct pools *pools, void (*settled)(void *arg), void *arg)
{
    struct server_pool *sp;

    pools->settled = settled;
    pools->settled_arg = arg;
    pools->patience.fire = patience_over;
    if (loop_timer_set(pools->server->thin_loop, &pools->patience,
                       loop_now_ns(pools->server->thin_loop) + EXPORTS_PATIENCE_NS) < 0)
        pools->impatient = true;
    TAILQ_FOREACH(sp, &pools->list, link) {
        struct pool_job *j;

        if (!sp->want_open)
            continue;
        j = pool_job_create(pools, sp, JOB_OPEN, (struct pools_done){0});
        if (j)
            pool_job_open(j);
        else
            sp->state = POOLS_FAILED;
    }
    loop_defer(pools->server->thin_loop, &pools->check_task);
}

void
pools_drain(struct pools *pools)
{
    struct server_pool *sp;

    TAILQ_FOREACH(sp, &pools->list, link)
        if (sp->pool)
            pool_drain(sp->pool);
}

void
pools_stop(struct pools *pools, void (*stopped)(void *arg), void *arg)
{
    struct server_pool *sp;

    pools->settled = NULL;
    pools->stopped = stopped;
    pools->stopped_arg = arg;
    TAILQ_FOREACH(sp, &pools->list, link) {
        struct pool_job *j;

        /* Those that others stand on have their turn when these are closed. */
        if (sp->state != POOLS_OPEN || is_stood_on(sp))
            continue;
        j = pool_job_create(pools, sp, JOB_STORE, (struct pools_done){0});
        if (j)
            pool_job_close(j, true);
    }
    loop_defer(pools->server->thin_loop, &pools->check_task);
}

static int
known_pool(void *arg, const struct server_pool *found)
{
    struct pools *pools = arg;
    struct server_pool *sp = pools_add(pools, found->name);

    if (!sp)
        return -ENOMEM;
    memcpy(sp->data_path, found->data_path, sizeof(sp->data_path));
    memcpy(sp->metadata_path, found->metadata_path, sizeof(sp->metadata_path));
    memcpy(sp->stack_id, found->stack_id, sizeof(sp->stack_id));
    sp->data_is_ours = found->data_is_ours;
    sp->metadata_is_ours = found->metadata_is_ours;
    sp->want_open = found->want_open;
    sp->direct = found->direct;
    sp->config = found->config;
    sp->volumes = found->volumes; /* taken */
    sp->nr_volumes = found->nr_volumes;
    return 0;
}

int
pools_create_registry(struct server *server, struct pools **ret, struct thin_error *err)
{
    struct pools *pools = calloc(1, sizeof(*pools));
    int r;

    if (!pools)
        return thin_fail_code(err, -ENOMEM, "read the known pools");
    pools->server = server;
    TAILQ_INIT(&pools->list);
    pools->check_task.run = check;
    host_machine_id(pools->host_id);
    host_boot_id(pools->boot_id);
    r = pools_watch_create(pools, &pools->watch);
    if (r < 0)
        thin_fail_code(err, r, "read the known pools");
    else
        r = pools_store_read_all(server->config.state_dir, &server->config.pool,
                                 known_pool, pools, err);
    if (r < 0) {
        pools_destroy_registry(pools);
        return r;
    }
    *ret = pools;
    return 0;
}

void
pools_destroy_registry(struct pools *pools)
{
    struct server_pool *sp;

    if (!pools)
        return;
    loop_defer_cancel(pools->server->thin_loop, &pools->check_task);
    loop_timer_cancel(pools->server->thin_loop, &pools->patience);
    pools_watch_destroy(pools->watch);
    while ((sp = TAILQ_FIRST(&pools->list))) {
        THIN_ASSERT(!sp->pool);
        pools_drop(sp);
    }
    free(pools);
}
