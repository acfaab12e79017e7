/*
 * The superblock that was read may not be durable: a write that failed, and left its trace
 * in a cache that loses it with the power. Then an older one comes back, and whatever was
 * written meanwhile may lie in blocks that only the older one uses, in the metadata and in
 * the data. So before a pool that was loaded writes anything, it writes what it stands on.
 * The blocks that this superblock names were flushed before it was written at first.
 */
#include "core/base/seeded_bug.h"
#include "core/pool/io_private.h"

static void
settle_written(void *arg, int result)
{
    struct pool *pool = arg;

    pool->commit.md_io--;
    pool->end->settled(pool, result);
    pool_check_idle(pool);
}

void
pool_settle(struct pool *pool, void (*settled)(struct pool *pool, int result))
{
    if (seeded_bug(SEEDED_NOT_SETTLED)) {
        settled(pool, 0);
        return;
    }
    pool->end->settled = settled;
    pool->commit.md_io++; /* closing waits for it */
    metadata_settle(pool->md, settle_written, pool);
}
