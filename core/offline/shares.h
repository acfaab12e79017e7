/*
 * How many blocks each device has for itself: mapped by no other device. One walk over
 * the distinct nodes tells the leaves that only one device reaches; counters up to 2
 * tell the data blocks; a second pass over those leaves adds up.
 */
#ifndef THIN_CORE_OFFLINE_SHARES_H
#define THIN_CORE_OFFLINE_SHARES_H

#include "core/offline/live.h"

struct device_shares {
    uint64_t mapped;    /* entries of its tree */
    uint64_t exclusive; /* of them, blocks that no other device maps */
    bool any;
    vblock_t highest; /* mapped, if any */
};

/* Fills one entry for each of pool->devices, in their order. Damage is an error. */
int shares_count(struct live_pool *pool, struct device_shares *ret,
                 struct thin_error *err);

#endif
