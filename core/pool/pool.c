/*
 * Life of a pool.
 *
 *   pool_open ─► format | load ─► geometry ─► (wipe) ─► catalogue ─► deletes resumed ─► opened
 *   pool_close ─► admin stops ─► requests end ─► commit ─► devices close ─► done
 */
#include <stdlib.h>

#include "core/pool/limits.h"
#include "core/pool/origin.h"
#include "core/pool/pieces.h"

#define INTERVAL_MS_DEFAULT    1000
#define NO_SPACE_MS_DEFAULT    60000
#define METADATA_CACHE_DEFAULT 16384u
#define METADATA_CACHE_MIN     256u
#define MAPPING_PAGES_DEFAULT  8192u
#define TIME_LEFT_WARN         65536u

static void open_finish(struct pool *pool, int result, const struct thin_error *err);

void
pool_config_default(struct pool_config *config)
{
    memset(config, 0, sizeof(*config));
    config->commit_interval_ms = INTERVAL_MS_DEFAULT;
    config->on_full = POOL_QUEUE;
    config->no_space_timeout_ms = NO_SPACE_MS_DEFAULT;
    config->zeroing = true;
    config->discards = POOL_DISCARD_PASSDOWN;
    config->extend_metadata = true;
    config->metadata_cache_blocks = METADATA_CACHE_DEFAULT;
    config->mapping_cache_pages = MAPPING_PAGES_DEFAULT;
    config->commit_max_dirty = METADATA_CACHE_DEFAULT / 4;
}

uint64_t
pool_wall_clock(const struct pool *pool)
{
    return pool->wall_clock_s + (loop_now_ns(pool->loop) - pool->opened_ns) / NS_PER_SEC;
}

/* ---- loading metadata, at open and after a roll-back --------------------------------------- */

static void load_try(struct pool *pool);

static void
load_end(struct pool *pool, int result, const struct thin_error *err)
{
    bm_fetch_fini(&pool->end->fetch);
    pool->end->loading = false;
    pool->end->loaded(pool, result, err);
}

static void
load_fetched(struct bm_fetch *fetch, int result)
{
    struct pool_end *end = container_of(fetch, struct pool_end, fetch);
    struct thin_error err;

    thin_error_init(&err);
    if (result < 0)
        load_end(end->pool, thin_fail_code(&err, result, "read the metadata device"),
                 &err);
    else
        load_try(end->pool);
}

static void
load_try(struct pool *pool)
{
    struct thin_error err;
    int r;

    thin_error_init(&err);
    bm_clear_missing(pool->bm);
    if (pool->end->format && !pool->rolling_back)
        r = metadata_format(pool->md, pool->params->data_block_sectors,
                            pool->data->size / ((uint64_t)pool->params->data_block_sectors
                                                << SECTOR_SHIFT),
                            &err);
    else
        r = metadata_load(pool->md, &err);
    if (r == -THIN_E_WOULD_BLOCK) {
        /* It goes on where it stopped: only what it misses now must stay. */
        bm_fetch_fini(&pool->end->fetch);
        bm_fetch_init(&pool->end->fetch, pool->bm, load_fetched);
        bm_fetch_start(&pool->end->fetch);
    } else {
        load_end(pool, r, &err);
    }
}

void
pool_load(struct pool *pool,
          void (*loaded)(struct pool *pool, int result, const struct thin_error *err))
{
    pool->end->loading = true;
    pool->end->loaded = loaded;
    bm_fetch_init(&pool->end->fetch, pool->bm, load_fetched);
    load_try(pool);
}

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

/* Everything but the devices goes at once; pool_gone follows when they are closed. */
static void
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

/* ---- opening ------------------------------------------------------------------------------------- */

/* Not from inside the call that failed: it may still use what goes here. */
static void
open_failed(struct thin_task *task)
{
    pool_dismantle(container_of(task, struct pool_end, task)->pool);
}

static void
open_finish(struct pool *pool, int result, const struct thin_error *err)
{
    struct pool_end *end = pool->end;
    void (*opened)(void *, struct pool *, int, const struct thin_error *) = end->opened;

    pool->params = NULL;
    if (result < 0) {
        end->result = result;
        if (err)
            end->err = *err;
        if (pool->metadata_ready || pool->rolling_back) {
            /* A commit, or catalogue I/O, may be on its way yet. */
            pool->closing = true;
            end->stage = CLOSE_LAST;
            space_stop(pool);
            limits_stop(pool);
            pool_check_idle(pool);
            return;
        }
        end->task.run = open_failed;
        loop_defer(pool->loop, &end->task);
        return;
    }
    pool->opened = true;
    end->opened = NULL;
    opened(end->opened_arg, pool, 0, err);
}

