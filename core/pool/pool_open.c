/* How a pool comes to life: devices, metadata, catalogue, the mark of ownership. */
#include <stdlib.h>

#include "core/pool/limits.h"
#include "core/pool/pieces.h"

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
    pool_config_mend(&pool->config);
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
        pool->in->idle_task.run = pool_idle_run;
    if (end->result == 0)
        end->result = open_objects(pool, params, &end->err);
    end->task.run = open_start;
    loop_defer(pool->loop, &end->task);
}
