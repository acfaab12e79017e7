#include "core/offline/leaf_cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int
leaf_cache_init(struct leaf_cache *cache, mblock_t nr_blocks)
{
    memset(cache, 0, sizeof(*cache));
    cache->nr_blocks = nr_blocks;
    cache->met = calloc(nr_blocks / 8 + 1, 1);
    cache->bytes = malloc((size_t)LEAF_CACHE_BLOCKS * METADATA_BLOCK_SIZE);
    cache->blocks = calloc(LEAF_CACHE_BLOCKS, sizeof(*cache->blocks));
    cache->used = calloc(LEAF_CACHE_BLOCKS, sizeof(*cache->used));
    return cache->met && cache->bytes && cache->blocks && cache->used ? 0 : -ENOMEM;
}

void
leaf_cache_fini(struct leaf_cache *cache)
{
    free(cache->met);
    free(cache->bytes);
    free(cache->blocks);
    free(cache->used);
    memset(cache, 0, sizeof(*cache));
}

void
leaf_cache_next_window(struct leaf_cache *cache)
{
    cache->window++;
}

/* Blocks in a row go to sets in a row. */
static uint32_t
set_of(mblock_t b)
{
    return (uint32_t)(b % (LEAF_CACHE_BLOCKS / LEAF_CACHE_WAYS)) * LEAF_CACHE_WAYS;
}

static uint8_t *
slot_bytes(const struct leaf_cache *cache, uint32_t slot)
{
    return cache->bytes + (size_t)slot * METADATA_BLOCK_SIZE;
}

const uint8_t *
leaf_cache_find(struct leaf_cache *cache, mblock_t b)
{
    uint32_t first = set_of(b);

    for (uint32_t i = first; i < first + LEAF_CACHE_WAYS && b; i++)
        if (cache->blocks[i] == b) {
            cache->used[i] = cache->window;
            return slot_bytes(cache, i);
        }
    return NULL;
}

const uint8_t *
leaf_cache_put(struct leaf_cache *cache, mblock_t b, const uint8_t *data)
{
    uint32_t first = set_of(b), victim = first;
    uint8_t bit = (uint8_t)(1u << (b % 8));

    if (b >= cache->nr_blocks)
        return NULL;
    if (!(cache->met[b / 8] & bit)) {
        cache->met[b / 8] |= bit;
        return NULL;
    }
    for (uint32_t i = first; i < first + LEAF_CACHE_WAYS; i++)
        if (cache->used[i] < cache->used[victim])
            victim = i;
    if (cache->used[victim] == cache->window)
        return NULL;
    cache->blocks[victim] = b;
    cache->used[victim] = cache->window;
    return memcpy(slot_bytes(cache, victim), data, METADATA_BLOCK_SIZE);
}
