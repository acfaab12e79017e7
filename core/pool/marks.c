/* How far the pool's changes are durable, for who keeps what is not. */
#include "core/base/seeded_bug.h"
#include "core/pool/pool_private.h"

void
pool_get_marks(struct pool *pool, struct pool_marks *ret_marks)
{
    uint64_t base = catalogue_change_base(pool);

    ret_marks->stable = base + pool->commit.durable_txn;
    /* While a roll-back goes on, a write that ends is in no transaction: whatever is
       stable, it is not. */
    ret_marks->change = pool->metadata_ready
                            ? base + metadata_txn(pool->md)
                            : base + pool->commit.durable_txn +
                                  (seeded_bug(SEEDED_STABLE_TOO_EARLY) ? 0 : 1);
    ret_marks->incarnation = catalogue_incarnation(pool);
}
