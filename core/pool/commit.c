/*
 * Makes transactions durable, many waiters by one commit and one data flush.
 *
 *   IDLE ─ commit_want ─► PREFLUSH? ─► MERGING ─ cut ─► WRITING ─► FLUSHING ─► SUPERBLOCK
 *     ▲                                              (data flush beside)            │
 *     └──────────────────────────── metadata_durable ◄──────────────────────────────┘
 *
 * Any failure after the merge began is a roll-back: what the transaction holds cannot be
 * made durable, and later ones stand on it.
 */
#include "core/base/seeded_bug.h"
#include "core/pool/io_private.h"

#define FREE_BLOCKS_STEP 256u /* data blocks, before the clock is looked at */
#define CUT_PUT_OFF_MAX  8u   /* turns that a cut waits for a short one */
#define PREFLUSH_BYTES \
    (32u << 20) /* unflushed data that is worth a flush before the cut */

static void commit_step(struct pool *pool);
static void commit_wake(struct pool *pool);

/* ---- the data flush --------------------------------------------------------------------- */

static void flush_kick(struct pool *pool);

static bool
wait_satisfied(const struct committer *c, const struct commit_wait *wait)
{
    return wait->txn <= c->durable_txn && wait->write_seq <= c->flushed_seq;
}

static void
wake_run(struct thin_task *task)
{
    struct committer *c = container_of(task, struct committer, wake_task);
    struct commit_wait_list ready = TAILQ_HEAD_INITIALIZER(ready);
    struct commit_wait_list failed = TAILQ_HEAD_INITIALIZER(failed);
    struct pool *pool = container_of(c, struct pool, commit);
    struct commit_wait *wait, *next;
    uint64_t began = loop_now_ns(pool->loop);
    int result = c->failed_result;

    TAILQ_CONCAT(&failed, &c->failed, link);
    TAILQ_CONCAT(&ready, &c->ready, link);
    for (wait = TAILQ_FIRST(&c->waits); wait; wait = next) {
        next = TAILQ_NEXT(wait, link);
        if (!wait_satisfied(c, wait))
            continue;
        TAILQ_REMOVE(&c->waits, wait, link);
        TAILQ_INSERT_TAIL(&ready, wait, link);
    }
    while ((wait = TAILQ_FIRST(&failed))) {
        TAILQ_REMOVE(&failed, wait, link);
        wait->done(wait, result);
    }
    while ((wait = TAILQ_FIRST(&ready))) {
        if (pool_step_full(pool, began)) {
            TAILQ_CONCAT(&c->ready, &ready, link);
            commit_wake(pool);
            break;
        }
        TAILQ_REMOVE(&ready, wait, link);
        wait->done(wait, 0);
    }
    pool_step(pool, "answers to flushes", began);
}

static void
commit_wake(struct pool *pool)
{
    loop_defer(pool->loop, &pool->commit.wake_task);
}

static void
flush_done(struct device_io *io, int result)
{
    struct committer *c = container_of(io, struct committer, flush_io);
    struct pool *pool = container_of(c, struct pool, commit);

    c->flushing = false;
    pool->data_in_flight--;
    if (c->flush_epoch != pool->epoch) {
        pool_check_idle(pool);
        return;
    }
    if (result < 0 && seeded_bug(SEEDED_FLUSH_RETRIED) && !pool->data->lost) {
        flush_kick(pool);
        return;
    }
    if (result < 0) {
        /* Never tried again: the pages that it could not write may count as clean now. */
        pool_roll_back(pool, result, "the data device failed to flush");
        return;
    }
    c->flushed_seq = max_u64(c->flushed_seq, c->flush_seq);
    c->bytes_unflushed -= c->bytes_at_flush;
    commit_wake(pool);
    flush_kick(pool);
    if (c->state == COMMIT_PREFLUSH || c->state == COMMIT_WRITING)
        commit_step(pool);
    pool_check_idle(pool);
}

static void
flush_kick(struct pool *pool)
{
    struct committer *c = &pool->commit;

    if (c->flushing || c->flush_need <= c->flushed_seq)
        return;
    c->flushing = true;
    c->flush_epoch = pool->epoch;
    c->flush_seq = c->write_seq;
    c->bytes_at_flush = c->bytes_unflushed;
    c->flush_io.op = DEVICE_FLUSH;
    c->flush_io.flags = 0;
    c->flush_io.done = flush_done;
    pool->data_in_flight++;
    device_submit(pool->data, &c->flush_io);
}

