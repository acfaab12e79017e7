/*
 * An ordered set of pointers: a sorted array in chunks, so that finding is a binary
 * search, walking is in order, and inserting moves at most one chunk. The order comes
 * from the keys alone. One thread; borrows its items.
 *
 * No list of a library that we use is ordered and can promise its memory beforehand.
 */
#ifndef THIN_CORE_POOL_CATALOGUE_ORDER_H
#define THIN_CORE_POOL_CATALOGUE_ORDER_H

#include <stddef.h>
#include <stdint.h>

#define ORDER_CHUNK_ITEMS 256u

struct order_chunk {
    uint32_t nr;
    void *items[ORDER_CHUNK_ITEMS];
};

struct order {
    /* Below, equal or above zero as `key` stands to the item's key. */
    int (*compare)(const void *key, const void *item);
    const void *(*key)(const void *item);
    struct order_chunk **chunks;
    uint32_t nr_chunks, max_chunks;
    struct order_chunk **spare; /* made by order_reserve */
    uint32_t nr_spare, max_spare;
    uint64_t nr_items;
};

void order_init(struct order *order, int (*compare)(const void *key, const void *item),
                const void *(*key)(const void *item));
void order_fini(struct order *order); /* the items are not touched */

/* From here on `n` inserts cannot fail. -ENOMEM. */
int order_reserve(struct order *order, uint32_t n);

/* Asserts that the key is not there and that room was reserved. */
void order_insert(struct order *order, void *item);
/* Asserts that exactly this item is there. */
void order_remove(struct order *order, void *item);

void *order_find(const struct order *order, const void *key);
/* First item above `key`; NULL key: the first of all. */
void *order_above(const struct order *order, const void *key);
/* First item at or above `key`. */
void *order_at_or_above(const struct order *order, const void *key);
void *order_last(const struct order *order);

#endif
