/*
 * Roll-back: what is not durable is given up, and the metadata is read anew.
 *
 *   pool_roll_back ─► (requests of the old epoch end) ─► reset, load ─► times of the open
 *   volumes ─► the catalogue ─► read-only, until the pool is opened anew
 *
 * Failed I/O leaves sound metadata: what is durable stands. Where a commit met damage the
 * pool is marked as needing a check, by a commit of nothing but the flag, tried once.
 */
#include <stdio.h>
#include <string.h>

#include "core/base/seeded_bug.h"
#include "core/pool/limits.h"
#include "core/pool/pieces.h"

/* Handles whose volume may have lost something. */
static void
fence_losers(struct pool *pool)
{
    struct committer *c = &pool->commit;
    struct volume_core *core;

    TAILQ_FOREACH(core, &pool->cores, link)
        if (!seeded_bug(SEEDED_NOT_FENCED) &&
            (core->changed_txn > c->durable_txn || core->write_seq > c->flushed_seq))
            volume_core_fence(core, -THIN_E_ROLLED_BACK);
}

void
pool_roll_back(struct pool *pool, int code, const char *why)
{
    char cause[128] = "";

    if (pool->rolling_back)
        return;
    log_error("changes that were not durable are rolled back: %s pool=%s error=%s "
              "durable_txn=%llu",
              why, pool->name, thin_error_name(code),
              (unsigned long long)pool->commit.durable_txn);
    pool->rolling_back = true;
    pool->epoch++;
    if (is_damage(code))
        pool->wants_check = true;
    /* Some reasons name it already. */
    if (!strstr(why, thin_strerror(code)))
        snprintf(cause, sizeof(cause), " (%s)", thin_strerror(code));
    pool_set_mode(pool, POOL_READ_ONLY,
                  pool->wants_check ? WHAT_TO_DO_CHECK : WHAT_TO_DO_DEVICE,
                  "%s%s; changes that were not durable were rolled back", why, cause);
    fence_losers(pool);
    pool->metadata_ready = false;
    commit_roll_back(pool, -THIN_E_ROLLED_BACK);
    metaops_roll_back(pool);
    space_fail_parked(pool, NULL, -THIN_E_READ_ONLY);
    space_resume(pool); /* claims that wait learn it */
    limits_stop(pool);
    admin_rolled_back(pool);
    pool_check_idle(pool);
}

static int
mark_run(struct metaop *op, struct thin_error *err)
{
    (void)err;
    metadata_set_needs_check(op->pool->md, true);
    return 0;
}

static void
mark_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct pool *pool = op->pool;

    if (result < 0)
        log_error("the pool could not be marked as needing a check: %s pool=%s",
                  thin_error_text(err, result), pool->name);
    else
        commit_want(pool, metadata_txn(pool->md));
}

static void
mark_needs_check(struct pool *pool)
{
    struct metaop *op = &pool->end->op;

    if (!pool->wants_check || pool->marking || !pool->metadata_ready ||
        metadata_counts_lost(pool->md) ||
        (metadata_superblock(pool->md)->flags & SUPERBLOCK_NEEDS_CHECK))
        return;
    pool->marking = true;
    memset(op, 0, sizeof(*op));
    op->run = mark_run;
    op->done = mark_done;
    op->purse = TM_COMMIT;
    op->any_mode = true;
    op->name = "mark as needing a check";
    metaop_start(pool, op, false);
}

static void
rollback_end(struct pool *pool)
{
    pool->rolling_back = false;
    mark_needs_check(pool);
    io_run_starved(pool);
    volume_openings_go_on(pool);
    pool_tell(pool, "rolled-back", pool->why);
    pool_check_idle(pool);
}

