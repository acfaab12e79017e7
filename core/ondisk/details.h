/* A value of the device details tree. Source: FORMAT.md section 6.2. */
#ifndef THIN_CORE_ONDISK_DETAILS_H
#define THIN_CORE_ONDISK_DETAILS_H

#include <stdint.h>

#include "core/base/bytes.h"
#include "core/ondisk/node.h"

struct device_details {
    uint64_t mapped_blocks;
    uint64_t transaction_id; /* the pool's when the device was created */
    uint32_t creation_time;
    uint32_t snapshotted_time;
};

static inline void
device_details_decode(struct device_details *ret, const void *p)
{
    const uint8_t *b = p;

    ret->mapped_blocks = load_le64(b);
    ret->transaction_id = load_le64(b + 8);
    ret->creation_time = load_le32(b + 16);
    ret->snapshotted_time = load_le32(b + 20);
}

static inline void
device_details_encode(const struct device_details *d, void *p)
{
    uint8_t *b = p;

    store_le64(b, d->mapped_blocks);
    store_le64(b + 8, d->transaction_id);
    store_le32(b + 16, d->creation_time);
    store_le32(b + 20, d->snapshotted_time);
}

#endif
