/*
 * A pool as a whole: its settings, what it tells of itself, and a commit on request.
 *
 *   pool_open.c    pool_open ─► format | load ─► geometry ─► (wipe) ─► catalogue
 *                  ─► deletes resumed ─► opened
 *   pool_close.c   pool_close ─► admin stops ─► requests end ─► commit ─► devices close ─► done
 */
#include <stdlib.h>

#include "core/pool/limits.h"

#define INTERVAL_MS_DEFAULT    1000
#define NO_SPACE_MS_DEFAULT    60000
#define METADATA_CACHE_DEFAULT 16384u
#define MAPPING_PAGES_DEFAULT  8192u

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

void
pool_config_mend(struct pool_config *config)
{
    if (config->metadata_cache_blocks < BM_FRAMES_MIN)
        config->metadata_cache_blocks = BM_FRAMES_MIN;
    if (config->commit_max_dirty == 0 ||
        config->commit_max_dirty > config->metadata_cache_blocks / 2)
        config->commit_max_dirty = config->metadata_cache_blocks / 4;
    if (config->commit_interval_ms == 0)
        config->commit_interval_ms = INTERVAL_MS_DEFAULT;
}

uint64_t
pool_wall_clock(const struct pool *pool)
{
    return pool->wall_clock_s + (loop_now_ns(pool->loop) - pool->opened_ns) / NS_PER_SEC;
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
    info->metadata_used = (ms.nr_used + ms.nr_pending) * METADATA_BLOCK_SIZE;
    info->metadata_reserve = reserve * METADATA_BLOCK_SIZE;
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
    pool_config_mend(&now);
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