static void
flush_want(struct pool *pool, uint64_t write_seq)
{
    struct committer *c = &pool->commit;

    c->flush_need = max_u64(c->flush_need, write_seq);
    flush_kick(pool);
}

void
pool_data_begin(struct pool *pool)
{
    pool->data_in_flight++;
}

void
pool_data_end(struct pool *pool, bool wrote, uint64_t bytes)
{
    THIN_ASSERT(pool->data_in_flight > 0);
    pool->data_in_flight--;
    if (wrote) {
        pool->commit.write_seq++;
        pool->commit.bytes_unflushed += bytes;
    }
    if (pool->data_in_flight == 0)
        pool_check_idle(pool);
}

/* ---- waiting ------------------------------------------------------------------------------ */

void
commit_join_seq(struct pool *pool, struct commit_wait *wait, uint64_t write_seq)
{
    struct committer *c = &pool->commit;

    wait->write_seq = wait->flush_data ? write_seq : 0;
    if (seeded_bug(SEEDED_FLUSH_JOINED) && c->flushing)
        wait->write_seq = min_u64(wait->write_seq, c->flush_seq);
    TAILQ_INSERT_TAIL(&c->waits, wait, link);
    if (wait_satisfied(c, wait)) {
        commit_wake(pool);
        return;
    }
    if (wait->flush_data)
        flush_want(pool, wait->write_seq);
    if (wait->txn > c->durable_txn)
        commit_want(pool, wait->txn);
}

void
commit_join(struct pool *pool, struct commit_wait *wait)
{
    commit_join_seq(pool, wait, pool->commit.write_seq);
}

uint64_t
commit_last_txn(const struct pool *pool)
{
    if (metadata_changed(pool->md))
        return metadata_txn(pool->md);
    return pool->commit.cut_txn;
}

void
commit_want(struct pool *pool, uint64_t txn)
{
    struct committer *c = &pool->commit;

    if (txn <= c->durable_txn || txn == c->cut_txn)
        return;
    c->wanted = true;
    if (c->state == COMMIT_IDLE)
        loop_defer(pool->loop, &c->step_task);
}

static void
interval_fired(struct thin_timer *timer)
{
    struct committer *c = container_of(timer, struct committer, interval);
    struct pool *pool = container_of(c, struct pool, commit);

    if (pool->metadata_ready && metadata_changed(pool->md))
        commit_want(pool, metadata_txn(pool->md));
}

void
commit_note_change(struct pool *pool)
{
    struct committer *c = &pool->commit;
    uint64_t ms = pool->config.commit_interval_ms;

    if (metadata_dirty_blocks(pool->md) >= pool->config.commit_max_dirty)
        commit_want(pool, metadata_txn(pool->md));
    if (c->interval.armed || c->wanted)
        return;
    if (loop_timer_set(pool->loop, &c->interval,
                       loop_now_ns(pool->loop) + ms * NS_PER_MS) < 0)
        commit_want(pool, metadata_txn(pool->md)); /* no memory for a timer: then now */
}

void
commit_config_changed(struct pool *pool)
{
    struct committer *c = &pool->commit;

    if (!pool->metadata_ready || pool->rolling_back || pool->closing)
        return;
    loop_timer_cancel(pool->loop, &c->interval);
    if (metadata_changed(pool->md))
        commit_note_change(pool);
}

/* ---- the commit ----------------------------------------------------------------------------- */

static void
commit_failed(struct pool *pool, int code, const struct thin_error *err,
              const char *doing)
{
    char words[THIN_ERROR_TEXT_MAX];

    snprintf(words, sizeof(words), "%s: %s", doing, thin_error_text(err, code));
    pool_roll_back(pool, code, words);
}

/* A callback of the block manager: false if its commit is no longer. */
static bool
md_io_ended(struct pool *pool, int result, const char *doing)
{
    struct committer *c = &pool->commit;

    c->md_io--;
    if (c->epoch != pool->epoch) {
        pool_check_idle(pool);
        return false;
    }
    if (result < 0) {
        commit_failed(pool, result, NULL, doing);
        return false;
    }
    return true;
}

