/*
 * A B-tree node in its 4096-byte block: header, keys, then values behind the *whole*
 * key array. Accessors take the block's bytes and trust it: node_judge comes first.
 * Source: FORMAT.md section 4.
 */
#ifndef THIN_CORE_ONDISK_NODE_H
#define THIN_CORE_ONDISK_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/bytes.h"
#include "core/ondisk/block.h"

enum { NODE_INTERNAL = 1, NODE_LEAF = 2 };

enum {
    NODE_FLAGS = 4,
    NODE_NR_ENTRIES = 16,
    NODE_MAX_ENTRIES = 20,
    NODE_VALUE_SIZE = 24,
    NODE_PADDING = 28,
    NODE_KEYS = 32,
};

/* Value sizes of the format's trees. */
enum {
    VALUE_SIZE_MAPPING = 8, /* also every internal node and the top level */
    VALUE_SIZE_DETAILS = 24,
    VALUE_SIZE_INDEX = 16,
    VALUE_SIZE_COUNT = 4,
    VALUE_SIZE_MAX = 24,
};

/* 252, 126, 168 or 336 for the sizes above; divisible by three. */
static inline uint32_t
node_max_entries_for(uint32_t value_size)
{
    return 3 * (((METADATA_BLOCK_SIZE - NODE_KEYS) / (8 + value_size)) / 3);
}

static inline bool
node_is_leaf(const void *b)
{
    return load_le32((const uint8_t *)b + NODE_FLAGS) == NODE_LEAF;
}

static inline uint32_t
node_nr_entries(const void *b)
{
    return load_le32((const uint8_t *)b + NODE_NR_ENTRIES);
}

static inline uint32_t
node_max_entries(const void *b)
{
    return load_le32((const uint8_t *)b + NODE_MAX_ENTRIES);
}

static inline uint32_t
node_value_size(const void *b)
{
    return load_le32((const uint8_t *)b + NODE_VALUE_SIZE);
}

static inline mblock_t
node_own_number(const void *b)
{
    return load_le64((const uint8_t *)b + 8);
}

static inline uint64_t
node_key(const void *b, uint32_t i)
{
    return load_le64((const uint8_t *)b + NODE_KEYS + 8 * (size_t)i);
}

static inline void
node_set_key(void *b, uint32_t i, uint64_t key)
{
    store_le64((uint8_t *)b + NODE_KEYS + 8 * (size_t)i, key);
}

static inline const uint8_t *
node_value(const void *b, uint32_t i)
{
    return (const uint8_t *)b + NODE_KEYS + 8 * (size_t)node_max_entries(b) +
           (size_t)node_value_size(b) * i;
}

static inline uint8_t *
node_value_rw(void *b, uint32_t i)
{
    return (uint8_t *)b + NODE_KEYS + 8 * (size_t)node_max_entries(b) +
           (size_t)node_value_size(b) * i;
}

/* Value of an entry with value_size 8: a child, a device's root or a mapping. */
static inline uint64_t
node_value64(const void *b, uint32_t i)
{
    return load_le64(node_value(b, i));
}

static inline void
node_set_nr_entries(void *b, uint32_t n)
{
    store_le32((uint8_t *)b + NODE_NR_ENTRIES, n);
}

/* Zeroes the block and makes an empty node of it. */
void node_init(void *b, bool leaf, uint32_t max_entries, uint32_t value_size);

/* Greatest i with key[i] <= key, or -1. */
int node_lower_bound(const void *b, uint64_t key);

/*
 * Judges the header and the order of keys of a block whose checksum is good:
 * I1 and I2 of the format. `value_size` is what the tree's leaves need; an internal
 * node must have 8. -THIN_E_BAD_BLOCK with words.
 */
int node_judge(const void *b, uint32_t value_size, struct thin_error *err);

#endif
