#include "server/pools.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/host.h"
#include "core/base/random.h"
#include "core/ondisk/superblock.h"
#include "server/attach.h"
#include "server/backing.h"
#include "server/backup.h"
#include "server/events.h"
#include "server/nbd_face.h"
#include "server/origins.h"
#include "server/pool_devices.h"
#include "server/pools_store.h"
#include "server/pools_watch.h"
#include "server/stack.h"

#define EXPORTS_PATIENCE_NS (2 * NS_PER_SEC) /* at start, before others are served */

TAILQ_HEAD(server_pool_list, server_pool);

struct pools {
    struct server *server;
    struct server_pool_list list; /* in order of names */
    unsigned nr;
    uint8_t host_id[16], boot_id[16];

    void (*settled)(void *arg);
    void *settled_arg;
    unsigned opening; /* that `settled` waits for */
    void (*stopped)(void *arg);
    void *stopped_arg;
    struct thin_task check_task; /* settled or stopped may have come true */
    struct thin_timer patience;  /* of `settled` with exports that do not answer */
    bool impatient;
    struct pools_watch *watch;
};

/* One thing asked of a pool, from the call to its `done`. */
struct pool_job {
    struct blocking_job job;
    struct pools *pools;
    struct server_pool *sp;
    struct pools_done done;
    enum { JOB_NEW, JOB_IMPORT, JOB_OPEN, JOB_STORE, JOB_FORGET, JOB_DESTROY } kind;
    bool reopens; /* its close is to be followed by an open */
    uint32_t catalogue_id;
    struct pool_import_volume *volumes; /* the pool's, as the engine takes them */

    struct pool_devices devices;
    struct server_pool copy; /* what the helper writes down */
    int result;
    struct thin_error err;
    struct thin_task task;
};

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

static struct server_pool *
add_pool(struct pools *pools, const char *name)
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

static void
drop_pool(struct server_pool *sp)
{
    TAILQ_REMOVE(&sp->pools->list, sp, link);
    sp->pools->nr--;
    free(sp->volumes);
    free(sp);
}

/* ---- jobs ------------------------------------------------------------------------------ */

static struct pool_job *
job_create(struct pools *pools, struct server_pool *sp, int kind, struct pools_done done)
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
static void
job_finish(struct pool_job *j, int result)
{
    j->result = result;
    j->task.run = finish_task;
    loop_defer(j->pools->server->thin_loop, &j->task);
    loop_defer(j->pools->server->thin_loop, &j->pools->check_task);
}

/* For mistakes found before there is a pool to speak of. */
static void
refuse(struct pools *pools, struct pools_done done, int code,
       const struct thin_error *err)
{
    struct pool_job *j = job_create(pools, NULL, JOB_STORE, done);

    if (!j) {
        if (done.fn)
            done.fn(done.arg, -ENOMEM, NULL);
        return;
    }
    if (err)
        j->err = *err;
    job_finish(j, code);
}

static void
submit(struct pool_job *j, void (*work)(struct blocking_job *),
       void (*done)(struct blocking_job *))
{
    j->job.work = work;
    j->job.done = done;
    j->job.loop = j->pools->server->loop;
    j->copy = *j->sp;
    blocking_submit(j->pools->server->blocking, &j->job);
}

static const char *
state_dir(const struct pool_job *j)
{
    return j->pools->server->config.state_dir;
}

/* What the administrator said of the devices, as the engine takes it. The pool's list
   does not change any more. */
static int
tell_volumes(struct pool_job *j)
{
    uint32_t nr = j->sp->nr_volumes;

    if (nr == 0)
        return 0;
    j->volumes = calloc(nr, sizeof(*j->volumes));
    if (!j->volumes)
        return thin_fail_code(&j->err, -ENOMEM, "open pool %s", j->sp->name);
    for (uint32_t i = 0; i < nr; i++) {
        struct server_pool_volume *v = &j->sp->volumes[i];

        j->volumes[i] =
            (struct pool_import_volume){v->dev_id, v->name[0] ? v->name : NULL, v->size};
    }
    return 0;
}