bool
commit_freeing(const struct pool *pool)
{
    return pool->commit.freeing;
}

/* Who waits for a commit waits for what it sets free. */
static void
free_run(struct thin_task *task)
{
    struct committer *c = container_of(task, struct committer, free_task);
    struct pool *pool = container_of(c, struct pool, commit);
    uint64_t began = loop_now_ns(pool->loop), room;
    bool more = true;

    while (more && (room = space_room_for_freed(pool)) > 0) {
        if (pool_step_full(pool, began)) {
            loop_defer(pool->loop, &c->free_task);
            break;
        }
        more = metadata_free_some(pool->md, min_u64(room, FREE_BLOCKS_STEP), space_freed,
                                  pool);
    }
    pool_step(pool, "free blocks", began);
    space_pass_down(pool); /* one that ends calls again */
    if (more)
        return;
    c->freeing = false;
    pins_after_commit(pool);
    if (c->freeing)
        return;
    metaops_after_commit(pool);
    space_after_commit(pool);
}

void
commit_free(struct pool *pool)
{
    struct committer *c = &pool->commit;

    if (!pool->metadata_ready || pool->rolling_back)
        return;
    c->freeing = true;
    loop_defer(pool->loop, &c->free_task);
}

static void
superblock_written(void *arg, int result)
{
    struct pool *pool = arg;
    struct committer *c = &pool->commit;
    uint64_t txn = c->cut_txn;

    if (!md_io_ended(pool, result, "write the superblock"))
        return;
    c->durable_txn = txn;
    c->cut_txn = 0;
    c->state = COMMIT_IDLE;
    c->nr_commits++;
    if (pool->keep_superblock)
        pool->keep_superblock(pool->event_arg, c->superblock);
    catalogue_durable(pool);
    metadata_set_durable(pool->md, txn);
    /* Before anybody is woken: who finds no room now must wait for what comes back. */
    c->freeing = true;
    commit_wake(pool);
    free_run(&c->free_task); /* mostly all of it */
    if (c->wanted)
        loop_defer(pool->loop, &c->step_task);
    else if (metadata_changed(pool->md))
        commit_note_change(pool);
    pool_check_idle(pool);
}

static void
metadata_flushed(void *arg, int result)
{
    struct pool *pool = arg;
    struct committer *c = &pool->commit;

    if (!md_io_ended(pool, result, "flush the metadata device"))
        return;
    c->state = COMMIT_SUPERBLOCK;
    c->md_io++;
    bm_write_superblock(pool->bm, c->superblock, superblock_written, pool);
}

static void
cut_written(void *arg, int result)
{
    struct pool *pool = arg;

    if (!md_io_ended(pool, result, "write metadata blocks"))
        return;
    pool->commit.blocks_written = true;
    commit_step(pool);
}

/*
 * The merge met damage, or a block that the device does not give. It looks once more: it
 * may have been the transfer. Then, if only the counts of some data blocks are hit, these
 * are given up and the commit goes on; false: there is no way on.
 */
static bool
merge_around(struct pool *pool, const char *words)
{
    struct committer *c = &pool->commit;
    dblock_t begin = 0, end = 0;
    char text[THIN_ERROR_TEXT_MAX];
    struct thin_error err;

    if (!c->suspected) {
        c->suspected = true;
        return true;
    }
    c->suspected = false;
    if (c->at_cut)
        return false;
    thin_error_init(&err);
    snprintf(text, sizeof(text), "%s", words); /* they may stand in what changes */
    if (metadata_merge_park(pool->md, &begin, &end, &err) < 0)
        return false;
    pool_damaged(pool, begin, end, text);
    return true;
}

static bool
is_read_error(int code)
{
    return code == -EIO || code == -ENODATA || code == -EILSEQ || code == -EREMOTEIO;
}

