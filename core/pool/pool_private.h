/*
 * What the files of core/pool share: the pool's own struct, the runner of metadata
 * operations, and how to wait for a commit. Not for other rooms.
 */
#ifndef THIN_CORE_POOL_POOL_PRIVATE_H
#define THIN_CORE_POOL_POOL_PRIVATE_H

#include "core/base/random.h"
#include "core/metadata/metadata.h"
#include "core/pool/pool.h"

/*
 * One metadata operation, whole or not at all (metaop.c). `run` makes its changes
 * between metadata_op_begin and metadata_op_end, both called by the runner; it may be
 * run again from the start any number of times (a missing block was fetched, a commit
 * was waited for), so it must draw its conclusions anew each time and change no other
 * state; what follows from success is done in `done`.
 *
 *   runs ─ WOULD_BLOCK ─► undo, fetch, run again
 *        ─ NEED_COMMIT, CACHE_FULL ─► undo, wait for a commit, run again
 *        ─ other errors ─► undo, done(error)
 *        ─ 0 ─► admitted and kept, done(0) at once, on the same turn: nothing runs between
 *
 * Operations are tried in the order of arrival; one that waits does not hold up others.
 */
struct metaop {
    int (*run)(struct metaop *op, struct thin_error *err);
    void (*done)(struct metaop *op, int result, const struct thin_error *err);
    enum tm_purse purse;
    const char *name; /* of the step, for the histogram of step times */
    bool reads_only;  /* no op_begin/op_end around it */

    /* The runner's. */
    struct pool *pool;
    struct bm_fetch fetch;
    struct thin_task task;
    unsigned state;
    uint64_t epoch;
    unsigned
        commits_waited; /* gives up with NO_METADATA_SPACE / NO_DATA_SPACE after some */
    TAILQ_ENTRY(metaop) link;
};

/*
 * Starts the operation. It may run at once, but `done` is only called from inside this
 * call if `may_finish_now` (the data path's hot case); else always later.
 */
void metaop_start(struct pool *pool, struct metaop *op, bool may_finish_now);

/*
 * Waiting for durability (commit.c): `done` when the transaction `txn` is durable and,
 * if `flush_data`, a data flush submitted after this call has succeeded. Starts a commit
 * if it must. Many waiters share one commit and one flush. With a roll-back between:
 * -THIN_E_ROLLED_BACK.
 */
struct commit_wait {
    void (*done)(struct commit_wait *wait, int result);
    uint64_t txn; /* 0: only the data flush */
    bool flush_data;
    /* The committer's. */
    uint64_t flush_seq;
    TAILQ_ENTRY(commit_wait) link;
};
void commit_join(struct pool *pool, struct commit_wait *wait);
/* A change was made in the open transaction: arms the interval, heeds the bounds. */
void commit_note_change(struct pool *pool);

#endif