/* ---- main loop: from devices to an open pool ----------------------------------------------- */

static void
pool_event(void *arg, struct pool *pool, const char *event, const char *words)
{
    struct server_pool *sp = arg;

    (void)pool;
    log_notice("pool %s: %s pool=%s", event, words, sp->name);
    events_pool(sp->pools->server, sp->name, event, words);
}

static void
pool_superblock(void *arg, const void *block)
{
    const struct server_pool *sp = arg;

    backup_superblock(sp->backup, block);
}

static void
work_store(struct blocking_job *job)
{
    struct pool_job *j = container_of(job, struct pool_job, job);

    j->result = pools_store_write(state_dir(j), &j->copy, &j->err);
}

/* The pool is open and written down. */
static void
stored_open(struct blocking_job *job)
{
    struct pool_job *j = container_of(job, struct pool_job, job);

    if (j->result < 0)
        log_error("pool is open, but it could not be written down: %s pool=%s",
                  j->err.text, j->sp->name);
    j->sp->state = POOLS_OPEN;
    pools_watch_look(j->pools->watch); /* others may stand on it */
    job_finish(j, j->result);
}

static void
undo_open_work(struct blocking_job *job)
{
    pool_devices_unmake(&container_of(job, struct pool_job, job)->devices);
}

static void
undo_open_done(struct blocking_job *job)
{
    struct pool_job *j = container_of(job, struct pool_job, job);
    struct server_pool *sp = j->sp;

    j->sp = NULL;
    drop_pool(sp);
    job_finish(j, j->result);
}

/* A pool that was known stays known as failed; a new one leaves no trace. */
static void
open_failed(struct pool_job *j, int result)
{
    struct server_pool *sp = j->sp;

    j->result = result;
    if (j->kind == JOB_NEW || j->kind == JOB_IMPORT) {
        submit(j, undo_open_work, undo_open_done);
        return;
    }
    if (strcmp(sp->why.text, thin_error_text(&j->err, result)) != 0) /* tried again */
        log_error("pool cannot be opened: %s pool=%s", thin_error_text(&j->err, result),
                  sp->name);
    sp->state = POOLS_FAILED;
    sp->data_export = sp->metadata_export = NULL;
    sp->why = j->err;
    pools_watch_failed(j->pools->watch, sp);
    job_finish(j, result);
}

static void
pool_opened(void *arg, struct pool *pool, int result, const struct thin_error *err)
{
    struct pool_job *j = arg;
    struct thin_error stack_err;
    struct pool_info info;

    if (result < 0) {
        if (err)
            j->err = *err;
        open_failed(j, result);
        return;
    }
    j->sp->pool = pool;
    pool_get_info(pool, &info);
    if (stack_set_uuid(j->sp, info.uuid, &stack_err) < 0)
        log_error("%s pool=%s", stack_err.text,
                  j->sp->name); /* it was looked for before */
    j->sp->want_open = true;
    j->sp->retry_ms = 0;
    if (j->kind == JOB_NEW) {
        j->sp->data_is_ours = j->devices.made_data;
        j->sp->metadata_is_ours = j->devices.made_metadata;
    }
    thin_error_init(&j->sp->why);
    j->sp->backup = backup_start(j->pools->server, j->sp, j->kind == JOB_NEW);
    log_notice("pool is open pool=%s data=%s metadata=%s", j->sp->name, j->sp->data_path,
               j->sp->metadata_path);
    events_tell(j->pools->server, "pool-open", j->sp->name, "the pool is open");
    submit(j, work_store, stored_open);
}

