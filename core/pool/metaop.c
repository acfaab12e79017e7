/*
 * Runs metadata operations: whole or not at all, again when something was missing.
 * States are drawn in pool_private.h.
 */
#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "core/pool/io_private.h"

enum { OP_NEW, OP_LATE, OP_COMMIT, OP_FETCH, OP_ROOM };

static void
ops_late_add_all(struct pool *pool, struct metaop_list *list)
{
    struct metaop *op;

    if (TAILQ_EMPTY(list))
        return;
    TAILQ_FOREACH(op, list, link)
        op->state = OP_LATE;
    TAILQ_CONCAT(&pool->ops_late, list, link);
    loop_defer(pool->loop, &pool->ops_task);
}

static void
op_finish(struct metaop *op, int result, const struct thin_error *err)
{
    struct pool *pool = op->pool;

    bm_fetch_fini(&op->fetch);
    commit_frames_let_go(pool);
    ops_late_add_all(pool, &pool->ops_room);
    pool->nr_ops--;
    op->done(op, result, err);
    if (pool->rolling_back || pool->closing)
        pool_check_idle(pool);
}

static void
op_fail(struct metaop *op, int code)
{
    struct thin_error err;

    thin_error_init(&err);
    op_finish(op, thin_fail(&err, code, "%s", thin_strerror(code)), &err);
}

static void op_fetched(struct bm_fetch *fetch, int result);

static void
op_fetch_init(struct metaop *op)
{
    bm_fetch_init(&op->fetch, op->pool->bm, op_fetched);
    op->fetch.alone = op->alone;
}

static void op_run(struct metaop *op);
static void op_no_frame(struct metaop *op, struct thin_error *err);

static void
op_fetched(struct bm_fetch *fetch, int result)
{
    struct metaop *op = container_of(fetch, struct metaop, fetch);
    struct pool *pool = op->pool;

    TAILQ_REMOVE(&pool->ops_fetch, op, link);
    op->state = OP_NEW;
    if (op->epoch != pool->epoch) {
        op_fail(op, -THIN_E_ROLLED_BACK);
    } else if (result == -THIN_E_CACHE_FULL) {
        struct thin_error err;

        thin_error_init(&err);
        thin_fail(&err, result, "%s", thin_strerror(result));
        op_no_frame(op, &err);
    } else if (result < 0) {
        op_fail(op, result);
    } else {
        op_run(op);
    }
}

/* What is pinned could keep others from finding a frame meanwhile. */
static void
op_let_go(struct metaop *op)
{
    bm_fetch_fini(&op->fetch);
    op_fetch_init(op);
    commit_frames_let_go(op->pool);
}

static void
op_again(struct metaop *op)
{
    op->state = OP_LATE;
    TAILQ_INSERT_TAIL(&op->pool->ops_late, op, link);
    loop_defer(op->pool->loop, &op->pool->ops_task);
}

/* No block to be had: what the oldest pinned view holds back is worth another try. */
static bool
op_without_pin(struct metaop *op)
{
    struct pool *pool = op->pool;

    if (!pins_drop_oldest(pool, -THIN_E_NO_METADATA_SPACE))
        return false;
    op->commits_waited = 0;
    op_let_go(op);
    op_again(op);
    return true;
}

static void
op_wait_commit(struct metaop *op, int code, struct thin_error *err)
{
    struct pool *pool = op->pool;
    uint64_t txn = commit_last_txn(pool);

    if (commit_freeing(pool) && code == -THIN_E_NEED_COMMIT) {
        /* What the last one set free is not all to be had yet. */
        op_let_go(op);
        op->state = OP_COMMIT;
        op->wait_txn = 0;
        TAILQ_INSERT_TAIL(&pool->ops_commit, op, link);
        return;
    }
    if (code == -THIN_E_NEED_COMMIT &&
        (op->commits_waited == METAOP_COMMITS_MAX || !txn) && op_without_pin(op))
        return;
    if (op->commits_waited++ == METAOP_COMMITS_MAX || !txn) {
        /* Nothing that a commit would set free: then it is what it looks like. */
        if (code == -THIN_E_NEED_COMMIT)
            code = thin_fail(err, -THIN_E_NO_METADATA_SPACE, "%s",
                             thin_strerror(-THIN_E_NO_METADATA_SPACE));
        op_finish(op, code, err);
        return;
    }
    op_let_go(op);
    /* The one that is being written may do; the open one follows in any case. */
    op->state = OP_COMMIT;
    op->wait_txn = pool->commit.cut_txn ? pool->commit.cut_txn : txn;
    TAILQ_INSERT_TAIL(&pool->ops_commit, op, link);
    commit_want(pool, txn);
}

bool
metaops_hold_frames(const struct pool *pool)
{
    return !TAILQ_EMPTY(&pool->ops_fetch);
}

static void
op_wait_room(struct metaop *op)
{
    op_let_go(op);
    op->state = OP_ROOM;
    TAILQ_INSERT_TAIL(&op->pool->ops_room, op, link);
}

/*
 * Nothing in the cache may give way. Frames that others keep while they wait for a block
 * come back when these have ended; without others there is the room of dirty frames, and
 * if these use it, only a commit makes them clean.
 */
static void
op_no_frame(struct metaop *op, struct thin_error *err)
{
    struct pool *pool = op->pool;

    if (metaops_hold_frames(pool) || pool->commit.fetching) {
        op_wait_room(op);
    } else if (!op->alone) {
        op->alone = true;
        op_let_go(op);
        op_again(op);
    } else {
        op_wait_commit(op, -THIN_E_CACHE_FULL, err);
    }
}

