/*
 * Good leaves that more than one device holds, kept between the devices: with snapshots
 * nearly every leaf comes again. A leaf enters when it is met the second time, so a pool
 * without sharing costs one bit for each metadata block and nothing else.
 *
 * One cursor at a time. What a window has found or put stays until the next window.
 */
#ifndef THIN_CORE_OFFLINE_LEAF_CACHE_H
#define THIN_CORE_OFFLINE_LEAF_CACHE_H

#include <stdint.h>

#include "core/ondisk/block.h"

#define LEAF_CACHE_BLOCKS 8192u /* 32 MiB, touched as it fills */
#define LEAF_CACHE_WAYS   4u

struct leaf_cache {
    mblock_t nr_blocks;
    uint8_t *met;     /* one bit for each metadata block: asked for before */
    uint8_t *bytes;   /* LEAF_CACHE_BLOCKS blocks */
    mblock_t *blocks; /* what each holds; 0: nothing */
    uint32_t *used;   /* the window that used it last */
    uint32_t window;
};

/* For block numbers below `nr_blocks`. -ENOMEM; fini also then. */
int leaf_cache_init(struct leaf_cache *cache, mblock_t nr_blocks);
void leaf_cache_fini(struct leaf_cache *cache);

/* What was found before may go. */
void leaf_cache_next_window(struct leaf_cache *cache);

/* The contents of block b, or NULL. */
const uint8_t *leaf_cache_find(struct leaf_cache *cache, mblock_t b);

/* Copies a good leaf that was not found; NULL if it is not worth it, or there is no
   place that this window does not need. */
const uint8_t *leaf_cache_put(struct leaf_cache *cache, mblock_t b, const uint8_t *data);

#endif