static void
devices_open(struct pool_devices *d)
{
    struct pool_job *j = container_of(d, struct pool_job, devices);
    struct pool_params params = {0};

    if (d->result < 0) {
        j->err = d->err;
        open_failed(j, d->result);
        return;
    }
    j->sp->data_export = backing_is_uri(j->sp->data_path) ? d->data : NULL;
    j->sp->metadata_export = backing_is_uri(j->sp->metadata_path) ? d->metadata : NULL;
    params.loop = j->pools->server->thin_loop;
    params.name = j->sp->name;
    params.data = take(d->data);
    params.metadata = take(d->metadata);
    params.origin_open = origins_open;
    params.origin_open_arg = j->sp;
    if (j->kind == JOB_IMPORT) /* the kernel that made it must know of each growth */
        j->sp->config.extend_data = (struct pool_auto_extend){0};
    config_resolve_auto_extend(&j->sp->config.extend_data, params.data->size);
    params.config = j->sp->config;
    params.wall_clock_s = (uint64_t)time(NULL);
    memcpy(params.owner_host, j->pools->host_id, sizeof(params.owner_host));
    memcpy(params.owner_boot, j->pools->boot_id, sizeof(params.owner_boot));
    params.takeover = d->takeover;
    params.format = j->kind == JOB_NEW;
    params.data_block_sectors = d->block_size / SECTOR_SIZE;
    params.import = j->kind == JOB_IMPORT;
    params.import_catalogue_id = j->catalogue_id;
    params.import_volumes = j->volumes;
    params.nr_import_volumes = j->volumes ? j->sp->nr_volumes : 0;
    params.event = pool_event;
    params.superblock = pool_superblock;
    params.event_arg = j->sp;
    if (random_secret(&params.seed, sizeof(params.seed)) < 0)
        params.seed = (uint64_t)time(NULL);
    pool_open(&params, pool_opened, j);
}

static void
start_open(struct pool_job *j)
{
    int r;

    j->sp->state = POOLS_OPENING;
    r = stack_make_id(j->sp->stack_id, &j->err);
    if (r == 0)
        r = tell_volumes(j);
    if (r < 0) {
        open_failed(j, r);
        return;
    }
    j->devices.sp = j->sp;
    j->devices.make = j->kind == JOB_NEW;
    pool_devices_open(&j->devices, devices_open);
}

/* ---- the calls -------------------------------------------------------------------------- */

/* Files are locked; that an export is used already only we can know. */
static int
check_unused(struct pools *pools, const char *uri, struct thin_error *err)
{
    struct server_pool *sp;

    if (!backing_is_uri(uri))
        return 0;
    TAILQ_FOREACH(sp, &pools->list, link)
        if (strcmp(sp->data_path, uri) == 0 || strcmp(sp->metadata_path, uri) == 0)
            return thin_fail(err, -THIN_E_BUSY, "%s is a device of pool %s", uri,
                             sp->name);
    return 0;
}

static struct pool_job *
begin_new(struct pools *pools, const char *name, const char *data, const char *metadata,
          int kind, struct pools_done done)
{
    struct thin_error err;
    struct pool_job *j;
    struct server_pool *sp;
    int r = name_check(name, strlen(name), &err);

    if (r == 0 && pools_find(pools, name))
        r = thin_fail(&err, -THIN_E_EXISTS, "pool %s exists already", name);
    if (r == 0 && pools->nr == POOLS_MAX)
        r = thin_fail(&err, -THIN_E_LIMIT, "no more than %u pools", POOLS_MAX);
    if (r == 0 && (strlen(data) >= POOLS_PATH_MAX || strlen(metadata) >= POOLS_PATH_MAX ||
                   strchr(data, '\n') || strchr(metadata, '\n')))
        r = thin_fail(&err, -THIN_E_INVALID, "path is too long or has a line break");
    if (r == 0)
        r = check_unused(pools, data, &err);
    if (r == 0)
        r = check_unused(pools, metadata, &err);
    if (r < 0) {
        refuse(pools, done, r, &err);
        return NULL;
    }
    sp = add_pool(pools, name);
    j = sp ? job_create(pools, sp, kind, done) : NULL;
    if (!j) {
        if (sp)
            drop_pool(sp);
        refuse(pools, done, -ENOMEM, NULL);
        return NULL;
    }
    snprintf(sp->data_path, sizeof(sp->data_path), "%s", data);
    snprintf(sp->metadata_path, sizeof(sp->metadata_path), "%s", metadata);
    return j;
}

