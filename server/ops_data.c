/* The data path of our own protocol: a message becomes one volume request. */
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/crc32c.h"
#include "server/conn.h"
#include "server/request.h"

bool
dispatch_is_data(Thin__Request__BodyCase kind)
{
    switch (kind) {
    case THIN__REQUEST__BODY_READ:
    case THIN__REQUEST__BODY_WRITE:
    case THIN__REQUEST__BODY_FLUSH:
    case THIN__REQUEST__BODY_DISCARD:
    case THIN__REQUEST__BODY_WRITE_ZEROES:
    case THIN__REQUEST__BODY_BLOCK_STATUS:
    case THIN__REQUEST__BODY_PREFETCH:
        return true;
    default:
        return false;
    }
}

static bool
is_change(enum volume_op op)
{
    return op == VOLUME_WRITE || op == VOLUME_DISCARD || op == VOLUME_WRITE_ZEROES;
}

static void
set_range(struct request *rq, enum volume_op op, uint64_t offset, uint64_t len)
{
    rq->io.op = op;
    rq->io.offset = offset;
    rq->io.len = len;
}

int
ops_data_prepare(struct request *rq, const Thin__Request *m, uint32_t payload_bytes)
{
    uint32_t handle = 0;

    switch (m->body_case) {
    case THIN__REQUEST__BODY_READ:
        handle = m->read->handle;
        rq->want_crc = m->read->want_crc;
        set_range(rq, VOLUME_READ, m->read->offset, m->read->length);
        if (m->read->length > PROTO_PAYLOAD_MAX)
            return -THIN_E_LIMIT;
        break;
    case THIN__REQUEST__BODY_WRITE:
        handle = m->write->handle;
        rq->epoch = m->write->epoch;
        rq->io.flags = m->write->fua ? VOLUME_FUA : 0;
        set_range(rq, VOLUME_WRITE, m->write->offset, payload_bytes);
        break;
    case THIN__REQUEST__BODY_FLUSH:
        handle = m->flush->handle;
        rq->epoch = m->flush->epoch;
        set_range(rq, VOLUME_FLUSH, 0, 0);
        break;
    case THIN__REQUEST__BODY_DISCARD:
        handle = m->discard->handle;
        rq->epoch = m->discard->epoch;
        rq->io.flags = m->discard->fua ? VOLUME_FUA : 0;
        set_range(rq, VOLUME_DISCARD, m->discard->offset, m->discard->length);
        break;
    case THIN__REQUEST__BODY_WRITE_ZEROES:
        handle = m->write_zeroes->handle;
        rq->epoch = m->write_zeroes->epoch;
        rq->io.flags = (m->write_zeroes->fua ? VOLUME_FUA : 0) |
                       (m->write_zeroes->no_hole ? VOLUME_NO_HOLE : 0) |
                       (m->write_zeroes->only_fast ? VOLUME_ONLY_FAST : 0);
        set_range(rq, VOLUME_WRITE_ZEROES, m->write_zeroes->offset,
                  m->write_zeroes->length);
        break;
    case THIN__REQUEST__BODY_BLOCK_STATUS:
        handle = m->block_status->handle;
        rq->max_extents = m->block_status->max_extents;
        set_range(rq, VOLUME_STATUS, m->block_status->offset, m->block_status->length);
        if (m->block_status->since && m->block_status->since[0])
            return -THIN_E_UNSUPPORTED;
        break;
    default:
        handle = m->prefetch->handle;
        set_range(rq, VOLUME_PREFETCH, m->prefetch->offset, m->prefetch->length);
        break;
    }
    if (payload_bytes && rq->io.op != VOLUME_WRITE)
        return -THIN_E_PROTOCOL;
    rq->volume = session_volume(rq->session, handle);
    if (!rq->volume)
        return -THIN_E_NOT_FOUND;
    rq->volume->in_flight++;
    return 0;
}

static void
fill_mark(const struct request *rq, Thin__DataReply *body)
{
    struct pool *pool = volume_pool(rq->volume->attachment->volume);
    struct pool_marks marks;

    if (!pool)
        return;
    pool_get_marks(pool, &marks);
    body->change = is_change(rq->io.op) ? marks.change : 0;
    body->stable_mark = marks.stable;
    body->incarnation = marks.incarnation;
}

