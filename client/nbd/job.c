/*
 * A request of the NBD machine becomes one or more requests to libthinclient (large
 * reads and writes are cut, a block status is asked until it is covered), and is done
 * when the last of them is.
 *
 *   job_submit ─► start ─► pieces ─► piece_done (last) ─► nbd_request_done
 *                   └─ the client is full ─► refused ─► job_retry ─► start
 */
#include <errno.h>

#include "client/nbd/bridge_private.h"
#include "core/base/assert.h"
#include "core/base/checked.h"

static bool start(struct job *job, bool first);

static void
finish(struct job *job)
{
    struct front *front = job->front;

    nbd_request_done(job->request, job->result);
    front_kick(front);
}

static void
piece_done(void *arg, int result)
{
    struct job *job = arg;
    struct bridge *bridge = job->front->bridge;

    if (result < 0 && job->result == 0)
        job->result = result;
    THIN_ASSERT(job->pending > 0 && bridge->outstanding > 0);
    job->pending--;
    bridge->outstanding--;
    if (job->pending == 0 && !job->is_refused)
        finish(job);
    job_retry(bridge);
}

/* Asks for the part that is not known yet. */
static void
status_done(void *arg, int result, const struct thin_client_extent *extents,
            unsigned nr_extents)
{
    struct job *job = arg;
    struct bridge *bridge = job->front->bridge;
    struct nbd_request *req = job->request;
    bool more = nr_extents > 0;

    job->pending = 0;
    job->result = result;
    bridge->outstanding--;
    for (unsigned i = 0; result == 0 && more && i < nr_extents; i++) {
        more = false;
        job->at += extents[i].len_bytes;
        for (unsigned c = 0; c < req->nr_contexts; c++)
            more |= nbd_extent_add(req, c, extents[i].len_bytes,
                                   export_status(req->contexts[c], extents[i].flags));
    }
    if (result < 0 || !more || job->at >= req->len)
        finish(job);
    else
        start(job, false);
    job_retry(bridge);
}

/* One piece of a read or write, at most as large as the server takes. */
static int
start_transfer(struct job *job, uint64_t *ret_len)
{
    const struct nbd_request *req = job->request;
    struct thin_client_volume *volume = job->front->use->volume;
    uint64_t len = min_u64(req->len - job->at, thin_client_volume_max_request(volume));
    struct iovec iov = {(char *)req->buffer.iov[0].iov_base + job->at, len};

    *ret_len = len;
    if (req->op == NBD_OP_READ)
        return thin_client_read(volume, &iov, 1, req->offset + job->at, piece_done, job);
    return thin_client_write(volume, &iov, 1, req->offset + job->at,
                             req->flags & NBD_REQ_FUA ? THIN_CLIENT_FUA : 0, piece_done,
                             job);
}

static int
start_piece(struct job *job, uint64_t *ret_len)
{
    const struct nbd_request *req = job->request;
    struct thin_client_volume *volume = job->front->use->volume;
    unsigned flags = (req->flags & NBD_REQ_FUA ? THIN_CLIENT_FUA : 0) |
                     (req->flags & NBD_REQ_NO_HOLE ? THIN_CLIENT_NO_HOLE : 0) |
                     (req->flags & NBD_REQ_FAST_ZERO ? THIN_CLIENT_FAST_ZERO : 0);

    *ret_len = req->len;
    switch (req->op) {
    case NBD_OP_READ:
    case NBD_OP_WRITE:
        return start_transfer(job, ret_len);
    case NBD_OP_FLUSH:
        return thin_client_flush(volume, piece_done, job);
    case NBD_OP_TRIM:
        return thin_client_discard(volume, req->offset, req->len, flags & THIN_CLIENT_FUA,
                                   piece_done, job);
    case NBD_OP_WRITE_ZEROES:
        return thin_client_write_zeroes(volume, req->offset, req->len, flags, piece_done,
                                        job);
    case NBD_OP_BLOCK_STATUS:
        *ret_len = 0; /* status_done moves on */
        return thin_client_block_status(volume, req->offset + job->at, req->len - job->at,
                                        NULL, status_done, job);
    case NBD_OP_CACHE:
        break; /* not offered: the machine refuses it */
    }
    return -THIN_E_UNSUPPORTED;
}

/* Back into the row; `first`: it had its turn, and keeps its place. */
static void
put_by(struct job *job, bool first)
{
    struct bridge *bridge = job->front->bridge;

    job->is_refused = true;
    if (first)
        TAILQ_INSERT_HEAD(&bridge->refused, job, link);
    else
        TAILQ_INSERT_TAIL(&bridge->refused, job, link);
}

/* Submits what is not yet. False: the client is full, the job is put by. */
static bool
start(struct job *job, bool first)
{
    const struct nbd_request *req = job->request;
    struct bridge *bridge = job->front->bridge;

    do {
        uint64_t len = 0;
        int r = job->result < 0 ? job->result : start_piece(job, &len);

        /* With nothing under way there is nothing to wait for. */
        if (r == -THIN_E_LIMIT && bridge->outstanding > 0) {
            put_by(job, first);
            return false;
        }
        if (r < 0) {
            if (job->result == 0)
                job->result = r;
            break;
        }
        job->pending++;
        bridge->outstanding++;
        job->at += len;
    } while (job->at < req->len && req->op != NBD_OP_BLOCK_STATUS);
    if (job->pending == 0)
        finish(job);
    return true;
}

void
job_submit(void *arg, struct nbd_request *request)
{
    struct front *front = arg;
    struct job *job = nbd_request_extra(request);

    *job = (struct job){.front = front, .request = request};
    /* Nobody overtakes those who wait: a writer with deep queues would starve them. */
    if (TAILQ_EMPTY(&front->bridge->refused))
        start(job, false);
    else
        put_by(job, false);
}

void
job_retry(struct bridge *bridge)
{
    struct job *job;

    while ((job = TAILQ_FIRST(&bridge->refused))) {
        TAILQ_REMOVE(&bridge->refused, job, link);
        job->is_refused = false;
        if (!start(job, true))
            return;
    }
}

void
job_fail_refused(struct bridge *bridge, int code)
{
    struct job *job;

    while ((job = TAILQ_FIRST(&bridge->refused))) {
        TAILQ_REMOVE(&bridge->refused, job, link);
        job->is_refused = false;
        if (job->result == 0)
            job->result = code;
        if (job->pending == 0)
            finish(job);
    }
}
