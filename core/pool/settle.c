/*
 * The superblock that was read may not be durable: a write that failed, and left its trace
 * in a cache that loses it with the power. Then an older one comes back, and whatever was
 * written meanwhile may lie in blocks that only the older one uses, in the metadata and in
 * the data. So before a pool that was loaded writes anything, it writes what it stands on.
 * The blocks that this superblock names were flushed before it was written at first. A
 * pool that nobody changes is not written to.
 */
#include "core/base/seeded_bug.h"
#include "core/pool/io_private.h"

bool
pool_is_settled(const struct pool *pool)
{
    return pool->settled || seeded_bug(SEEDED_NOT_SETTLED);
}

static void
settle_written(void *arg, int result)
{
    struct pool *pool = arg;
    struct settle_wait_list waits = TAILQ_HEAD_INITIALIZER(waits);
    struct settle_wait *wait;

    pool->settling = false;
    pool->commit.md_io--;
    if (pool->settle_epoch != pool->epoch) {
        result = -THIN_E_ROLLED_BACK;
    } else {
        pool->settled = result == 0;
        pool->settle_result = result;
        if (result < 0)
            pool_set_mode(pool, POOL_READ_ONLY, WHAT_TO_DO_DEVICE,
                          "the superblock cannot be written (%s)", thin_strerror(result));
    }
    TAILQ_CONCAT(&waits, &pool->settle_waits, link);
    while ((wait = TAILQ_FIRST(&waits))) {
        TAILQ_REMOVE(&waits, wait, link);
        wait->done(wait, result);
    }
    metaops_settled(pool);
    pool_check_idle(pool);
}

void
pool_settle_begin(struct pool *pool)
{
    if (pool->settling)
        return;
    pool->settling = true;
    pool->settle_epoch = pool->epoch;
    pool->commit.md_io++; /* closing and roll-back wait for it */
    metadata_settle(pool->md, settle_written, pool);
}

void
pool_settle(struct pool *pool, struct settle_wait *wait)
{
    TAILQ_INSERT_TAIL(&pool->settle_waits, wait, link);
    pool_settle_begin(pool);
}