/* The parts of a read that are not holes, and the holes as pairs. */
static unsigned
cut_holes(struct request *rq, struct iovec *iov, uint32_t *holes, size_t *ret_nr_holes)
{
    uint8_t *base = rq->piece->iov.iov_base;
    uint64_t at = 0;
    unsigned nr = 0;
    size_t nh = 0;

    for (unsigned i = 0; i < rq->io.ret_nr_extents; i++) {
        uint64_t len = rq->extents[i].len;

        if (rq->extents[i].flags & VOLUME_EXTENT_HOLE) {
            holes[nh++] = (uint32_t)at;
            holes[nh++] = (uint32_t)len;
        } else if (nr &&
                   (uint8_t *)iov[nr - 1].iov_base + iov[nr - 1].iov_len == base + at) {
            iov[nr - 1].iov_len += len;
        } else {
            iov[nr++] = (struct iovec){base + at, len};
        }
        at += len;
    }
    if (rq->io.ret_nr_extents == 0 && rq->io.len)
        iov[nr++] = (struct iovec){base, rq->io.len};
    *ret_nr_holes = nh;
    return nr;
}

static void
reply_read(struct request *rq, Thin__Reply *reply, Thin__DataReply *body)
{
    struct iovec iov[CONN_PIECES];
    uint32_t holes[2 * REQUEST_EXTENTS];
    unsigned nr = cut_holes(rq, iov, holes, &body->n_holes);

    body->holes = holes;
    if (rq->want_crc) {
        uint32_t crc = CRC32C_INIT;

        for (unsigned i = 0; i < nr; i++)
            crc = crc32c_update(crc, iov[i].iov_base, iov[i].iov_len);
        reply->has_payload_crc = true;
        reply->payload_crc = ~crc;
    }
    request_reply_data(rq, reply, iov, nr);
}

static void
reply_status(struct request *rq)
{
    Thin__Reply reply = THIN__REPLY__INIT;
    Thin__BlockStatusReply body = THIN__BLOCK_STATUS_REPLY__INIT;
    Thin__BlockExtent extents[REQUEST_EXTENTS], *list[REQUEST_EXTENTS];

    for (unsigned i = 0; i < rq->io.ret_nr_extents; i++) {
        thin__block_extent__init(&extents[i]);
        extents[i].length = rq->extents[i].len;
        extents[i].flags = rq->extents[i].flags;
        list[i] = &extents[i];
    }
    body.n_extents = rq->io.ret_nr_extents;
    body.extents = list;
    reply.body_case = THIN__REPLY__BODY_BLOCK_STATUS;
    reply.block_status = &body;
    request_reply(rq, &reply);
}

static void
io_done(struct volume_io *io, int result)
{
    struct request *rq = container_of(io, struct request, io);
    Thin__Reply reply = THIN__REPLY__INIT;
    Thin__DataReply body = THIN__DATA_REPLY__INIT;

    if (rq->counted)
        attach_end(rq->volume->attachment);
    if (result == -THIN_E_SHUTDOWN && rq->server->stopping) {
        request_abandon(rq);
        return;
    }
    if (result < 0) {
        request_reply_code(rq, result, NULL);
        return;
    }
    if (io->op == VOLUME_STATUS) {
        reply_status(rq);
        return;
    }
    reply.body_case = THIN__REPLY__BODY_DATA;
    reply.data = &body;
    fill_mark(rq, &body);
    if (io->op == VOLUME_READ && io->len)
        reply_read(rq, &reply, &body);
    else
        request_reply(rq, &reply);
}

static void submit(struct request *rq);

static void
memory_ready(struct payload_waiter *waiter)
{
    submit(container_of(waiter, struct request, waiter));
}

/* 1: waits for memory, then goes on. */
static int
lend_for_read(struct request *rq)
{
    int r;

    if (rq->io.len == 0 || rq->piece)
        return 0;
    rq->waiter.ready = memory_ready;
    r = payload_get(rq->server->payload, rq->io.len, PAYLOAD_ORDINARY, &rq->waiter,
                    &rq->piece);
    return r == -THIN_E_WOULD_BLOCK ? 1 : r;
}

static void
submit(struct request *rq)
{
    struct attachment *a = rq->volume->attachment;
    struct volume_io *io = &rq->io;
    int r = 0;

    if (is_change(io->op)) {
        r = attach_begin(a, rq->epoch);
        rq->counted = r == 0;
    } else if (io->op == VOLUME_FLUSH && !a->read_only) {
        r = attach_check(a, rq->epoch);
    } else if (io->op == VOLUME_READ) {
        r = lend_for_read(rq);
    }
    if (r < 0)
        request_reply_code(rq, r, NULL);
    if (r != 0)
        return;
    if (rq->piece) {
        io->iov = &rq->piece->iov;
        io->nr_iov = 1;
    }
    if (io->op == VOLUME_READ) {
        io->extents = rq->extents;
        io->max_extents = PROTO_HOLES_MAX; /* at most so many are holes */
    } else if (io->op == VOLUME_STATUS) {
        io->extents = rq->extents;
        io->max_extents = REQUEST_EXTENTS;
        if (rq->max_extents && rq->max_extents < REQUEST_EXTENTS)
            io->max_extents = rq->max_extents;
    }
    io->done = io_done;
    volume_submit(a->volume, io);
}

void
ops_data_submit(struct request *rq)
{
    submit(rq);
}
