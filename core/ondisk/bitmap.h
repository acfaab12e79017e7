/*
 * Reference count bitmaps, index entries and the metadata space map's index block.
 * Source: FORMAT.md section 7.
 */
#ifndef THIN_CORE_ONDISK_BITMAP_H
#define THIN_CORE_ONDISK_BITMAP_H

#include <stdint.h>

#include "core/base/bytes.h"
#include "core/ondisk/block.h"

#define BITMAP_HEADER_BYTES   16u
#define BITMAP_ENTRIES        16320u /* 2-bit counts in one bitmap */
#define INDEX_BLOCK_ENTRIES   255u
#define INDEX_ENTRY_BYTES     16u
#define BITMAP_COUNT_OVERFLOW 3u /* look in the overflow tree */

struct index_entry {
    mblock_t blocknr;
    uint32_t nr_free;          /* kernel convention: over all 16320 entries */
    uint32_t none_free_before; /* a lower bound; 0 is always right */
};

static inline void
index_entry_decode(struct index_entry *ret, const void *p)
{
    ret->blocknr = load_le64(p);
    ret->nr_free = load_le32((const uint8_t *)p + 8);
    ret->none_free_before = load_le32((const uint8_t *)p + 12);
}

static inline void
index_entry_encode(const struct index_entry *e, void *p)
{
    store_le64(p, e->blocknr);
    store_le32((uint8_t *)p + 8, e->nr_free);
    store_le32((uint8_t *)p + 12, e->none_free_before);
}

/* Place of entry i inside an index block. */
static inline uint8_t *
index_block_entry(void *block, uint32_t i)
{
    return (uint8_t *)block + BITMAP_HEADER_BYTES + (size_t)INDEX_ENTRY_BYTES * i;
}

static inline const uint8_t *
index_block_entry_ro(const void *block, uint32_t i)
{
    return (const uint8_t *)block + BITMAP_HEADER_BYTES + (size_t)INDEX_ENTRY_BYTES * i;
}

/* Count 0 to 3 of entry e (< 16320). The lower-numbered bit is the high one. */
static inline unsigned
bitmap_get(const void *block, uint32_t e)
{
    unsigned pair =
        (((const uint8_t *)block)[BITMAP_HEADER_BYTES + e / 4] >> (2 * (e % 4))) & 3u;

    return (pair & 1u) << 1 | pair >> 1;
}

static inline void
bitmap_set(void *block, uint32_t e, unsigned count)
{
    uint8_t *p = (uint8_t *)block + BITMAP_HEADER_BYTES + e / 4;
    unsigned pair = (count & 1u) << 1 | (count >> 1 & 1u);

    *p = (uint8_t)((*p & ~(3u << (2 * (e % 4)))) | pair << (2 * (e % 4)));
}

/* First entry of count 0 in [begin, end), or `end`. */
uint32_t bitmap_find_free(const void *block, uint32_t begin, uint32_t end);

/* Number of entries with count 0 in [0, end). */
uint32_t bitmap_count_free(const void *block, uint32_t end);

/* Number of entries, all of them, that say "above 2". */
uint32_t bitmap_count_overflows(const void *block);

#endif
