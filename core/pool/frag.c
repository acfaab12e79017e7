/*
 * Fragments: the objects that carry a part of a request through the engine. A fixed
 * number for each pool, made at open; a request that finds none waits its turn.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/pool/io_private.h"

/* One that never was in use, when the free ones have ended: an open touches none of them. */
static void
begin_frag(struct pool_internals *in)
{
    struct volume_frag *frag = &in->frags[in->nr_frags_begun];

    if (!TAILQ_EMPTY(&in->free_frags) || in->nr_frags_begun == POOL_FRAGS_MAX)
        return;
    memset(frag, 0, sizeof(*frag));
    TAILQ_INSERT_TAIL(&in->free_frags, frag, link);
    in->nr_frags_begun++;
}

struct volume_frag *
frag_get(struct volume_io *io, enum frag_kind kind)
{
    struct pool *pool = io->volume->pool;
    struct pool_internals *in = pool->in;
    struct volume_frag *frag = TAILQ_FIRST(&in->free_frags);

    if (!frag)
        return NULL;
    TAILQ_REMOVE(&in->free_frags, frag, link);
    begin_frag(in);
    in->frags_used++;
    io->nr_frags++;
    frag->io = io;
    frag->pool = pool;
    frag->core = io->volume->core;
    frag->kind = kind;
    frag->epoch = pool->epoch;
    frag->cell.core = NULL;
    frag->claim.window = NULL;
    frag->copy_buf = NULL;
    frag->stage = 0;
    frag->result = 0;
    frag->commits_waited = 0;
    frag->partial = frag->sector_ready = false;
    frag->if_empty = false;
    frag->resume = NULL;
    return frag;
}

/* Everything that the step held goes back. */
static void
frag_release(struct volume_frag *frag)
{
    if (frag->claim.window)
        space_claim_end(frag, false);
    copier_release(frag);
    cell_release(frag);
    frag->partial = frag->sector_ready = false;
    frag->stage = 0;
}

void
frag_end(struct volume_frag *frag, int result)
{
    struct volume_io *io = frag->io;
    struct pool *pool = frag->pool;
    struct pool_internals *in = pool->in;

    frag_release(frag);
    if (frag->kind == FRAG_LOOKUP)
        io->state &= ~IO_LOOKUP;
    if (result < 0 && io->result == 0)
        io->result = result;
    TAILQ_INSERT_HEAD(&in->free_frags, frag, link);
    in->frags_used--;
    io->nr_frags--;
    if (!TAILQ_EMPTY(&in->starved))
        loop_defer(pool->loop, &in->starved_task);
    if (pool->closing || pool->rolling_back)
        pool_check_idle(pool);
    if (!(io->state & IO_ADVANCING))
        io_advance(io);
}

void
frag_no_space(struct volume_frag *frag)
{
    struct volume_io *io = frag->io;

    io->redo_from = min_u64(io->redo_from, frag->begin - io->offset);
    io->state |= IO_PARKED;
    frag_end(frag, 0);
}

bool
frag_alive(struct volume_frag *frag)
{
    int code;

    if (frag->epoch != frag->pool->epoch)
        code = -THIN_E_ROLLED_BACK;
    else if (frag->io->volume->fenced)
        code = frag->io->volume->fenced;
    else
        return true;
    frag_end(frag, code);
    return false;
}

void
frag_run(struct volume_frag *frag)
{
    if (!frag_alive(frag))
        return;
    if (frag->begin >= frag->end && frag->kind != FRAG_WAIT) {
        frag_end(frag, 0);
        return;
    }
    switch (frag->kind) {
    case FRAG_LOOKUP:
        frag_lookup(frag, pool_vblock(frag->pool, frag->begin));
        break;
    case FRAG_READ:
        read_step(frag);
        break;
    case FRAG_WRITE:
    case FRAG_ZEROES:
        write_step(frag);
        break;
    case FRAG_UNMAP:
        unmap_step(frag);
        break;
    case FRAG_STATUS:
        status_step(frag);
        break;
    case FRAG_WAIT:
        frag_end(frag, 0);
        break;
    }
}

void
frag_step_done(struct volume_frag *frag)
{
    uint64_t end = frag->partial ? frag->step_begin + frag->part_end : frag->step_end;

    frag_release(frag);
    frag->begin = end;
    frag_run(frag);
}

static void
later_run(struct thin_task *task)
{
    struct pool_internals *in = container_of(task, struct pool_internals, later_task);
    struct volume_frag_list later = TAILQ_HEAD_INITIALIZER(later);
    uint64_t began = loop_now_ns(in->pool->loop);
    struct volume_frag *frag;

    TAILQ_CONCAT(&later, &in->later, link);
    while ((frag = TAILQ_FIRST(&later))) {
        if (pool_step_full(in->pool, began)) {
            TAILQ_CONCAT(&later, &in->later, link);
            TAILQ_CONCAT(&in->later, &later, link);
            loop_defer(in->pool->loop, &in->later_task);
            break;
        }
        TAILQ_REMOVE(&later, frag, link);
        if (frag->resume)
            frag->resume(frag);
        else
            frag_run(frag);
    }
    pool_step(in->pool, "fragments", began);
}

