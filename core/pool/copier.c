/*
 * Breaks sharing, or takes a first write's block from the external origin: reads the old block around the payload, writes the new one whole.
 * Copies are limited by their buffers. Blocks beyond one buffer go in pieces.
 */
#include <stdlib.h>

#include "core/base/seeded_bug.h"
#include "core/pool/origin.h"

int
copier_create(struct pool *pool)
{
    struct pool_internals *in = pool->in;
    uint64_t bytes = min_u64(pool->block_size, POOL_COPY_PIECE);

    for (unsigned i = 0; i < POOL_COPIES_MAX; i++) {
        in->copy_bufs[i] = aligned_alloc(4096, bytes);
        if (!in->copy_bufs[i])
            return -ENOMEM;
        in->nr_copy_bufs++;
    }
    return 0;
}

void
copier_destroy(struct pool *pool)
{
    struct pool_internals *in = pool->in;

    while (in && in->nr_copy_bufs > 0)
        free(in->copy_bufs[--in->nr_copy_bufs]);
}

/* One who waits for a buffer goes on, if there is one. */
static void
wake_next(struct pool_internals *in)
{
    struct volume_frag *next = TAILQ_FIRST(&in->copy_waiters);

    if (!next || in->nr_copy_bufs == 0)
        return;
    TAILQ_REMOVE(&in->copy_waiters, next, link);
    frag_run_later(next, copier_start);
}

void
copier_release(struct volume_frag *frag)
{
    struct pool_internals *in = frag->pool->in;

    if (frag->copy_buf) {
        in->copy_bufs[in->nr_copy_bufs++] = frag->copy_buf;
        frag->copy_buf = NULL;
    }
    /* Also one that was woken and ends without a buffer: the next takes his turn. */
    wake_next(in);
}

static void
copy_end(struct volume_frag *frag, int result)
{
    if (result < 0)
        frag_end(frag, result);
    else
        mapper_insert(frag);
}

/* ---- blocks of one buffer -------------------------------------------------------------------- */

static void
whole_read(struct volume_frag *frag, int result)
{
    struct pool *pool = frag->pool;
    uint64_t head = pool_block_offset(pool, frag->step_begin);
    uint64_t end = head + (frag->step_end - frag->step_begin);
    struct iovec *iov = frag->iov + 1;
    unsigned nr = frag->nr_iov;

    if (result < 0) {
        frag_end(frag, result);
        return;
    }
    if (!frag_alive(frag))
        return;
    if (head > 0) {
        iov--;
        iov->iov_base = frag->copy_buf;
        iov->iov_len = head;
        nr++;
    }
    if (end < pool->block_size) {
        iov[nr].iov_base = frag->copy_buf + end;
        iov[nr].iov_len = pool->block_size - end;
        nr++;
    }
    frag_submit(frag, DEVICE_WRITE, 0, frag->claim.dblock * pool->block_size,
                pool->block_size, iov, nr, false, copy_end);
}

static void
whole_start(struct volume_frag *frag)
{
    struct pool *pool = frag->pool;
    uint64_t head = pool_block_offset(pool, frag->step_begin);
    uint64_t end = head + (frag->step_end - frag->step_begin);
    uint64_t from = head == 0 ? end : 0;
    uint64_t to = end == pool->block_size ? head : pool->block_size;

    if (!slot_mapped(frag->old_value)) {
        uint64_t base = frag->step_begin - head;
        uint64_t reach = frag->core->origin_size - base;

        /* The origin's part, and zeros where it ends. */
        reach = max_u64(min_u64(reach, to), from);
        memset(frag->copy_buf + reach, 0, to - reach);
        frag->read_iov.iov_base = frag->copy_buf + from;
        frag->read_iov.iov_len = reach - from;
        if (reach == from)
            whole_read(frag, 0);
        else
            origin_read(frag, base + from, reach - from, &frag->read_iov, 1, whole_read);
        return;
    }
    frag->read_iov.iov_base = frag->copy_buf + from;
    frag->read_iov.iov_len = to - from;
    frag_submit(frag, DEVICE_READ, 0,
                mapping_block(frag->old_value) * pool->block_size + from, to - from,
                &frag->read_iov, 1, false, whole_read);
}