static void
format_committed(struct commit_wait *wait, int result)
{
    struct pool_end *end = container_of(wait, struct pool_end, wait);
    struct thin_error err;

    thin_error_init(&err);
    if (result < 0)
        thin_fail(&err, result, "%s",
                  end->pool->why[0] ? end->pool->why : thin_strerror(result));
    open_finish(end->pool, result, &err);
}

/* Owned or not: where the mark could not be written the pool is read-only by now, and
   says why. */
static void
open_owned(struct commit_wait *wait, int result)
{
    struct pool_end *end = container_of(wait, struct pool_end, wait);

    (void)result;
    open_finish(end->pool, 0, NULL);
}

static void
open_marked(struct pool *pool, int result)
{
    if (result < 0) {
        open_finish(pool, 0, NULL);
        return;
    }
    pool->end->wait.done = open_owned;
    pool->end->wait.txn = commit_last_txn(pool);
    pool->end->wait.flush_data = false;
    commit_join(pool, &pool->end->wait);
}

static void
open_catalogue(struct pool *pool, int result, const struct thin_error *err)
{
    struct thin_error own;

    thin_error_init(&own);
    if (result == 0) {
        result = admin_open(pool);
        if (result == 0)
            result = limits_load(pool);
        if (result < 0) {
            thin_fail(&own, result, "%s", thin_strerror(result));
            err = &own;
        }
    }
    if (result == 0 && !pool->end->format && catalogue_can_be_owned(pool) &&
        pool_may_change(pool, NULL) == 0) {
        owner_write_mark(pool, "mark the pool as ours", open_marked);
        return;
    }
    if (result < 0 || !pool->end->format) {
        open_finish(pool, result, err);
        return;
    }
    pool->end->wait.done = format_committed;
    pool->end->wait.txn = commit_last_txn(pool);
    pool->end->wait.flush_data = true;
    commit_join(pool, &pool->end->wait);
}

static int
open_geometry(struct pool *pool, struct thin_error *err)
{
    const struct superblock *sb = metadata_superblock(pool->md);
    struct metadata_space ms;
    uint64_t need;
    int r;

    pool->block_size = sb->data_block_size << SECTOR_SHIFT;
    if ((pool->block_size & (pool->block_size - 1)) == 0)
        pool->block_shift = (unsigned)__builtin_ctz(pool->block_size);
    metadata_data_space(pool->md, &ms);
    pool->nr_data_blocks = ms.nr_blocks;
    if (!checked_mul_u64(ms.nr_blocks, pool->block_size, &need) ||
        pool->data->size < need)
        return thin_fail(err, -THIN_E_RANGE,
                         "the data device has %llu bytes, the metadata records %llu "
                         "(%llu blocks of %u)",
                         (unsigned long long)pool->data->size, (unsigned long long)need,
                         (unsigned long long)ms.nr_blocks, pool->block_size);
    r = limits_create(pool);
    if (r == 0)
        r = pieces_create(pool);
    if (r == 0)
        r = copier_create(pool);
    if (r < 0)
        return thin_fail(err, r, "%s", thin_strerror(r));
    if (metadata_counts_lost(pool->md)) {
        pool->wants_check = true;
        pool_set_mode(pool, POOL_READ_ONLY, WHAT_TO_DO_REPAIR,
                      "the metadata space map is damaged: %s",
                      metadata_counts_lost(pool->md));
    } else if (sb->flags & SUPERBLOCK_NEEDS_CHECK) {
        pool_set_mode(pool, POOL_READ_ONLY, WHAT_TO_DO_CHECK,
                      "the metadata is marked as needing a check");
    } else if (pool->metadata_dev->read_only || pool->data->read_only) {
        pool_set_mode(pool, POOL_READ_ONLY, "open its devices for writing",
                      "a device is read-only");
    }
    return 0;
}

static void
open_begin(struct pool *pool, int result, const struct thin_error *err)
{
    if (result < 0) {
        open_finish(pool, result, err);
        return;
    }
    pool->metadata_ready = true;
    pool->settled = pool->end->format;
    commit_begin_epoch(pool);
    catalogue_open(pool, open_catalogue);
}

static void
open_geometry_run(struct thin_task *task)
{
    struct pool *pool = container_of(task, struct pool_end, task)->pool;
    struct thin_error err;
    int r;

    thin_error_init(&err);
    r = open_geometry(pool, &err);
    /* What the format would refuse was refused: only now does the old pool go. */
    if (r == 0 && pool->end->format)
        format_wipe(pool, open_begin);
    else
        open_begin(pool, r, &err);
}

static void
open_space_run(struct thin_task *task)
{
    struct pool *pool = container_of(task, struct pool_end, task)->pool;
    struct thin_error err;
    int r = space_create(pool);

    if (r < 0) {
        thin_error_init(&err);
        open_begin(pool, thin_fail(&err, r, "%s", thin_strerror(r)), &err);
        return;
    }
    task->run = open_geometry_run;
    loop_defer(pool->loop, task);
}

