/* An NBD client's requests as requests to the volume, and what became of them. */
#include <string.h>

#include "core/base/cleanup.h"
#include "server/nbd_client.h"
#include "server/pools.h"

/* Values of qemu:allocation-depth. */
#define DEPTH_UNALLOCATED 0u
#define DEPTH_LOCAL       1u
#define DEPTH_ORIGIN      2u

/* Who waits for a pool further below leaves memory to it. */
static unsigned
payload_level(const struct nbd_client *c)
{
    const struct server_pool *sp =
        c->asker[0] ? pools_find(c->server->pools, c->asked_pool) : NULL;

    return sp ? stack_height(sp) : PAYLOAD_ORDINARY;
}

int
nbd_client_get_buffer(void *arg, size_t len, struct nbd_buffer *ret)
{
    struct nbd_client *c = arg;
    struct payload_piece *piece;
    int r = payload_get(c->server->payload, len, payload_level(c), &c->waiter, &piece);

    if (r < 0)
        return r;
    ret->iov = &piece->iov;
    ret->iovcnt = 1;
    ret->len = len;
    ret->owner = piece;
    return 0;
}

void
nbd_client_put_buffer(void *arg, struct nbd_buffer *buffer)
{
    struct nbd_client *c = arg;

    payload_put(c->server->payload, buffer->owner);
}

void
nbd_client_buffer_ready(struct payload_waiter *waiter)
{
    struct nbd_client *c = container_of(waiter, struct nbd_client, waiter);

    nbd_conn_resume(c->conn);
    stream_kick(&c->stream);
}

static void
read_done(struct nbd_job *job, struct nbd_request *req, int result)
{
    uint64_t at = 0;

    for (unsigned i = 0; result == 0 && i < job->io.ret_nr_extents; i++) {
        const struct volume_extent *e = &job->extents[i];

        if (e->flags & VOLUME_EXTENT_HOLE)
            nbd_read_hole(req, at, e->len);
        at += e->len;
    }
    nbd_request_done(req, result);
}

static uint32_t
status_of(uint64_t context, uint32_t flags)
{
    if (context == NBD_CONTEXT_DEPTH)
        return flags & VOLUME_EXTENT_ORIGIN ? DEPTH_ORIGIN
               : flags & VOLUME_EXTENT_HOLE ? DEPTH_UNALLOCATED
                                            : DEPTH_LOCAL;
    /* What comes from an origin is data to whoever copies. */
    if (flags & VOLUME_EXTENT_ORIGIN)
        return 0;
    return (flags & VOLUME_EXTENT_HOLE ? NBD_STATUS_HOLE | NBD_STATUS_ZERO : 0) |
           (flags & VOLUME_EXTENT_ZERO ? NBD_STATUS_ZERO : 0);
}

/* One step of a block status is through: on with the next, or the end. */
static void
status_step(struct nbd_job *job, struct nbd_request *req, int result)
{
    struct nbd_client *c = req->handle;
    uint64_t covered = job->io.offset - req->offset;
    bool more = false;

    for (unsigned i = 0; result == 0 && i < job->io.ret_nr_extents; i++) {
        const struct volume_extent *e = &job->extents[i];

        more = false;
        covered += e->len;
        for (unsigned ctx = 0; ctx < req->nr_contexts; ctx++)
            more |=
                nbd_extent_add(req, ctx, e->len, status_of(req->contexts[ctx], e->flags));
        if (!more)
            break;
    }
    if (result < 0 || !more || covered >= req->len || job->io.ret_nr_extents == 0) {
        nbd_request_done(req, result);
        return;
    }
    job->io.offset = req->offset + covered;
    job->io.len = req->len - covered;
    job->io.max_extents = NBD_STATUS_EXTENTS;
    volume_submit(c->attachment->volume, &job->io);
}