void
pools_new(struct pools *pools, const struct pools_create_spec *spec,
          struct pools_done done)
{
    struct pool_job *j =
        begin_new(pools, spec->name, spec->data, spec->metadata, JOB_NEW, done);

    if (!j)
        return;
    j->sp->config = spec->config;
    j->devices.force = spec->force;
    j->devices.takeover = spec->takeover;
    j->devices.data_size = spec->data_size;
    j->devices.metadata_size = spec->metadata_size;
    j->devices.block_size = spec->block_size;
    start_open(j);
}

void
pools_import(struct pools *pools, const struct pools_import_spec *spec,
             struct pools_done done)
{
    struct pool_job *j =
        begin_new(pools, spec->name, spec->data, spec->metadata, JOB_IMPORT, done);
    uint32_t nr = spec->nr_volumes;

    if (!j)
        return;
    j->catalogue_id = spec->catalogue_id;
    j->devices.takeover = spec->takeover;
    if (nr) {
        j->sp->volumes = calloc(nr, sizeof(*j->sp->volumes));
        if (!j->sp->volumes) {
            open_failed(j, thin_fail_code(&j->err, -ENOMEM, "import"));
            return;
        }
        j->sp->nr_volumes = nr;
    }
    for (uint32_t i = 0; i < nr; i++) {
        struct server_pool_volume *v = &j->sp->volumes[i];

        v->dev_id = spec->volumes[i].dev_id;
        v->size = spec->volumes[i].size;
        if (spec->volumes[i].name)
            snprintf(v->name, sizeof(v->name), "%s", spec->volumes[i].name);
    }
    start_open(j);
}

/* A job on a known pool that must be in one of two states. NULL: refused already. */
static struct pool_job *
begin_on(struct pools *pools, const char *name, enum pools_state a, enum pools_state b,
         int kind, struct pools_done done)
{
    struct server_pool *sp = pools_find(pools, name);
    struct thin_error err;
    struct pool_job *j;

    if (!sp) {
        refuse(pools, done, no_such_pool(name, &err), &err);
        return NULL;
    }
    if (sp->state != a && sp->state != b) {
        refuse(pools, done,
               thin_fail(&err, -THIN_E_BUSY, "pool %s is %s", name,
                         pools_state_name(sp->state)),
               &err);
        return NULL;
    }
    j = job_create(pools, sp, kind, done);
    if (!j)
        refuse(pools, done, -ENOMEM, NULL);
    return j;
}

void
pools_open(struct pools *pools, const char *name, bool takeover, struct pools_done done)
{
    struct pool_job *j =
        begin_on(pools, name, POOLS_CLOSED, POOLS_FAILED, JOB_OPEN, done);

    if (!j)
        return;
    j->devices.takeover = takeover;
    start_open(j);
}

static void
stored_closed(struct blocking_job *job)
{
    struct pool_job *j = container_of(job, struct pool_job, job);

    j->sp->state = POOLS_CLOSED;
    if (j->reopens) {
        j->sp->state = POOLS_FAILED;
        pools_watch_failed(j->pools->watch, j->sp);
    }
    job_finish(j, j->result);
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

    submit(j, work_store, stored_closed);
}