static void
merge_fetched(struct bm_fetch *fetch, int result)
{
    struct committer *c = container_of(fetch, struct committer, fetch);
    struct pool *pool = container_of(c, struct pool, commit);

    c->fetching = false;
    if (c->epoch != pool->epoch) {
        bm_fetch_fini(fetch);
        pool_check_idle(pool);
        return;
    }
    if (result == -THIN_E_CACHE_FULL && (metaops_hold_frames(pool) || !c->alone)) {
        bm_fetch_fini(fetch);
        bm_fetch_init(fetch, pool->bm, merge_fetched);
        c->alone = fetch->alone = true;
        c->wants_frames = metaops_hold_frames(pool);
        if (!c->wants_frames)
            commit_step(pool);
        return;
    }
    if (result < 0) {
        bm_fetch_fini(fetch);
        if (!is_read_error(result) || !merge_around(pool, thin_strerror(result))) {
            commit_failed(pool, result, NULL, "read metadata for the commit");
            return;
        }
        bm_fetch_init(fetch, pool->bm, merge_fetched);
        c->alone = false;
    }
    commit_step(pool);
}

void
commit_frames_let_go(struct pool *pool)
{
    struct committer *c = &pool->commit;

    if (!c->wants_frames)
        return;
    c->wants_frames = false;
    loop_defer(pool->loop, &c->step_task);
}

static void
commit_cut(struct pool *pool)
{
    struct committer *c = &pool->commit;

    bm_fetch_fini(&c->fetch);
    c->cut_seq = c->write_seq;
    c->wanted = false;
    c->suspected = c->at_cut = false;
    loop_timer_cancel(pool->loop, &c->interval);
    c->blocks_written = false;
    c->state = COMMIT_WRITING;
    c->md_io++;
    bm_write_cut(pool->bm, cut_written, pool);
    metaops_after_cut(pool);
    /* All data that the cut's mappings stand for had completed before they were made. */
    if (!seeded_bug(SEEDED_MISSING_FLUSH))
        flush_want(pool, c->cut_seq);
    if (seeded_bug(SEEDED_PASSDOWN_EARLY)) {
        metadata_durable(pool->md, c->cut_txn, space_freed, pool);
        space_after_commit(pool);
    }
}

static void
commit_merge(struct pool *pool)
{
    struct committer *c = &pool->commit;
    uint64_t began = loop_now_ns(pool->loop);
    struct thin_error err;
    bool more = true;
    int r = 0;

    thin_error_init(&err);
    bm_clear_missing(pool->bm);
    while (more) {
        r = metadata_merge_step(pool->md, &more, &err);
        if (is_damage(r) && merge_around(pool, thin_error_text(&err, r))) {
            more = true;
            continue;
        }
        if (r < 0)
            break;
        if (!c->at_cut) /* else this was no news */
            c->suspected = false;
        if (c->fetch.nr_pinned) {
            /* The next step has its own blocks to ask for. */
            bm_fetch_fini(&c->fetch);
            bm_fetch_init(&c->fetch, pool->bm, merge_fetched);
            c->alone = false;
        }
        /* The cut is a step of its own, unless others keep changing things. */
        if (pool_step_full(pool, began) && (more || c->cut_put_off++ < CUT_PUT_OFF_MAX)) {
            pool_step(pool, "merge", began);
            loop_defer(pool->loop, &c->step_task);
            return;
        }
    }
    c->cut_put_off = 0;
    if (r == 0) {
        pool_step(pool, "merge", began);
        began = loop_now_ns(pool->loop);
        r = metadata_cut(pool->md, catalogue_finish_trailer, pool, &c->cut_txn,
                         &c->superblock, &err);
        c->at_cut = r == -THIN_E_WOULD_BLOCK;
        pool_step(pool, "cut", began);
    } else {
        c->at_cut = false;
        pool_step(pool, "merge", began);
    }
    if (r == -THIN_E_WOULD_BLOCK) {
        c->fetching = true;
        bm_fetch_start(&c->fetch);
    } else if (r == -THIN_E_CACHE_FULL && metaops_hold_frames(pool)) {
        c->wants_frames = true;
    } else if (r < 0) {
        bm_fetch_fini(&c->fetch);
        commit_failed(pool, r, &err, "prepare the commit");
    } else {
        commit_cut(pool);
    }
}

