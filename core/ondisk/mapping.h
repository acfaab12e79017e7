/* A value of a mapping tree: data block and time. Source: FORMAT.md section 6.1. */
#ifndef THIN_CORE_ONDISK_MAPPING_H
#define THIN_CORE_ONDISK_MAPPING_H

#include <stdint.h>

#include "core/ondisk/block.h"

#define MAPPING_TIME_BITS 24

static inline uint64_t
mapping_pack(dblock_t block, uint32_t time)
{
    return block << MAPPING_TIME_BITS | time;
}

static inline dblock_t
mapping_block(uint64_t value)
{
    return value >> MAPPING_TIME_BITS;
}

static inline uint32_t
mapping_time(uint64_t value)
{
    return (uint32_t)(value & ((1u << MAPPING_TIME_BITS) - 1));
}

#endif