/* The tables are large: each is made in a turn of its own, others use the loop. */
static void
open_loaded(struct pool *pool, int result, const struct thin_error *err)
{
    if (result < 0) {
        open_begin(pool, result, err);
        return;
    }
    pool->end->task.run = open_space_run;
    loop_defer(pool->loop, &pool->end->task);
}

static int
open_objects(struct pool *pool, const struct pool_params *params, struct thin_error *err)
{
    struct metadata_params mp = {
        .dev = pool->metadata_dev,
        .cache_blocks = pool->config.metadata_cache_blocks,
        .cache_clean = params->cache_clean,
        .leaf_max = params->leaf_max,
        .internal_max = params->internal_max,
    };
    int r;

    if (!pool->data || !pool->metadata_dev)
        return thin_fail(err, -THIN_E_INVALID, "a device is missing");
    mp.read_only = pool->metadata_dev->read_only;
    r = metadata_create(&mp, &pool->md);
    if (r == 0) {
        pool->bm = metadata_bm(pool->md);
        r = mapcache_create(pool, pool->config.mapping_cache_pages);
    }
    if (r < 0)
        return thin_fail(err, r, "%s", thin_strerror(r));
    return 0;
}

static void
open_start(struct thin_task *task)
{
    struct pool_end *end = container_of(task, struct pool_end, task);
    struct pool *pool = end->pool;

    if (end->result < 0) {
        open_finish(pool, end->result, &end->err);
        return;
    }
    pool_load(pool, open_loaded);
}

static void idle_run(struct thin_task *task);

static void
config_sane(struct pool_config *config)
{
    if (config->metadata_cache_blocks < BM_FRAMES_MIN)
        config->metadata_cache_blocks = BM_FRAMES_MIN;
    if (config->commit_max_dirty == 0 ||
        config->commit_max_dirty > config->metadata_cache_blocks / 2)
        config->commit_max_dirty = config->metadata_cache_blocks / 4;
    if (config->commit_interval_ms == 0)
        config->commit_interval_ms = INTERVAL_MS_DEFAULT;
}

static void
close_unwatched(void *arg)
{
    (void)arg;
}

void
pool_open(const struct pool_params *params,
          void (*opened)(void *arg, struct pool *pool, int result,
                         const struct thin_error *err),
          void *arg)
{
    struct pool *pool = calloc(1, sizeof(*pool));
    struct pool_end *end = calloc(1, sizeof(*end));

    if (!pool || !end) {
        /* Nothing to wait with: the one answer that comes at once. */
        free(pool);
        free(end);
        if (params->data)
            device_close(params->data, close_unwatched, NULL);
        if (params->metadata)
            device_close(params->metadata, close_unwatched, NULL);
        opened(arg, NULL, -ENOMEM, NULL);
        return;
    }
    pool->end = end;
    end->pool = pool;
    end->opened = opened;
    end->opened_arg = arg;
    end->format = params->format;
    thin_error_init(&end->err);
    pool->loop = params->loop;
    snprintf(pool->name, sizeof(pool->name), "%s", params->name);
    pool->data = params->data;
    pool->metadata_dev = params->metadata;
    pool->config = params->config;
    config_sane(&pool->config);
    random_seed(&pool->rng, params->seed);
    pool->wall_clock_s = params->wall_clock_s;
    pool->opened_ns = loop_now_ns(pool->loop);
    memcpy(pool->owner_host, params->owner_host, sizeof(pool->owner_host));
    memcpy(pool->owner_boot, params->owner_boot, sizeof(pool->owner_boot));
    pool->event = params->event;
    pool->event_arg = params->event_arg;
    pool->keep_superblock = params->superblock;
    pool->origin_open = params->origin_open;
    pool->origin_open_arg = params->origin_open_arg;
    LIST_INIT(&pool->origins);
    end->params = *params;
    pool->params = &end->params;
    TAILQ_INIT(&pool->cores);
    TAILQ_INIT(&pool->ops_commit);
    TAILQ_INIT(&pool->ops_fetch);
    TAILQ_INIT(&pool->ops_room);
    TAILQ_INIT(&pool->ops_late);
    TAILQ_INIT(&pool->settle_waits);
    metaops_init(pool);
    commit_init(pool);
    end->result = io_create(pool);
    if (end->result < 0)
        thin_fail(&end->err, end->result, "%s", thin_strerror(end->result));
    else
        pool->in->idle_task.run = idle_run;
    if (end->result == 0)
        end->result = open_objects(pool, params, &end->err);
    end->task.run = open_start;
    loop_defer(pool->loop, &end->task);
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

static void
idle_run(struct thin_task *task)
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
    space_resume(pool); /* claims that wait learn it */
    loop_defer(pool->loop, &pool->in->starved_task);
    end->stage = CLOSE_ADMIN;
    admin_stop(pool, admin_stopped);
}