void
frag_run_later(struct volume_frag *frag, void (*resume)(struct volume_frag *frag))
{
    frag->resume = resume;
    TAILQ_INSERT_TAIL(&frag->pool->in->later, frag, link);
    loop_defer(frag->pool->loop, &frag->pool->in->later_task);
}

/* ---- looking up --------------------------------------------------------------------------- */

static int
lookup_run(struct metaop *op, struct thin_error *err)
{
    struct volume_frag *frag = container_of(op, struct volume_frag, op);
    struct pool_internals *in = frag->pool->in;

    return metadata_read_leaf(frag->pool->md, frag->core->dev_id, frag->copy_pos,
                              in->slots, &in->nr_slots, &in->slots_begin, &in->slots_end,
                              err);
}

static void
lookup_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct volume_frag *frag = container_of(op, struct volume_frag, op);
    struct pool_internals *in = frag->pool->in;

    (void)err;
    if (result < 0) {
        /* From here it is the metadata device that does not give the block. */
        if (result == -EIO)
            volume_damaged(frag->core, result);
        frag_end(frag, result);
        return;
    }
    mapcache_fill(frag->core, frag->copy_pos, in->slots, in->nr_slots, in->slots_begin,
                  in->slots_end);
    if (frag->kind == FRAG_LOOKUP)
        frag_end(frag, 0);
    else
        frag_run(frag);
}

void
frag_lookup(struct volume_frag *frag, vblock_t v)
{
    mapcache_count_miss(frag->pool);
    frag->copy_pos = v;
    frag->op.run = lookup_run;
    frag->op.done = lookup_done;
    frag->op.reads_only = true;
    frag->op.name = "look up a mapping";
    metaop_start(frag->pool, &frag->op, true);
}

/* ---- payload and device --------------------------------------------------------------------- */

uint64_t
frag_slice(struct volume_frag *frag, uint64_t begin, uint64_t len)
{
    const struct volume_io *io = frag->io;
    uint64_t skip = begin - io->offset, got = 0, whole;
    unsigned i = 0, nr = 0;

    while (skip >= io->iov[i].iov_len)
        skip -= io->iov[i++].iov_len;
    while (got < len && nr < FRAG_IOV_MAX) {
        uint64_t piece = min_u64(io->iov[i].iov_len - skip, len - got);

        if (piece > 0) {
            frag->iov[1 + nr].iov_base = (char *)io->iov[i].iov_base + skip;
            frag->iov[1 + nr].iov_len = piece;
            nr++;
        }
        got += piece;
        skip = 0;
        i++;
    }
    whole = round_down_u64(got, SECTOR_SIZE);
    while (nr > 0 && got > whole) {
        uint64_t cut = min_u64(got - whole, frag->iov[nr].iov_len);

        frag->iov[nr].iov_len -= cut;
        got -= cut;
        if (frag->iov[nr].iov_len == 0)
            nr--;
    }
    frag->nr_iov = nr;
    return whole;
}

static void
frag_device_done(struct device_io *dio, int result)
{
    struct volume_frag *frag = container_of(dio, struct volume_frag, dio);
    struct pool *pool = frag->pool;
    bool wrote = dio->op != DEVICE_READ && !(dio->flags & DEVICE_FUA && result == 0);

    pool_data_end(pool, wrote, dio->len);
    if (wrote)
        frag->core->write_seq = pool->commit.write_seq;
    if (frag->in_place)
        volume_core_write_end(frag->core, &frag->inflight);
    inflight_remove(pool, &frag->inflight);
    frag->device_done(frag, result);
}

void
frag_submit(struct volume_frag *frag, enum device_op op, unsigned flags, uint64_t offset,
            uint64_t len, struct iovec *iov, unsigned nr_iov, bool in_place,
            void (*done)(struct volume_frag *frag, int result))
{
    struct pool *pool = frag->pool;

    frag->device_done = done;
    frag->in_place = in_place;
    frag->dio.op = op;
    frag->dio.flags = flags;
    frag->dio.offset = offset;
    frag->dio.len = len;
    frag->dio.iov = iov;
    frag->dio.nr_iov = nr_iov;
    frag->dio.done = frag_device_done;
    inflight_add(pool, &frag->inflight, offset, len, in_place ? INFLIGHT_WRITE : 0);
    if (in_place)
        volume_core_write_begin(frag->core, &frag->inflight);
    pool_data_begin(pool);
    device_submit(pool->data, &frag->dio);
}

int
frags_create(struct pool *pool)
{
    struct pool_internals *in = pool->in;

    TAILQ_INIT(&in->free_frags);
    TAILQ_INIT(&in->later);
    in->later_task.run = later_run;
    in->frags = malloc(POOL_FRAGS_MAX * sizeof(*in->frags));
    if (!in->frags)
        return -ENOMEM;
    begin_frag(in);
    return 0;
}