static void
pool_closed(void *arg, int result, const struct thin_error *err)
{
    struct pool_job *j = arg;

    if (result == -THIN_E_BUSY) {
        j->err = *err;
        j->sp->state = POOLS_OPEN;
        job_finish(j, result);
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

static void
close_one(struct pool_job *j, bool force)
{
    j->sp->state = POOLS_CLOSING;
    pool_close(j->sp->pool, force, (struct pool_done){pool_closed, j});
}

void
pools_close(struct pools *pools, const char *name, bool force, struct pools_done done)
{
    struct pool_job *j = begin_on(pools, name, POOLS_OPEN, POOLS_FAILED, JOB_STORE, done);

    if (j && j->sp->state == POOLS_FAILED) {
        j->sp->want_open = false;
        j->sp->state = POOLS_CLOSING;
        submit(j, work_store, stored_closed);
    } else if (j) {
        close_one(j, force);
    }
}

void
pools_reopen(struct pools *pools, struct server_pool *sp)
{
    struct pool_job *j = job_create(pools, sp, JOB_STORE, (struct pools_done){0});

    if (!j)
        return; /* the next look finds it again */
    log_warning("pool is closed and opened again: the connection to one of its devices "
                "broke pool=%s",
                sp->name);
    j->reopens = true;
    nbd_face_drop_askers(sp->name);
    close_one(j, true);
}

static void
work_forget(struct blocking_job *job)
{
    struct pool_job *j = container_of(job, struct pool_job, job);

    j->result = pools_store_remove(state_dir(j), j->copy.name, &j->err);
}

static void
forgotten(struct blocking_job *job)
{
    struct pool_job *j = container_of(job, struct pool_job, job);

    if (j->result == 0) {
        log_notice("pool is %s pool=%s",
                   j->kind == JOB_DESTROY ? "destroyed" : "no longer known", j->sp->name);
        drop_pool(j->sp);
    } else {
        j->sp->state = POOLS_CLOSED;
    }
    j->sp = NULL;
    job_finish(j, j->result);
}

static void
wiped(struct pool_devices *d)
{
    struct pool_job *j = container_of(d, struct pool_job, devices);

    if (d->result == 0) {
        submit(j, work_forget, forgotten);
        return;
    }
    j->err = d->err;
    j->sp->state = POOLS_CLOSED;
    j->sp = NULL;
    job_finish(j, d->result);
}

static void
start_forget(struct pool_job *j)
{
    j->sp->state = POOLS_CLOSING;
    j->devices.sp = j->sp;
    if (j->kind == JOB_DESTROY)
        pool_devices_wipe(&j->devices, wiped);
    else
        submit(j, work_forget, forgotten);
}

void
pools_forget(struct pools *pools, const char *name, struct pools_done done)
{
    struct pool_job *j =
        begin_on(pools, name, POOLS_CLOSED, POOLS_FAILED, JOB_FORGET, done);

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
    j = begin_on(pools, name, POOLS_OPEN, POOLS_CLOSED, JOB_DESTROY, done);
    if (!j)
        return;
    if (j->sp->state == POOLS_CLOSED) {
        start_forget(j);
        return;
    }
    j->sp->state = POOLS_CLOSING;
    pool_close(j->sp->pool, false, (struct pool_done){closed_to_destroy, j});
}

static void
stored_set(struct blocking_job *job)
{
    struct pool_job *j = container_of(job, struct pool_job, job);

    job_finish(j, j->result);
}

void
pools_set(struct pools *pools, const char *name, const struct pool_config *config,
          struct pools_done done)
{
    struct pool_job *j = begin_on(pools, name, POOLS_OPEN, POOLS_CLOSED, JOB_STORE, done);

    if (!j)
        return;
    j->sp->config = *config;
    if (j->sp->pool) {
        struct pool_info info;

        pool_get_info(j->sp->pool, &info);
        config_resolve_auto_extend(&j->sp->config.extend_data, info.data_size);
        pool_set_config(j->sp->pool, &j->sp->config);
    }
    submit(j, work_store, stored_set);
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
        j = job_create(pools, sp, JOB_OPEN, (struct pools_done){0});
        if (j)
            start_open(j);
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
        j = job_create(pools, sp, JOB_STORE, (struct pools_done){0});
        if (j)
            close_one(j, true);
    }
    loop_defer(pools->server->thin_loop, &pools->check_task);
}

static int
known_pool(void *arg, const struct server_pool *found)
{
    struct pools *pools = arg;
    struct server_pool *sp = add_pool(pools, found->name);

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
        drop_pool(sp);
    }
    free(pools);
}
