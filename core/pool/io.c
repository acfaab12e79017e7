/*
 * One request of a volume: judged, sent on directly where it is one run of mapped
 * blocks, else cut into fragments. See io_private.h for the way.
 */
#include <stdlib.h>

#include "core/base/seeded_bug.h"
#include "core/pool/origin.h"
#include "core/pool/pieces.h"

/* ---- answering ----------------------------------------------------------------------- */

static void
finished_run(struct thin_task *task)
{
    struct volume *volume = container_of(task, struct volume, done_task);
    struct volume_io_list done = TAILQ_HEAD_INITIALIZER(done);
    uint64_t began = loop_now_ns(volume->loop);
    struct volume_io *io;

    TAILQ_CONCAT(&done, &volume->finished, link);
    while ((io = TAILQ_FIRST(&done))) {
        /* With one of its requests left the volume cannot be closed. */
        if (loop_now_ns(volume->loop) - began > POOL_STEP_NS / 2) {
            TAILQ_CONCAT(&done, &volume->finished, link);
            TAILQ_CONCAT(&volume->finished, &done, link);
            loop_defer(volume->loop, &volume->done_task);
            return;
        }
        TAILQ_REMOVE(&done, io, link);
        volume->in_flight--;
        io->done(io, io->result);
    }
}

void
volume_later(struct volume_io *io)
{
    struct volume *volume = io->volume;

    volume->done_task.run = finished_run;
    TAILQ_INSERT_TAIL(&volume->finished, io, link);
    loop_defer(volume->loop, &volume->done_task);
}

void
io_finish(struct volume_io *io, int result)
{
    struct volume *volume = io->volume;
    struct pool *pool = volume->pool;

    io->result = result;
    if (result < 0 && volume->core && is_damage(result))
        volume_damaged(volume->core, result);
    if (volume->core && volume->core->stats)
        counts_add(volume->core->stats, io);
    /* Never from inside volume_submit, whosever request that is. */
    if (!pool || pool->in->submitting) {
        volume_later(io);
        return;
    }
    volume->in_flight--;
    io->done(io, result);
}

/* ---- the caller's buffers ---------------------------------------------------------------- */

enum { BUF_ZERO, BUF_TO, BUF_FROM };

static void
iov_walk(const struct volume_io *io, uint64_t offset, unsigned char *bytes, uint64_t len,
         int what)
{
    unsigned i = 0;

    while (len > 0) {
        uint64_t piece;
        unsigned char *at;

        if (offset >= io->iov[i].iov_len) {
            offset -= io->iov[i++].iov_len;
            continue;
        }
        piece = min_u64(io->iov[i].iov_len - offset, len);
        at = (unsigned char *)io->iov[i].iov_base + offset;
        if (what == BUF_ZERO)
            memset(at, 0, piece);
        else if (what == BUF_TO)
            memcpy(at, bytes, piece);
        else
            memcpy(bytes, at, piece);
        if (bytes)
            bytes += piece;
        len -= piece;
        offset = 0;
        i++;
    }
}

void
io_zero_fill(struct volume_io *io, uint64_t offset, uint64_t len)
{
    iov_walk(io, offset, NULL, len, BUF_ZERO);
}

void
io_copy_out(struct volume_io *io, uint64_t offset, const void *from, uint64_t len)
{
    unsigned char copy[SECTOR_SIZE];

    THIN_ASSERT(len <= sizeof(copy));
    memcpy(copy, from, len);
    iov_walk(io, offset, copy, len, BUF_TO);
}

void
io_copy_in(const struct volume_io *io, uint64_t offset, void *to, uint64_t len)
{
    iov_walk(io, offset, to, len, BUF_FROM);
}

/* ---- the map that a read gives beside its data ------------------------------------------- */

static void
extent_add(struct volume_io *io, uint64_t len, uint32_t flags)
{
    struct volume_extent *last;

    if (!io->extents || (io->state & IO_MAP_FULL) || len == 0)
        return;
    last = io->ret_nr_extents ? &io->extents[io->ret_nr_extents - 1] : NULL;
    if (last && last->flags == flags) {
        last->len += len;
        return;
    }
    if (io->ret_nr_extents < io->max_extents) {
        io->extents[io->ret_nr_extents].len = len;
        io->extents[io->ret_nr_extents].flags = flags;
        io->ret_nr_extents++;
        return;
    }
    /* It does not fit: all of it is data, and the holes are filled after all. */
    io->state |= IO_MAP_FULL;
    for (uint64_t at = 0, i = 0; i < io->ret_nr_extents; at += io->extents[i].len, i++)
        if (io->extents[i].flags & VOLUME_EXTENT_HOLE)
            io_zero_fill(io, at, io->extents[i].len);
    io->ret_nr_extents = io->max_extents ? 1 : 0;
    if (io->max_extents) {
        io->extents[0].len = io->len;
        io->extents[0].flags = 0;
    }
}

