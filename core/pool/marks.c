/* How far the pool's changes are durable, for who keeps what is not. */
#include "core/pool/pool_private.h"

void
pool_get_marks(struct pool *pool, struct pool_marks *ret_marks)
{
    ret_marks->stable = pool->commit.durable_txn;
    ret_marks->change =
        pool->metadata_ready ? metadata_txn(pool->md) : pool->commit.durable_txn;
    ret_marks->incarnation = catalogue_incarnation(pool);
}
