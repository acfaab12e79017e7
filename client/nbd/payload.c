#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/nbd/bridge_private.h"
#include "core/base/assert.h"

void
payload_pool_init(struct payload_pool *pool, size_t limit)
{
    memset(pool, 0, sizeof(*pool));
    pool->limit = limit;
    for (unsigned i = 0; i < PAYLOAD_CLASSES; i++)
        SLIST_INIT(&pool->free[i]);
}

static void
free_piece(struct payload *payload)
{
    free(payload->iov.iov_base);
    free(payload);
}

void
payload_pool_fini(struct payload_pool *pool)
{
    THIN_ASSERT(pool->lent == 0);
    for (unsigned i = 0; i < PAYLOAD_CLASSES; i++)
        while (!SLIST_EMPTY(&pool->free[i])) {
            struct payload *payload = SLIST_FIRST(&pool->free[i]);

            SLIST_REMOVE_HEAD(&pool->free[i], link);
            free_piece(payload);
        }
    pool->spare = 0;
}

static unsigned
class_of(size_t len)
{
    unsigned class = 0;

    while (((size_t)1 << (PAYLOAD_MIN_SHIFT + class)) < len)
        class ++;
    return class;
}

static struct payload *
make_piece(size_t bytes)
{
    struct payload *payload = calloc(1, sizeof(*payload));
    void *memory = NULL;

    if (!payload || posix_memalign(&memory, 4096, bytes) != 0) {
        free(payload);
        return NULL;
    }
    payload->iov.iov_base = memory;
    payload->bytes = bytes;
    return payload;
}

int
payload_get(struct payload_pool *pool, size_t len, struct payload **ret)
{
    unsigned class = class_of(len);
    size_t bytes = (size_t)1 << (PAYLOAD_MIN_SHIFT + class);
    struct payload *payload;

    if (bytes > pool->limit)
        return -THIN_E_LIMIT;
    if (pool->lent + bytes > pool->limit)
        return -THIN_E_WOULD_BLOCK;
    payload = SLIST_FIRST(&pool->free[class]);
    if (payload) {
        SLIST_REMOVE_HEAD(&pool->free[class], link);
        pool->spare -= bytes;
    } else {
        payload = make_piece(bytes);
        if (!payload)
            return -ENOMEM;
    }
    pool->lent += bytes;
    payload->iov.iov_len = len;
    *ret = payload;
    return 0;
}

void
payload_put(struct payload_pool *pool, struct payload *payload)
{
    THIN_ASSERT(pool->lent >= payload->bytes);
    pool->lent -= payload->bytes;
    if (pool->spare + payload->bytes > BRIDGE_SPARE_BYTES) {
        free_piece(payload);
        return;
    }
    SLIST_INSERT_HEAD(&pool->free[class_of(payload->bytes)], payload, link);
    pool->spare += payload->bytes;
}
