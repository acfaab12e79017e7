#include "core/pool/catalogue_order.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"

void
order_init(struct order *order, int (*compare)(const void *key, const void *item),
           const void *(*key)(const void *item))
{
    memset(order, 0, sizeof(*order));
    order->compare = compare;
    order->key = key;
}

void
order_fini(struct order *order)
{
    for (uint32_t i = 0; i < order->nr_chunks; i++)
        free(order->chunks[i]);
    for (uint32_t i = 0; i < order->nr_spare; i++)
        free(order->spare[i]);
    free(order->chunks);
    free(order->spare);
    order->chunks = NULL;
    order->spare = NULL;
    order->nr_chunks = order->max_chunks = 0;
    order->nr_spare = order->max_spare = 0;
    order->nr_items = 0;
}

static int
grow_directory(struct order_chunk ***chunks, uint32_t *max, uint32_t wanted)
{
    struct order_chunk **grown;
    uint32_t to = *max ? *max : 8;

    if (wanted <= *max)
        return 0;
    while (to < wanted)
        to *= 2;
    grown = reallocarray(*chunks, to, sizeof(struct order_chunk *));
    if (!grown)
        return -ENOMEM;
    *chunks = grown;
    *max = to;
    return 0;
}

int
order_reserve(struct order *order, uint32_t n)
{
    int r;

    /* Each insert splits one chunk at most, or makes the first one. */
    r = grow_directory(&order->chunks, &order->max_chunks, order->nr_chunks + n);
    if (r == 0)
        r = grow_directory(&order->spare, &order->max_spare, n);
    while (r == 0 && order->nr_spare < n) {
        struct order_chunk *chunk = malloc(sizeof(*chunk));

        if (!chunk)
            return -ENOMEM;
        order->spare[order->nr_spare++] = chunk;
    }
    return r;
}

/* Index in the chunk of the first item at or above `key` (above it, if `above`). */
static uint32_t
search_chunk(const struct order *order, const struct order_chunk *chunk, const void *key,
             bool above)
{
    uint32_t low = 0, high = chunk->nr;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int c = order->compare(key, chunk->items[middle]);

        if (c > 0 || (above && c == 0))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The last chunk whose first item is at or below `key`; 0 if there is none. */
static uint32_t
search_directory(const struct order *order, const void *key)
{
    uint32_t low = 0, high = order->nr_chunks;

    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;

        if (order->compare(key, order->chunks[middle]->items[0]) >= 0)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static struct order_chunk *
insert_chunk(struct order *order, uint32_t at)
{
    struct order_chunk *chunk;

    THIN_ASSERT(order->nr_spare > 0);
    THIN_ASSERT(order->nr_chunks < order->max_chunks);
    chunk = order->spare[--order->nr_spare];
    chunk->nr = 0;
    memmove(order->chunks + at + 1, order->chunks + at,
            (order->nr_chunks - at) * sizeof(struct order_chunk *));
    order->chunks[at] = chunk;
    order->nr_chunks++;
    return chunk;
}

void
order_insert(struct order *order, void *item)
{
    const void *key = order->key(item);
    struct order_chunk *chunk;
    uint32_t c, i;

    if (order->nr_chunks == 0)
        insert_chunk(order, 0);
    c = search_directory(order, key);
    chunk = order->chunks[c];
    i = search_chunk(order, chunk, key, false);
    THIN_ASSERT(i == chunk->nr || order->compare(key, chunk->items[i]) != 0);

    if (chunk->nr == ORDER_CHUNK_ITEMS) {
        /* Keys that rise fill chunks whole; others split them in halves. */
        uint32_t keep = i == chunk->nr ? chunk->nr : chunk->nr / 2;
        struct order_chunk *right = insert_chunk(order, c + 1);

        right->nr = chunk->nr - keep;
        memcpy(right->items, chunk->items + keep, right->nr * sizeof(void *));
        chunk->nr = keep;
        if (i >= keep) {
            i -= keep;
            chunk = right;
        }
    }
    memmove(chunk->items + i + 1, chunk->items + i, (chunk->nr - i) * sizeof(void *));
    chunk->items[i] = item;
    chunk->nr++;
    order->nr_items++;
}

void
order_remove(struct order *order, void *item)
{
    const void *key = order->key(item);
    struct order_chunk *chunk;
    uint32_t c, i;

    THIN_ASSERT(order->nr_chunks > 0);
    c = search_directory(order, key);
    chunk = order->chunks[c];
    i = search_chunk(order, chunk, key, false);
    THIN_ASSERT(i < chunk->nr);
    THIN_ASSERT(chunk->items[i] == item);

    chunk->nr--;
    memmove(chunk->items + i, chunk->items + i + 1, (chunk->nr - i) * sizeof(void *));
    order->nr_items--;
    if (chunk->nr > 0)
        return;
    order->nr_chunks--;
    memmove(order->chunks + c, order->chunks + c + 1,
            (order->nr_chunks - c) * sizeof(struct order_chunk *));
    free(chunk);
}

static void *
search(const struct order *order, const void *key, bool above)
{
    uint32_t c, i;

    if (order->nr_chunks == 0)
        return NULL;
    if (!key)
        return order->chunks[0]->items[0];
    c = search_directory(order, key);
    i = search_chunk(order, order->chunks[c], key, above);
    if (i < order->chunks[c]->nr)
        return order->chunks[c]->items[i];
    return c + 1 < order->nr_chunks ? order->chunks[c + 1]->items[0] : NULL;
}

void *
order_find(const struct order *order, const void *key)
{
    void *item = search(order, key, false);

    return item && order->compare(key, item) == 0 ? item : NULL;
}

void *
order_above(const struct order *order, const void *key)
{
    return search(order, key, true);
}

void *
order_at_or_above(const struct order *order, const void *key)
{
    return search(order, key, false);
}

void *
order_last(const struct order *order)
{
    const struct order_chunk *chunk;

    if (order->nr_chunks == 0)
        return NULL;
    chunk = order->chunks[order->nr_chunks - 1];
    return chunk->items[chunk->nr - 1];
}