static void
read_hole(struct volume_io *io, uint64_t begin, uint64_t len)
{
    extent_add(io, len, VOLUME_EXTENT_HOLE | VOLUME_EXTENT_ZERO);
    if (!io->extents || (io->state & IO_MAP_FULL))
        io_zero_fill(io, begin, len);
}

/* ---- handing out -------------------------------------------------------------------------- */

static void
io_starve(struct volume_io *io)
{
    TAILQ_INSERT_TAIL(&io->volume->pool->in->starved, io, link);
}

/* Starts one fragment over [pos, end) of the request. False: none was free. */
static bool
hand_out(struct volume_io *io, enum frag_kind kind, uint64_t end)
{
    struct volume_frag *frag = frag_get(io, kind);

    if (!frag) {
        if (io->nr_frags == 0)
            io_starve(io);
        return false;
    }
    frag->begin = io->offset + io->pos;
    frag->end = io->offset + end;
    if (kind == FRAG_LOOKUP)
        io->state |= IO_LOOKUP;
    else
        io->pos = end;
    frag_run(frag);
    return true;
}

/* The end, in bytes of the request, of the run of one kind that begins at pos. */
static uint64_t
run_end(struct volume_io *io, vblock_t v, uint64_t slot)
{
    struct volume_core *core = io->volume->core;
    struct pool *pool = core->pool;
    uint64_t end = (v + 1) * pool->block_size - io->offset;
    uint64_t i = 1;

    while (end < io->len) {
        uint64_t next = mapcache_get(core, v + i);

        if (next == MAP_UNKNOWN)
            break;
        if (slot_mapped(slot)) {
            if (!slot_mapped(next) || mapping_block(next) != mapping_block(slot) + i)
                break;
            if (io->op != VOLUME_READ &&
                slot_shared(core, next) != slot_shared(core, slot))
                break;
        } else if (next != MAP_HOLE) {
            break;
        }
        end += pool->block_size;
        i++;
    }
    return min_u64(end, io->len);
}

static bool
advance_data(struct volume_io *io)
{
    struct volume_core *core = io->volume->core;
    struct pool *pool = core->pool;
    vblock_t v = pool_vblock(pool, io->offset + io->pos);
    uint64_t slot = mapcache_get(core, v), end;

    if (slot == MAP_UNKNOWN)
        return hand_out(io, FRAG_LOOKUP, io->len);
    end = run_end(io, v, slot);
    if (io->op == VOLUME_WRITE) {
        pieces_written(core, io->offset + io->pos, end - io->pos);
        /* New blocks are written in runs of one stretch, several runs side by side. */
        if (!slot_mapped(slot) || slot_shared(core, slot)) {
            uint64_t stretch = (v / PROVISION_RUN_MAX + 1) * PROVISION_RUN_MAX;

            end = min_u64(end, stretch * pool->block_size - io->offset);
        }
        return hand_out(io, FRAG_WRITE, end);
    }
    if (!slot_mapped(slot) && origin_backs(core, io->offset + io->pos))
        end = min_u64(end, core->origin_size - io->offset);
    if (slot_mapped(slot) || origin_backs(core, io->offset + io->pos)) {
        extent_add(io, end - io->pos, 0);
        return hand_out(io, FRAG_READ, end);
    }
    read_hole(io, io->pos, end - io->pos);
    io->pos = end;
    return true;
}

/* Whole blocks of the request; the volume's last block is whole at the volume's end. */
static void
whole_blocks(const struct volume_io *io, uint64_t *ret_begin, uint64_t *ret_end)
{
    const struct volume_core *core = io->volume->core;
    uint64_t bs = core->pool->block_size, end = io->offset + io->len;

    *ret_begin = round_up_u64(io->offset, bs);
    *ret_end = end == core->size ? round_up_u64(end, bs) : round_down_u64(end, bs);
    if (*ret_end < *ret_begin)
        *ret_end = *ret_begin;
}