/* ---- huge blocks ---------------------------------------------------------------------------------- */

static void piece_next(struct volume_frag *frag, int result);

static void
piece_read(struct volume_frag *frag, int result)
{
    struct pool *pool = frag->pool;
    uint64_t at = frag->copy_pos;

    if (result < 0) {
        frag_end(frag, result);
        return;
    }
    if (!frag_alive(frag))
        return;
    frag->copy_pos += frag->read_iov.iov_len;
    frag_submit(frag, DEVICE_WRITE, 0, frag->claim.dblock * pool->block_size + at,
                frag->read_iov.iov_len, &frag->read_iov, 1, false, piece_next);
}

static void
piece_next(struct volume_frag *frag, int result)
{
    struct pool *pool = frag->pool;
    uint64_t head = pool_block_offset(pool, frag->step_begin);
    uint64_t len = frag->step_end - frag->step_begin;
    uint64_t to;

    if (result < 0) {
        frag_end(frag, result);
        return;
    }
    if (!frag_alive(frag))
        return;
    if (frag->copy_pos == head)
        frag->copy_pos += len; /* the payload goes there */
    if (frag->copy_pos == pool->block_size) {
        frag_submit(frag, DEVICE_WRITE, 0, frag->claim.dblock * pool->block_size + head,
                    len, frag->iov + 1, frag->nr_iov, false, copy_end);
        return;
    }
    to = frag->copy_pos < head ? head : pool->block_size;
    frag->read_iov.iov_base = frag->copy_buf;
    frag->read_iov.iov_len = min_u64(to - frag->copy_pos, POOL_COPY_PIECE);
    if (!slot_mapped(frag->old_value)) {
        uint64_t at = frag->step_begin - head + frag->copy_pos;

        if (origin_backs(frag->core, at)) {
            frag->read_iov.iov_len =
                min_u64(frag->read_iov.iov_len, frag->core->origin_size - at);
            origin_read(frag, at, frag->read_iov.iov_len, &frag->read_iov, 1, piece_read);
        } else {
            memset(frag->copy_buf, 0, frag->read_iov.iov_len);
            piece_read(frag, 0);
        }
        return;
    }
    frag_submit(frag, DEVICE_READ, 0,
                mapping_block(frag->old_value) * pool->block_size + frag->copy_pos,
                frag->read_iov.iov_len, &frag->read_iov, 1, false, piece_read);
}

/* ---- start ---------------------------------------------------------------------------------------- */

void
copier_start(struct volume_frag *frag)
{
    struct pool *pool = frag->pool;
    struct pool_internals *in = pool->in;
    uint64_t old = mapping_block(frag->old_value) * pool->block_size;

    if (!frag_alive(frag))
        return;
    /* Writes from before the snapshot belong to both sides of the copy. */
    if (slot_mapped(frag->old_value) && !seeded_bug(SEEDED_COPY_EARLY) &&
        inflight_overlaps(pool, old, old + pool->block_size, INFLIGHT_WRITE)) {
        frag->resume = copier_start;
        TAILQ_INSERT_TAIL(&in->inflight_waiters, frag, link);
        wake_next(in);
        return;
    }
    if (!frag->copy_buf) {
        if (in->nr_copy_bufs == 0) {
            TAILQ_INSERT_TAIL(&in->copy_waiters, frag, link);
            return;
        }
        frag->copy_buf = in->copy_bufs[--in->nr_copy_bufs];
    }
    frag->copy_pos = 0;
    if (pool->block_size <= POOL_COPY_PIECE)
        whole_start(frag);
    else
        piece_next(frag, 0);
}
