/* From devices to an open pool: made, imported, opened again. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "server/backing.h"
#include "server/backup.h"
#include "server/events.h"
#include "server/origins.h"
#include "server/pools_private.h"
#include "server/pools_watch.h"
#include "server/stack.h"

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
    pool_job_finish(j, j->result);
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
    pools_drop(sp);
    pool_job_finish(j, j->result);
}

/* A pool that was known stays known as failed; a new one leaves no trace. */
static void
open_failed(struct pool_job *j, int result)
{
    struct server_pool *sp = j->sp;

    j->result = result;
    if (j->kind == JOB_NEW || j->kind == JOB_IMPORT) {
        pool_job_submit(j, undo_open_work, undo_open_done);
        return;
    }
    if (strcmp(sp->why.text, thin_error_text(&j->err, result)) != 0) /* tried again */
        log_error("pool cannot be opened: %s pool=%s", thin_error_text(&j->err, result),
                  sp->name);
    sp->state = POOLS_FAILED;
    sp->data_export = sp->metadata_export = NULL;
    sp->why = j->err;
    pools_watch_failed(j->pools->watch, sp);
    pool_job_finish(j, result);
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
    pool_job_submit(j, pool_job_store, stored_open);
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

void
pool_job_open(struct pool_job *j)
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
        pool_job_refuse(pools, done, r, &err);
        return NULL;
    }
    sp = pools_add(pools, name);
    j = sp ? pool_job_create(pools, sp, kind, done) : NULL;
    if (!j) {
        if (sp)
            pools_drop(sp);
        pool_job_refuse(pools, done, -ENOMEM, NULL);
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
    pool_job_open(j);
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
    pool_job_open(j);
}

void
pools_open(struct pools *pools, const char *name, bool takeover, struct pools_done done)
{
    struct pool_job *j =
        pool_job_begin(pools, name, POOLS_CLOSED, POOLS_FAILED, JOB_OPEN, done);

    if (!j)
        return;
    j->devices.takeover = takeover;
    pool_job_open(j);
}
