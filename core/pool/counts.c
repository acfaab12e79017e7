/*
 * What was asked of each volume since the pool was opened. The counters of a thin device
 * outlive its handles, so that a client that comes and goes leaves its trace.
 */
#include <stdlib.h>

#include "core/pool/io_private.h"

#define COUNTS_MAX 65536u /* devices that are counted; beyond, new ones are not */

struct volume_counts {
    uint32_t dev_id;
    struct volume_stats stats;
    UT_hash_handle hh;
};

struct volume_stats *
counts_of(struct pool *pool, uint32_t dev_id)
{
    struct volume_counts *c;

    HASH_FIND(hh, pool->counts, &dev_id, sizeof(dev_id), c);
    if (c)
        return &c->stats;
    if (HASH_COUNT(pool->counts) >= COUNTS_MAX)
        return NULL;
    c = calloc(1, sizeof(*c));
    if (!c)
        return NULL;
    c->dev_id = dev_id;
    HASH_ADD(hh, pool->counts, dev_id, sizeof(c->dev_id), c);
    if (!c->hh.tbl) {
        free(c);
        return NULL;
    }
    return &c->stats;
}

void
counts_add(struct volume_stats *stats, const struct volume_io *io)
{
    if (io->result < 0) {
        stats->errors++;
        return;
    }
    switch (io->op) {
    case VOLUME_READ:
        stats->reads++;
        stats->read_bytes += io->len;
        break;
    case VOLUME_WRITE:
        stats->writes++;
        stats->written_bytes += io->len;
        break;
    case VOLUME_FLUSH:
        stats->flushes++;
        break;
    case VOLUME_DISCARD:
        stats->discards++;
        stats->discarded_bytes += io->len;
        break;
    case VOLUME_WRITE_ZEROES:
        stats->zeroes++;
        stats->zeroed_bytes += io->len;
        break;
    case VOLUME_STATUS:
    case VOLUME_PREFETCH:
        break;
    }
}

static void
forget(struct pool *pool, struct volume_counts *c)
{
    HASH_DELETE(hh, pool->counts, c);
    free(c);
}

/* It is not open: nobody points to them. */
void
counts_forget(struct pool *pool, uint32_t dev_id)
{
    struct volume_counts *c;

    HASH_FIND(hh, pool->counts, &dev_id, sizeof(dev_id), c);
    if (c && !volume_core_find(pool, dev_id))
        forget(pool, c);
}

void
counts_destroy(struct pool *pool)
{
    struct volume_counts *c, *next;

    for (c = pool->counts; c; c = next) {
        next = c->hh.next;
        forget(pool, c);
    }
}

bool
pool_volume_stats(struct pool *pool, const char *name, struct volume_stats *ret_stats)
{
    struct catalogue_volume cv;
    struct volume_counts *c;

    if (!pool->catalogue || !catalogue_find(pool, name, &cv))
        return false;
    HASH_FIND(hh, pool->counts, &cv.dev_id, sizeof(cv.dev_id), c);
    if (c)
        *ret_stats = c->stats;
    else
        memset(ret_stats, 0, sizeof(*ret_stats));
    return true;
}
