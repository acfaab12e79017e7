/*
 * Reference counts as a walk finds them: one byte for each block in chunks that are
 * made when first touched, with the higher parts of the few large counts beside. A
 * chunk covers what one bitmap of a space map covers, so an absent chunk means that
 * the bitmap must be all zero.
 */
#ifndef THIN_CORE_OFFLINE_COUNTS_H
#define THIN_CORE_OFFLINE_COUNTS_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/ondisk/bitmap.h"

struct count_chunk {
    uint32_t *carry; /* how often the byte wrapped; NULL while none did */
    uint8_t low[BITMAP_ENTRIES];
};

struct count_slab;
struct counts {
    uint64_t nr; /* blocks 0 .. nr - 1 */
    uint64_t nr_chunks;
    struct count_chunk **chunk;
    struct count_slab *slabs; /* what the chunks of a large table are cut from */
};

/* All zero. -ENOMEM. */
int counts_init(struct counts *c, uint64_t nr);
void counts_fini(struct counts *c);

/* Makes `to` (not initialised) the same as `from`. -ENOMEM. */
int counts_copy(struct counts *to, const struct counts *from);

/* The chunk, made if need be; NULL when there is no memory. */
struct count_chunk *counts_touch(struct counts *c, uint64_t k);
int counts_carry(struct count_chunk *chunk, uint32_t e);

/* Adds one to block b (< nr). -ENOMEM. */
static inline int
counts_inc(struct counts *c, uint64_t b)
{
    uint64_t k = b / BITMAP_ENTRIES;
    uint32_t e = (uint32_t)(b - k * BITMAP_ENTRIES);
    struct count_chunk *chunk = c->chunk[k];

    if (__builtin_expect(!chunk, 0)) {
        chunk = counts_touch(c, k);
        if (!chunk)
            return -ENOMEM;
    }
    if (__builtin_expect(++chunk->low[e] == 0, 0))
        return counts_carry(chunk, e);
    return 0;
}

/* The chunk that was counted in last: neighbours are mapped to neighbours, so it is looked
   up rarely. Zeroed to begin with. */
struct counts_near {
    struct count_chunk *chunk;
    uint64_t begin;
};

/* As counts_inc. */
static inline int
counts_inc_near(struct counts *c, struct counts_near *near, uint64_t b)
{
    if (!near->chunk || b - near->begin >= BITMAP_ENTRIES) {
        near->begin = b - b % BITMAP_ENTRIES;
        near->chunk = counts_touch(c, b / BITMAP_ENTRIES);
        if (!near->chunk)
            return -ENOMEM;
    }
    if (__builtin_expect(++near->chunk->low[b - near->begin] == 0, 0))
        return counts_carry(near->chunk, (uint32_t)(b - near->begin));
    return 0;
}

/* Takes one from block b, whose count is not 0. */
void counts_dec(struct counts *c, uint64_t b);

/* Adds one to each of `len` blocks from b on, all < nr. */
int counts_inc_run(struct counts *c, uint64_t b, uint64_t len);

static inline uint64_t
count_chunk_get(const struct count_chunk *chunk, uint32_t e)
{
    if (!chunk)
        return 0;
    return chunk->low[e] + (chunk->carry ? (uint64_t)chunk->carry[e] << 8 : 0);
}

static inline uint64_t
counts_get(const struct counts *c, uint64_t b)
{
    uint64_t k = b / BITMAP_ENTRIES;

    return count_chunk_get(c->chunk[k], (uint32_t)(b - k * BITMAP_ENTRIES));
}

#endif