static void
io_done(struct volume_io *io, int result)
{
    struct nbd_job *job = container_of(io, struct nbd_job, io);
    struct nbd_client *c = job->client;
    struct nbd_request *req = nbd_request_of_extra(c->conn, job);

    if (io->op == VOLUME_WRITE || io->op == VOLUME_DISCARD ||
        io->op == VOLUME_WRITE_ZEROES)
        attach_end(c->attachment);
    if (io->op == VOLUME_READ)
        read_done(job, req, result);
    else if (io->op == VOLUME_STATUS)
        status_step(job, req, result);
    else
        nbd_request_done(req, result);
}

static enum volume_op
volume_op_of(enum nbd_op op)
{
    static const enum volume_op ops[] = {
        [NBD_OP_READ] = VOLUME_READ,
        [NBD_OP_WRITE] = VOLUME_WRITE,
        [NBD_OP_FLUSH] = VOLUME_FLUSH,
        [NBD_OP_TRIM] = VOLUME_DISCARD,
        [NBD_OP_CACHE] = VOLUME_PREFETCH,
        [NBD_OP_WRITE_ZEROES] = VOLUME_WRITE_ZEROES,
        [NBD_OP_BLOCK_STATUS] = VOLUME_STATUS,
    };

    return ops[op];
}

static bool
is_change(enum nbd_op op)
{
    return op == NBD_OP_WRITE || op == NBD_OP_TRIM || op == NBD_OP_WRITE_ZEROES;
}

static void
submit(struct nbd_client *c, struct nbd_job *job, struct nbd_request *req)
{
    struct volume_io *io = &job->io;

    memset(io, 0, sizeof(*io));
    io->op = volume_op_of(req->op);
    io->flags = (is_change(req->op) && req->flags & NBD_REQ_FUA ? VOLUME_FUA : 0) |
                (req->flags & NBD_REQ_NO_HOLE ? VOLUME_NO_HOLE : 0) |
                (req->flags & NBD_REQ_FAST_ZERO ? VOLUME_ONLY_FAST : 0) |
                (req->flags & NBD_REQ_ONE ? VOLUME_ONE_EXTENT : 0);
    io->offset = req->offset;
    io->len = req->len;
    io->done = io_done;
    if (req->op == NBD_OP_READ || req->op == NBD_OP_WRITE) {
        io->iov = (struct iovec *)(uintptr_t)req->buffer.iov;
        io->nr_iov = req->buffer.iovcnt;
    }
    if (req->op == NBD_OP_READ) {
        io->extents = job->extents;
        io->max_extents = NBD_READ_EXTENTS;
    } else if (req->op == NBD_OP_BLOCK_STATUS) {
        io->extents = job->extents;
        io->max_extents = NBD_STATUS_EXTENTS;
    }
    volume_submit(c->attachment->volume, io);
}

static void
epoch_raised(struct attach_waiter *waiter, int result)
{
    struct nbd_job *job = container_of(waiter, struct nbd_job, waiter);
    struct nbd_client *c = job->client;
    struct nbd_request *req = nbd_request_of_extra(c->conn, job);

    if (result == 0)
        result = attach_begin(c->attachment, ATTACH_OWN_EPOCH);
    if (result < 0)
        nbd_request_done(req,
                         volume_pool(c->attachment->volume) ? result : -THIN_E_SHUTDOWN);
    else
        submit(c, job, req);
}

void
nbd_client_submit(void *arg, struct nbd_request *req)
{
    struct nbd_client *c = arg;
    struct nbd_job *job = nbd_request_extra(req);
    int r = is_change(req->op) ? attach_begin(c->attachment, ATTACH_OWN_EPOCH) : 0;

    job->client = c;
    if (r == -THIN_E_WOULD_BLOCK) {
        job->waiter.done = epoch_raised;
        attach_raise(c->server->attachments, c->attachment, &job->waiter);
    } else if (r < 0) {
        /* Nobody took the volume over: its pool was closed under it. */
        nbd_request_done(req, volume_pool(c->attachment->volume) ? r : -THIN_E_SHUTDOWN);
    } else {
        submit(c, job, req);
    }
}