/* Operations that changed nothing after all (an unmap of a hole) may be waited for. */
static void
nothing_to_commit(struct pool *pool)
{
    struct committer *c = &pool->commit;
    struct commit_wait *wait;

    c->wanted = false;
    TAILQ_FOREACH(wait, &c->waits, link)
        wait->txn = 0;
    commit_wake(pool);
    metaops_after_commit(pool);
    space_after_commit(pool);
}

static void
commit_step(struct pool *pool)
{
    struct committer *c = &pool->commit;

    switch (c->state) {
    case COMMIT_IDLE:
        if (!pool->metadata_ready || !c->wanted)
            break;
        if (!metadata_changed(pool->md)) {
            nothing_to_commit(pool);
            break;
        }
        c->epoch = pool->epoch;
        c->suspected = c->at_cut = false;
        bm_fetch_init(&c->fetch, pool->bm, merge_fetched);
        c->alone = false;
        if (c->bytes_unflushed > PREFLUSH_BYTES && c->flushed_seq < c->write_seq) {
            c->state = COMMIT_PREFLUSH;
            flush_want(pool, c->write_seq);
            break;
        }
        c->state = COMMIT_MERGING;
        commit_merge(pool);
        break;
    case COMMIT_PREFLUSH:
        /* Once, however much was written meanwhile. */
        c->state = COMMIT_MERGING;
        commit_merge(pool);
        break;
    case COMMIT_MERGING:
        if (!c->fetching)
            commit_merge(pool);
        break;
    case COMMIT_WRITING:
        if (!c->blocks_written ||
            (c->flushed_seq < c->cut_seq && !seeded_bug(SEEDED_MISSING_FLUSH)))
            break;
        c->state = COMMIT_FLUSHING;
        c->md_io++;
        if (seeded_bug(SEEDED_SUPERBLOCK_FIRST)) {
            metadata_flushed(pool, 0);
            break;
        }
        bm_flush(pool->bm, metadata_flushed, pool);
        break;
    case COMMIT_FLUSHING:
    case COMMIT_SUPERBLOCK:
        break;
    }
}

static void
step_run(struct thin_task *task)
{
    struct committer *c = container_of(task, struct committer, step_task);

    commit_step(container_of(c, struct pool, commit));
}

/* ---- life -------------------------------------------------------------------------------------- */

void
commit_init(struct pool *pool)
{
    struct committer *c = &pool->commit;

    TAILQ_INIT(&c->waits);
    TAILQ_INIT(&c->ready);
    TAILQ_INIT(&c->failed);
    c->step_task.run = step_run;
    c->wake_task.run = wake_run;
    c->free_task.run = free_run;
    c->interval.fire = interval_fired;
}

void
commit_begin_epoch(struct pool *pool)
{
    struct committer *c = &pool->commit;

    c->state = COMMIT_IDLE;
    c->cut_txn = 0;
    c->wanted = false;
    c->durable_txn = metadata_txn(pool->md) - 1;
    /* What was lost is lost: no later flush may seem to cover it. */
    c->flushed_seq = c->write_seq;
    c->flush_need = c->write_seq;
    c->bytes_unflushed = 0;
}

void
commit_roll_back(struct pool *pool, int result)
{
    struct committer *c = &pool->commit;

    if (c->state == COMMIT_MERGING && !c->fetching)
        bm_fetch_fini(&c->fetch);
    c->state = COMMIT_IDLE;
    c->wanted = false;
    c->wants_frames = false;
    c->cut_txn = 0;
    c->failed_result = result;
    c->freeing = false;
    loop_defer_cancel(pool->loop, &c->free_task);
    loop_timer_cancel(pool->loop, &c->interval);
    loop_defer_cancel(pool->loop, &c->step_task);
    TAILQ_CONCAT(&c->failed, &c->ready, link);
    TAILQ_CONCAT(&c->failed, &c->waits, link);
    if (!TAILQ_EMPTY(&c->failed))
        commit_wake(pool);
}

void
commit_stop(struct pool *pool)
{
    struct committer *c = &pool->commit;

    loop_timer_cancel(pool->loop, &c->interval);
    loop_defer_cancel(pool->loop, &c->free_task);
    loop_defer_cancel(pool->loop, &c->step_task);
    loop_defer_cancel(pool->loop, &c->wake_task);
}