/* Blocks below are not unmapped: the external origin's old data would come back. */
static uint64_t
kept_below(const struct volume_io *io, uint64_t begin, uint64_t end)
{
    const struct volume_core *core = io->volume->core;

    if (seeded_bug(SEEDED_ORIGIN_SHOWS))
        return begin;
    return min_u64(
        end, max_u64(begin, round_up_u64(core->origin_size, core->pool->block_size)));
}

static bool
advance_zeroes(struct volume_io *io)
{
    uint64_t begin, end, at = io->offset + io->pos;

    whole_blocks(io, &begin, &end);
    begin = kept_below(io, begin, end);
    if (io->flags & VOLUME_NO_HOLE)
        pieces_written(io->volume->core, at, io->len - io->pos);
    if (begin == end || (io->flags & VOLUME_NO_HOLE))
        return hand_out(io, FRAG_ZEROES, io->len);
    if (at < begin)
        return hand_out(io, FRAG_ZEROES, begin - io->offset);
    if (at < end)
        return hand_out(io, FRAG_UNMAP, min_u64(end - io->offset, io->len));
    return hand_out(io, FRAG_ZEROES, io->len);
}

static bool
advance_discard(struct volume_io *io)
{
    uint64_t begin, end, at, kept;

    whole_blocks(io, &begin, &end);
    if (begin == end || io->volume->pool->config.discards == POOL_DISCARD_OFF) {
        io->pos = io->len;
        return true;
    }
    at = max_u64(io->offset + io->pos, begin);
    io->pos = at - io->offset;
    kept = kept_below(io, begin, end);
    if (at < kept)
        return hand_out(io, FRAG_ZEROES, min_u64(kept - io->offset, io->len));
    if (at < end && !hand_out(io, FRAG_UNMAP, min_u64(end - io->offset, io->len)))
        return false;
    io->pos = io->len;
    return true;
}

static bool
advance_one(struct volume_io *io)
{
    switch (io->op) {
    case VOLUME_READ:
    case VOLUME_WRITE:
        return advance_data(io);
    case VOLUME_WRITE_ZEROES:
        return advance_zeroes(io);
    case VOLUME_DISCARD:
        return advance_discard(io);
    case VOLUME_STATUS:
        return hand_out(io, FRAG_STATUS, io->len);
    case VOLUME_PREFETCH:
        io->state &= ~IO_LOOKUP;
        if (!hand_out(io, FRAG_LOOKUP, io->len))
            return false;
        io->pos = io->len;
        return true;
    case VOLUME_FLUSH:
        io->pos = io->len;
        return true;
    }
    return false;
}

static void
wait_done(struct commit_wait *wait, int result)
{
    struct volume_frag *frag = container_of(wait, struct volume_frag, wait);

    frag_end(frag, result);
}

/* What the answer must wait for beside its own work. True: it waits. */
static bool
io_wait_durable(struct volume_io *io)
{
    struct volume_core *core = io->volume->core;
    struct pool *pool = core->pool;
    struct committer *c = &pool->commit;
    bool flush = io->op == VOLUME_FLUSH && core->write_seq > c->flushed_seq;
    uint64_t txn = core->changed_txn > c->durable_txn ? core->changed_txn : 0;
    struct volume_frag *frag;

    if (io->op != VOLUME_FLUSH && !(io->flags & VOLUME_FUA))
        return false;
    if (io->op != VOLUME_FLUSH && seeded_bug(SEEDED_FUA_UNCOMMITTED))
        txn = 0;
    if (io->op == VOLUME_FLUSH && seeded_bug(SEEDED_FLUSH_UNCOMMITTED))
        txn = 0;
    if ((io->state & IO_TAIL) || (!flush && !txn))
        return false;
    frag = frag_get(io, FRAG_WAIT);
    if (!frag) {
        io_starve(io);
        return true;
    }
    io->state |= IO_TAIL;
    frag->wait.done = wait_done;
    frag->wait.txn = txn;
    frag->wait.flush_data = flush;
    commit_join_seq(pool, &frag->wait, core->write_seq);
    return true;
}

static bool
op_changes(const struct volume_io *io)
{
    return io->op == VOLUME_WRITE || io->op == VOLUME_WRITE_ZEROES ||
           io->op == VOLUME_DISCARD;
}