/* Nothing can be read any more. */
static void
rollback_failed(struct pool *pool, int code, const struct thin_error *err)
{
    struct volume_core *core;

    pool->metadata_ready = false;
    pool_set_mode(pool, POOL_FAIL,
                  is_damage(code) ? WHAT_TO_DO_REPAIR : WHAT_TO_DO_DEVICE,
                  "the metadata cannot be read again: %s", thin_error_text(err, code));
    TAILQ_FOREACH(core, &pool->cores, link)
        volume_core_fence(core, -THIN_E_FAILED);
    rollback_end(pool);
}

/* What an open volume had become by a change that is lost, it is no more. */
static void
follow_record(struct volume_core *core)
{
    struct catalogue_volume cv;

    if (catalogue_find_device(core->pool, core->dev_id, &cv))
        volume_core_follow(core, &cv);
}

static void
catalogue_loaded(struct pool *pool, int result, const struct thin_error *err)
{
    struct volume_core *core;

    if (result < 0)
        log_error("the catalogue cannot be read again: %s pool=%s",
                  thin_error_text(err, result), pool->name);
    else
        TAILQ_FOREACH(core, &pool->cores, link)
            follow_record(core);
    if (limits_load(pool) < 0)
        log_error("no memory for reservations pool=%s", pool->name);
    rollback_end(pool);
}

/* ---- the times of open volumes -------------------------------------------------------------- */

static void next_time(struct pool *pool);

static int
time_run(struct metaop *op, struct thin_error *err)
{
    struct pool_end *end = container_of(op, struct pool_end, op);

    return metadata_get_device(op->pool->md, end->dev_id, &end->details, &end->found,
                               err);
}

static void
time_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct pool_end *end = container_of(op, struct pool_end, op);
    struct pool *pool = op->pool;
    struct volume_core *core = volume_core_find(pool, end->dev_id);

    (void)err;
    if (core) {
        core->epoch = pool->epoch;
        core->changed_txn = 0;
        core->write_seq = pool->commit.write_seq;
        core->snapshotted_time = end->details.snapshotted_time;
        core->mapped = end->details.mapped_blocks;
        if (result < 0 || !end->found)
            volume_core_fence(core, result < 0 ? result : -THIN_E_ROLLED_BACK);
    }
    next_time(pool);
}

static void
next_time(struct pool *pool)
{
    struct pool_end *end = pool->end;
    struct volume_core *core;

    TAILQ_FOREACH(core, &pool->cores, link)
        if (core->epoch != pool->epoch)
            break;
    if (!core) {
        catalogue_reload(pool, catalogue_loaded);
        return;
    }
    end->dev_id = core->dev_id;
    end->found = false;
    end->op.run = time_run;
    end->op.done = time_done;
    end->op.reads_only = true;
    end->op.name = "load after roll-back";
    metaop_start(pool, &end->op, false);
}

/* ---- loading ------------------------------------------------------------------------------------ */

static void
load_again(struct pool *pool, int result, const struct thin_error *err)
{
    struct volume_core *core;

    if (result < 0) {
        rollback_failed(pool, result, err);
        return;
    }
    pool->metadata_ready = true;
    pool->settled = false;
    pool->settle_result = 0;
    /* Requests that were answered while this one waited may have lost as well. */
    fence_losers(pool);
    commit_begin_epoch(pool);
    if (!seeded_bug(SEEDED_STALE_CACHE))
        mapcache_drop_all(pool);
    TAILQ_FOREACH(core, &pool->cores, link)
        pieces_drop_core(core);
    space_reset(pool);
    next_time(pool);
}

void
rollback_continue(struct pool *pool)
{
    struct committer *c = &pool->commit;

    if (pool->end->loading || pool->in->frags_used || pool->data_in_flight || c->md_io ||
        c->fetching || pool->nr_ops || !space_idle(pool) || pool->metadata_ready)
        return;
    if (!pool->opened && pool->closing) {
        /* It never opened, and nobody will read what a load would find. */
        pool->rolling_back = false;
        pool_check_idle(pool);
        return;
    }
    pins_drop_all(pool, -THIN_E_ROLLED_BACK);
    metadata_reset(pool->md);
    pool_load(pool, load_again);
}
