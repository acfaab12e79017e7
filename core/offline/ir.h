/*
 * The contents of a pool's metadata as a row of calls: what every reader (the live
 * trees, XML, what repair finds) feeds, and every writer (XML, text, JSON, the builder
 * of a new device) implements. Devices come in order of their ids, mappings in order
 * of virtual blocks, joined to the longest runs.
 */
#ifndef THIN_CORE_OFFLINE_IR_H
#define THIN_CORE_OFFLINE_IR_H

#include <stdbool.h>
#include <stdint.h>

#include "core/ondisk/block.h"

struct ir_superblock {
    char uuid[64]; /* as in the XML: normally empty */
    uint32_t time;
    uint64_t trans_id;
    uint32_t flags;
    uint32_t version;
    uint32_t data_block_size; /* sectors */
    uint64_t nr_data_blocks;
    bool has_catalogue; /* `catalogue`: the device that is no volume, but thinsrv's own */
    uint32_t catalogue;
};

struct ir_device {
    uint64_t dev_id;
    uint64_t mapped_blocks; /* as recorded */
    uint64_t trans_id;
    uint32_t creation_time;
    uint32_t snap_time;
};

struct ir_run {
    vblock_t virt;
    dblock_t data;
    uint64_t len;
    uint32_t time;
};

/* Each returns 0, or a negative code that ends the row. */
struct ir_visitor {
    int (*superblock)(void *arg, const struct ir_superblock *sb);
    int (*device_begin)(void *arg, const struct ir_device *dev);
    int (*run)(void *arg, const struct ir_run *run);
    int (*device_end)(void *arg);
    int (*end)(void *arg); /* only after everything has come */
};

#endif