static void
io_end(struct volume_io *io)
{
    if (io->result == 0)
        io->result = io->volume->fenced;
    if (io->result < 0) {
        io_finish(io, io->result);
        return;
    }
    if (io->state & IO_PARKED) {
        io->state &= ~IO_PARKED;
        io->pos = io->redo_from;
        io->redo_from = UINT64_MAX;
        int r = space_park(io->volume->pool, io);

        if (r < 0)
            io_finish(io, r);
        return;
    }
    if (pieces_note(io))
        return;
    if (io->result < 0)
        io_finish(io, io->result);
    else if (!io_wait_durable(io))
        io_finish(io, 0);
}

void
io_advance(struct volume_io *io)
{
    bool stop = false;

    if (io->nr_frags == 0 && io->volume->fenced && io->result == 0)
        io->result = io->volume->fenced;
    io->state |= IO_ADVANCING;
    for (;;) {
        stop = io->result < 0 || (io->state & IO_PARKED) || io->pos >= io->len;
        if (stop || io->nr_frags >= IO_FRAGS_MAX || (io->state & IO_LOOKUP))
            break;
        if (!advance_one(io))
            break;
    }
    io->state &= ~IO_ADVANCING;
    stop = io->result < 0 || (io->state & IO_PARKED) || io->pos >= io->len;
    if (stop && io->nr_frags == 0)
        io_end(io);
}

void
io_run_starved(struct pool *pool)
{
    struct volume_io_list starved = TAILQ_HEAD_INITIALIZER(starved);
    uint64_t began = loop_now_ns(pool->loop);
    struct volume_io *io;

    if (pool->rolling_back)
        return;
    TAILQ_CONCAT(&starved, &pool->in->starved, link);
    while ((io = TAILQ_FIRST(&starved))) {
        if (pool_step_full(pool, began)) {
            loop_defer(pool->loop, &pool->in->starved_task);
            break;
        }
        if (TAILQ_EMPTY(&pool->in->free_frags) && !io->volume->fenced)
            break;
        TAILQ_REMOVE(&starved, io, link);
        if (op_changes(io) && io->result == 0)
            io->result = pool_may_change(pool, NULL);
        io_advance(io);
    }
    /* What is left was there before those that starved again. */
    TAILQ_CONCAT(&starved, &pool->in->starved, link);
    TAILQ_CONCAT(&pool->in->starved, &starved, link);
    pool_step(pool, "requests that waited", began);
}

static void
starved_run(struct thin_task *task)
{
    struct pool_internals *in = container_of(task, struct pool_internals, starved_task);

    io_run_starved(in->pool);
}

/* ---- submission ----------------------------------------------------------------------------- */

static void
direct_done(struct device_io *dio, int result)
{
    struct volume_io *io = container_of(dio, struct volume_io, dio);
    struct volume_core *core = io->volume->core;
    struct pool *pool = core->pool;

    if (io->op == VOLUME_WRITE) {
        bool durable = (dio->flags & DEVICE_FUA) && result == 0;

        pool_data_end(pool, !durable, dio->len);
        if (!durable)
            core->write_seq = pool->commit.write_seq;
        volume_core_write_end(core, &io->inflight);
    } else {
        pool_data_end(pool, false, 0);
    }
    inflight_remove(pool, &io->inflight);
    io->result = result;
    io->pos = io->len;
    io_end(io);
}

/* The hot path: one run of mapped blocks, none shared if it is a write. */
static bool
io_direct(struct volume_io *io)
{
    struct volume_core *core = io->volume->core;
    struct pool *pool = core->pool;
    uint64_t in_block = pool_block_offset(pool, io->offset);
    vblock_t v = pool_vblock(pool, io->offset);
    uint64_t slot = mapcache_get(core, v), place;
    bool write = io->op == VOLUME_WRITE;

    if (!slot_mapped(slot) || ((io->offset | io->len) & (SECTOR_SIZE - 1)) ||
        io->nr_iov > DEVICE_IOV_MAX)
        return false;
    if (write &&
        (slot_shared(core, slot) || (core->nr_rmw && !seeded_bug(SEEDED_NEIGHBOUR_TORN))))
        return false;
    for (uint64_t i = 1, end = pool->block_size - in_block; end < io->len;
         i++, end += pool->block_size) {
        uint64_t next = mapcache_get(core, v + i);

        if (!slot_mapped(next) || mapping_block(next) != mapping_block(slot) + i ||
            (write && slot_shared(core, next)))
            return false;
    }
    if (io->op == VOLUME_READ)
        extent_add(io, io->len, 0);
    if (write)
        pieces_written(core, io->offset, io->len);
    place = mapping_block(slot) * pool->block_size + in_block;
    io->dio.op = write ? DEVICE_WRITE : DEVICE_READ;
    io->dio.flags = write && (io->flags & VOLUME_FUA) ? DEVICE_FUA : 0;
    io->dio.offset = place;
    io->dio.len = io->len;
    io->dio.iov = io->iov;
    io->dio.nr_iov = io->nr_iov;
    io->dio.done = direct_done;
    inflight_add(pool, &io->inflight, place, io->len, write ? INFLIGHT_WRITE : 0);
    if (write)
        volume_core_write_begin(core, &io->inflight);
    pool_data_begin(pool);
    device_submit(pool->data, &io->dio);
    return true;
}