/* ---- asking ------------------------------------------------------------------------------------------ */

void
pool_get_info(struct pool *pool, struct pool_info *ret_info)
{
    struct pool_info *info = ret_info;
    const struct pool_step_info *longest;
    struct metadata_space ms;
    struct bm_stats bs;
    const struct superblock *sb;
    uint64_t reserve = 0;

    memset(info, 0, sizeof(*info));
    snprintf(info->name, sizeof(info->name), "%s", pool->name);
    info->mode = pool->mode;
    snprintf(info->why, sizeof(info->why), "%s", pool->why);
    snprintf(info->what_to_do, sizeof(info->what_to_do), "%s", pool->what_to_do);
    if (!pool->why[0] && pool->damage[0]) {
        snprintf(info->why, sizeof(info->why), "%s", pool->damage);
        snprintf(info->what_to_do, sizeof(info->what_to_do), "%s", WHAT_TO_DO_CHECK);
    }
    info->needs_check = pool->wants_check;
    info->data_lasts_s = -1;
    info->block_size = pool->block_size;
    info->data_size = pool->nr_data_blocks * pool->block_size;
    info->commits = pool->commit.nr_commits;
    longest = pool_longest_step(pool);
    if (longest) {
        info->longest_step_ns = longest->longest_ns;
        snprintf(info->longest_step, sizeof(info->longest_step), "%s", longest->name);
    }
    info->config = pool->config;
    mapcache_stats(pool, &info->map_hits, &info->map_misses);
    bm_get_stats(pool->bm, &bs);
    info->cache_hits = bs.hits;
    info->cache_misses = bs.misses;
    info->locks_high_water =
        bs.locks_high_water > pool->steps.locks ? bs.locks_high_water : pool->steps.locks;
    if (pool->catalogue) {
        info->incarnation = catalogue_incarnation(pool);
        catalogue_uuid(pool, info->uuid);
        catalogue_count(pool, &info->nr_volumes, &info->virtual_bytes);
    }
    if (!pool->metadata_ready)
        return;
    info->data_reserved = limits_reserved_bytes(pool);
    metadata_data_space(pool->md, &ms);
    info->data_blocks_free = ms.nr_free + ms.nr_pending;
    info->data_lasts_s = low_water_lasts_s(pool, info->data_blocks_free);
    info->data_used = (ms.nr_blocks - ms.nr_free - ms.nr_pending) * pool->block_size;
    metadata_own_space(pool->md, &ms, &reserve);
    info->metadata_size = ms.nr_blocks * METADATA_BLOCK_SIZE;
    info->metadata_blocks_free = ms.nr_free;
    info->metadata_used = (ms.nr_blocks - ms.nr_free) * METADATA_BLOCK_SIZE;
    sb = metadata_superblock(pool->md);
    info->needs_check = pool->wants_check || (sb->flags & SUPERBLOCK_NEEDS_CHECK);
    info->transaction_id = sb->trans_id;
    info->held_root = sb->held_root;
    info->time_left = POOL_TIME_MAX - sb->time;
    info->txn = metadata_txn(pool->md);
}

void
pool_set_config(struct pool *pool, const struct pool_config *config)
{
    struct pool_config now = *config;

    /* The caches keep the size they were made with. */
    now.metadata_cache_blocks = pool->config.metadata_cache_blocks;
    now.mapping_cache_pages = pool->config.mapping_cache_pages;
    config_sane(&now);
    pool->config = now;
    commit_config_changed(pool);
    if (pool->opened && !pool->closing && pool->mode == POOL_OUT_OF_DATA_SPACE)
        space_resume(pool); /* what waits is judged by the new rules */
}

/* ---- commit ------------------------------------------------------------------------------------------ */

struct commit_request {
    struct commit_wait wait;
    struct pool_done done;
};

static void
commit_requested(struct commit_wait *wait, int result)
{
    struct commit_request *request = container_of(wait, struct commit_request, wait);
    struct thin_error err;

    thin_error_init(&err);
    if (result < 0)
        thin_fail(&err, result, "%s", thin_strerror(result));
    request->done.fn(request->done.arg, result, &err);
    free(request);
}

void
pool_commit(struct pool *pool, struct pool_done done)
{
    struct commit_request *request = calloc(1, sizeof(*request));

    if (!request) {
        done.fn(done.arg, -ENOMEM, NULL);
        return;
    }
    request->done = done;
    request->wait.done = commit_requested;
    request->wait.flush_data = true;
    request->wait.txn = pool->metadata_ready ? commit_last_txn(pool) : 0;
    commit_join(pool, &request->wait);
}
