/*
 * Requests at the data device, found by place: a copy out of a block waits for the
 * writes to it, and a freed block is not handed out while one of them still uses it.
 */
#include "core/pool/io_private.h"

static unsigned
bucket_of(uint64_t offset)
{
    return (unsigned)(offset >> INFLIGHT_SHIFT) & (INFLIGHT_BUCKETS - 1);
}

void
inflight_add(struct pool *pool, struct pool_inflight *fl, uint64_t begin, uint64_t len,
             unsigned flags)
{
    fl->begin = begin;
    fl->end = begin + len;
    fl->flags = flags;
    TAILQ_INSERT_TAIL(&pool->in->inflight[bucket_of(begin)], fl, link);
    pool->in->nr_inflight++;
}

void
inflight_remove(struct pool *pool, struct pool_inflight *fl)
{
    struct pool_internals *in = pool->in;
    struct volume_frag *frag;

    TAILQ_REMOVE(&in->inflight[bucket_of(fl->begin)], fl, link);
    in->nr_inflight--;
    if (!(fl->flags & INFLIGHT_WAKE))
        return;
    while ((frag = TAILQ_FIRST(&in->inflight_waiters))) {
        TAILQ_REMOVE(&in->inflight_waiters, frag, link);
        frag_run_later(frag, frag->resume);
    }
    space_recheck_held(pool);
}

static bool
bucket_overlaps(struct inflight_list *list, uint64_t begin, uint64_t end, unsigned flags)
{
    struct pool_inflight *fl;
    bool found = false;

    TAILQ_FOREACH(fl, list, link) {
        if (fl->begin < end && fl->end > begin && (!flags || (fl->flags & flags))) {
            fl->flags |= INFLIGHT_WAKE;
            found = true;
        }
    }
    return found;
}

bool
inflight_overlaps(struct pool *pool, uint64_t begin, uint64_t end, unsigned flags)
{
    struct pool_internals *in = pool->in;
    uint64_t stretch = begin >> INFLIGHT_SHIFT;
    uint64_t last = (end - 1) >> INFLIGHT_SHIFT;
    bool found = false;

    if (!in->nr_inflight)
        return false;
    /* A request is found by its begin, and is no longer than one stretch. */
    if (stretch > 0)
        stretch--;
    if (last - stretch >= INFLIGHT_BUCKETS) {
        for (unsigned i = 0; i < INFLIGHT_BUCKETS; i++)
            found |= bucket_overlaps(&in->inflight[i], begin, end, flags);
        return found;
    }
    for (; stretch <= last; stretch++)
        found |= bucket_overlaps(&in->inflight[stretch & (INFLIGHT_BUCKETS - 1)], begin,
                                 end, flags);
    return found;
}