static int
io_judge(const struct volume *volume, const struct volume_io *io)
{
    const struct volume_core *core = volume->core;
    uint64_t size;

    if (volume->fenced)
        return volume->fenced;
    if (io->op == VOLUME_FLUSH)
        return 0;
    if (!core)
        return -THIN_E_SHUTDOWN;
    size = core->size;
    if (io->flags & IO_LAST_BLOCK)
        size = round_up_u64(size, volume->block_size);
    if (!range_inside(io->offset, io->len, size))
        return -THIN_E_RANGE;
    if ((io->op == VOLUME_READ || io->op == VOLUME_WRITE) && io->len > POOL_IO_BYTES_MAX)
        return -THIN_E_LIMIT;
    if (!op_changes(io))
        return 0;
    if (volume->read_only || core->read_only)
        return -THIN_E_READ_ONLY;
    if (io->op == VOLUME_WRITE_ZEROES && (io->flags & VOLUME_ONLY_FAST) &&
        !volume->pool->data->limits.zeroes_fast &&
        ((io->flags & VOLUME_NO_HOLE) || io->offset % volume->block_size ||
         io->len % volume->block_size))
        return -EOPNOTSUPP;
    return pool_may_change(volume->pool, NULL);
}

void
volume_submit(struct volume *volume, struct volume_io *io)
{
    struct pool *pool = volume->pool;
    bool nested;
    int r;

    volume->in_flight++;
    io->volume = volume;
    io->pos = 0;
    io->nr_frags = 0;
    io->result = 0;
    io->state = 0;
    io->ret_nr_extents = 0;
    io->ret_kept = false;
    io->redo_from = UINT64_MAX;
    io->deadline_ns = 0;
    r = io_judge(volume, io);
    if (r < 0 || (io->len == 0 && io->op != VOLUME_FLUSH)) {
        io->result = r;
        volume_later(io);
        return;
    }
    if (io->op == VOLUME_FLUSH)
        io->len = 0;
    if (pool->rolling_back) {
        io_starve(io);
        return;
    }
    if ((io->op == VOLUME_READ || io->op == VOLUME_WRITE) && io_direct(io))
        return;
    nested = pool->in->submitting;
    pool->in->submitting = true;
    io_advance(io);
    pool->in->submitting = nested;
}

/* ---- life --------------------------------------------------------------------------------------- */

/* Never written: the same for all pools. */
static unsigned char zeros[ZERO_BUFFER_BYTES];

int
io_create(struct pool *pool)
{
    struct pool_internals *in = calloc(1, sizeof(*in));

    if (!in)
        return -ENOMEM;
    pool->in = in;
    in->pool = pool;
    TAILQ_INIT(&in->starved);
    TAILQ_INIT(&in->openings);
    in->starved_task.run = starved_run;
    for (unsigned i = 0; i < INFLIGHT_BUCKETS; i++)
        TAILQ_INIT(&in->inflight[i]);
    for (unsigned i = 0; i < CELL_BUCKETS; i++)
        TAILQ_INIT(&in->cells[i]);
    TAILQ_INIT(&in->inflight_waiters);
    TAILQ_INIT(&in->range_waiters);
    TAILQ_INIT(&in->unmaps);
    TAILQ_INIT(&in->copy_waiters);
    in->zeros = zeros;
    return frags_create(pool);
}

void
io_destroy(struct pool *pool)
{
    struct pool_internals *in = pool->in;

    if (!in)
        return;
    loop_defer_cancel(pool->loop, &in->later_task);
    loop_defer_cancel(pool->loop, &in->starved_task);
    loop_defer_cancel(pool->loop, &in->idle_task);
    free(in->frags);
    free(in);
    pool->in = NULL;
}