static void
op_run(struct metaop *op)
{
    struct pool *pool = op->pool;
    struct metadata *md = pool->md;
    struct thin_error err;
    uint64_t began = loop_now_ns(pool->loop);
    const char *name = op->name; /* the operation may be gone when it has ended */
    int r;

    thin_error_init(&err);
    if (!op->reads_only && !op->any_mode) {
        r = pool_may_change(pool, &err);
        if (r < 0) {
            op_finish(op, r, &err);
            return;
        }
    }
    if (!op->reads_only && !pool_is_settled(pool)) {
        if (pool->settle_result < 0) {
            op_fail(op, pool->settle_result);
            return;
        }
        pool_settle_begin(pool);
        op_wait_room(op);
        return;
    }
    bm_clear_missing(pool->bm);
    bm_reset_high_water(pool->bm);
    if (!op->reads_only)
        metadata_op_begin(md, op->purse);
    r = op->run(op, &err);
    if (!op->reads_only) {
        if (r == 0)
            r = metadata_op_end(md, &err);
        else
            metadata_op_undo(md);
    }
    pool_step_locks(pool, name);
    if (r == 0) {
        if (!op->reads_only)
            commit_note_change(pool);
        op_finish(op, 0, &err);
    } else if (r == -THIN_E_WOULD_BLOCK && pool->commit.wants_frames) {
        op_wait_room(op); /* the commit comes first */
    } else if (r == -THIN_E_WOULD_BLOCK) {
        op->state = OP_FETCH;
        TAILQ_INSERT_TAIL(&pool->ops_fetch, op, link);
        bm_fetch_start(&op->fetch);
    } else if (r == -THIN_E_CACHE_FULL) {
        commit_want(pool, commit_last_txn(pool));
        op_no_frame(op, &err);
    } else if (r == -THIN_E_NEED_COMMIT) {
        op_wait_commit(op, r, &err);
    } else if (r != -THIN_E_NO_METADATA_SPACE || !op_without_pin(op)) {
        op_finish(op, r, &err);
    }
    pool_step(pool, name, began);
}

static void
ops_late_run(struct thin_task *task)
{
    struct pool *pool = container_of(task, struct pool, ops_task);
    struct metaop_list late = TAILQ_HEAD_INITIALIZER(late);
    uint64_t began = loop_now_ns(pool->loop);
    struct metaop *op;

    TAILQ_CONCAT(&late, &pool->ops_late, link);
    while ((op = TAILQ_FIRST(&late))) {
        if (pool_step_full(pool, began)) {
            TAILQ_CONCAT(&late, &pool->ops_late, link);
            TAILQ_CONCAT(&pool->ops_late, &late, link);
            loop_defer(pool->loop, &pool->ops_task);
            break;
        }
        TAILQ_REMOVE(&late, op, link);
        op->state = OP_NEW;
        if (op->epoch != pool->epoch)
            op_fail(op, -THIN_E_ROLLED_BACK);
        else
            op_run(op);
    }
}

void
metaop_start(struct pool *pool, struct metaop *op, bool may_finish_now)
{
    op->pool = pool;
    op->epoch = pool->epoch;
    op->commits_waited = 0;
    op->alone = false;
    op->state = OP_NEW;
    op_fetch_init(op);
    pool->nr_ops++;
    /* Who waited comes first: what a commit made room for is his. */
    if (may_finish_now && pool->metadata_ready &&
        (op->reads_only || TAILQ_EMPTY(&pool->ops_late))) {
        op_run(op);
        return;
    }
    op->state = OP_LATE;
    /* While a roll-back loads anew, nothing looks at what is half loaded. */
    if (!pool->metadata_ready)
        op->epoch = pool->epoch - 1;
    TAILQ_INSERT_TAIL(&pool->ops_late, op, link);
    loop_defer(pool->loop, &pool->ops_task);
}

void
metaops_after_cut(struct pool *pool)
{
    struct metaop *op;

    /* Not a commit waited for in full: it does not count. */
    TAILQ_FOREACH(op, &pool->ops_commit, link)
        if (op->wait_txn)
            op->commits_waited--;
    ops_late_add_all(pool, &pool->ops_commit);
    ops_late_add_all(pool, &pool->ops_room);
}

void
metaops_after_commit(struct pool *pool)
{
    struct metaop *op, *next;

    for (op = TAILQ_FIRST(&pool->ops_commit); op; op = next) {
        next = TAILQ_NEXT(op, link);
        if (op->wait_txn > pool->commit.durable_txn && metadata_changed(pool->md))
            continue;
        TAILQ_REMOVE(&pool->ops_commit, op, link);
        TAILQ_INSERT_TAIL(&pool->ops_late, op, link);
        op->state = OP_LATE;
        loop_defer(pool->loop, &pool->ops_task);
    }
}

void
metaops_roll_back(struct pool *pool)
{
    /* Their epoch is over: told by ops_late_run and op_fetched. */
    ops_late_add_all(pool, &pool->ops_commit);
    ops_late_add_all(pool, &pool->ops_room);
}

void
metaops_settled(struct pool *pool)
{
    ops_late_add_all(pool, &pool->ops_room);
}

void
metaops_init(struct pool *pool)
{
    pool->ops_task.run = ops_late_run;
}
