/*
 * Trim: gives back the blocks of a volume that hold nothing but zeros.
 *
 *   attached for writing ─► what is mapped from here on? ─► a piece read ─► nothing but
 *   zeros up to the block's end? ─► discarded ─► the next block ... ─► what came free
 *
 * A step is one request of the volume, at most TRIM_PIECE bytes, and then others have
 * their turn. Nobody else writes meanwhile, or a write between looking and discarding
 * would be lost: so it is refused while the volume is attached for writing (whoever has it
 * attached can discard by himself), and it ends when somebody takes the volume. The
 * contents stay the same, so the epoch does not rise.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "server/attach.h"
#include "server/dispatch.h"
#include "server/pools.h"

#define TRIM_PIECE    (1u << 20)
#define TRIM_JOBS_MAX 4u /* at once, in the whole server */

struct trim_job {
    struct request *rq;
    struct attachment *attachment;
    bool fenced;
    uint64_t size, block; /* bytes */
    uint64_t begin;       /* of the block at hand */
    uint64_t at;          /* zeros up to here in it */
    uint64_t mapped_to;   /* what is known to be mapped ends here */
    uint64_t freed;
    struct volume_io io;
    struct volume_extent extent;
    struct iovec iov;
    uint8_t piece[TRIM_PIECE];
};

static unsigned nr_trims;

static void next(struct trim_job *t);

static void
end_trim(struct trim_job *t, int result, const struct thin_error *err)
{
    struct request *rq = t->rq;
    Thin__Reply reply = THIN__REPLY__INIT;
    Thin__DeleteReply body = THIN__DELETE_REPLY__INIT;

    nr_trims--;
    body.freed = t->freed;
    if (t->attachment)
        attach_close(rq->server->attachments, t->attachment);
    if (result < 0) {
        request_reply_code(rq, result, err); /* frees t */
        return;
    }
    reply.body_case = THIN__REPLY__BODY_VOLUME_DELETE;
    reply.volume_delete = &body;
    request_reply(rq, &reply);
}

static uint64_t
block_end(const struct trim_job *t)
{
    return min_u64(t->begin + t->block, t->size);
}

/* The block at hand is dealt with. */
static void
go_on_from(struct trim_job *t, uint64_t at)
{
    t->begin = at;
    t->at = at;
    next(t);
}

static void
submit(struct trim_job *t, enum volume_op op, uint64_t offset, uint64_t len,
       void (*done)(struct volume_io *io, int result))
{
    memset(&t->io, 0, sizeof(t->io));
    t->io.op = op;
    t->io.offset = offset;
    t->io.len = len;
    t->io.done = done;
    if (op == VOLUME_READ) {
        t->iov = (struct iovec){t->piece, len};
        t->io.iov = &t->iov;
        t->io.nr_iov = 1;
    } else if (op == VOLUME_STATUS) {
        t->io.extents = &t->extent;
        t->io.max_extents = 1;
    }
    volume_submit(t->attachment->volume, &t->io);
}

/* Over an external origin a block of zeros stays mapped, or the old data would show. */
static void
counted(struct volume_io *io, int result)
{
    struct trim_job *t = container_of(io, struct trim_job, io);

    if (result < 0) {
        end_trim(t, result, NULL);
        return;
    }
    if (t->extent.flags & VOLUME_EXTENT_HOLE)
        t->freed += t->extent.len;
    go_on_from(t, block_end(t));
}

static void
discarded(struct volume_io *io, int result)
{
    struct trim_job *t = container_of(io, struct trim_job, io);

    if (result < 0) {
        end_trim(t, result, NULL);
        return;
    }
    submit(t, VOLUME_STATUS, t->begin, block_end(t) - t->begin, counted);
}

static bool
all_zeros(const uint8_t *bytes, size_t len)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, len - 1) == 0;
}

static void
piece_read(struct volume_io *io, int result)
{
    struct trim_job *t = container_of(io, struct trim_job, io);

    if (result < 0) {
        end_trim(t, result, NULL);
    } else if (!all_zeros(t->piece, io->len)) {
        go_on_from(t, block_end(t));
    } else {
        t->at += io->len;
        next(t);
    }
}

/* What is not mapped, or comes from an origin, has nothing to give. */
static void
looked(struct volume_io *io, int result)
{
    struct trim_job *t = container_of(io, struct trim_job, io);
    bool mapped = !(t->extent.flags & (VOLUME_EXTENT_HOLE | VOLUME_EXTENT_ORIGIN));

    if (result < 0) {
        end_trim(t, result, NULL);
        return;
    }
    if (mapped) {
        t->mapped_to = t->begin + t->extent.len;
        next(t);
        return;
    }
    go_on_from(t, min_u64(round_up_u64(t->begin + t->extent.len, t->block), t->size));
}

static void
next(struct trim_job *t)
{
    if (!request_is_wanted(t->rq))
        end_trim(t, -THIN_E_CANCELLED, NULL);
    else if (t->rq->server->stopping)
        end_trim(t, -THIN_E_SHUTDOWN, NULL);
    else if (t->fenced)
        end_trim(t, -THIN_E_STALE, NULL);
    else if (t->begin >= t->size)
        end_trim(t, 0, NULL);
    else if (t->mapped_to <= t->begin)
        submit(t, VOLUME_STATUS, t->begin, t->size - t->begin, looked);
    else if (t->at < block_end(t))
        submit(t, VOLUME_READ, t->at, min_u64(block_end(t) - t->at, TRIM_PIECE),
               piece_read);
    else
        submit(t, VOLUME_DISCARD, t->begin, block_end(t) - t->begin, discarded);
}

static void
on_fenced(void *arg)
{
    ((struct trim_job *)arg)->fenced = true;
}

static void
opened(void *arg, struct attachment *attachment, int result, const struct thin_error *err)
{
    struct trim_job *t = arg;

    t->attachment = attachment;
    if (result < 0) {
        end_trim(t, result, err);
        return;
    }
    attachment->fenced = on_fenced;
    attachment->fenced_arg = t;
    t->size = volume_size(attachment->volume);
    t->block = volume_block_size(attachment->volume);
    next(t);
}

void
ops_volume_trim(struct request *rq, const struct op_object *object)
{
    struct pool *pool = ops_find_pool(rq, object->pool);
    struct attach_request request = {.pool = object->pool,
                                     .volume = object->volume,
                                     .holder = "trim",
                                     .session = rq->session->id,
                                     .lazy = true};
    struct pool_info info;
    struct trim_job *t;

    if (!pool)
        return;
    pool_get_info(pool, &info);
    if (info.config.discards == POOL_DISCARD_OFF) {
        ops_fail(rq, -THIN_E_UNSUPPORTED,
                 "discards are off in pool %s; thincli pool set %s discards=passdown",
                 object->pool, object->pool);
        return;
    }
    if (nr_trims == TRIM_JOBS_MAX) {
        ops_fail(rq, -THIN_E_BUSY, "%u volumes are being trimmed already", TRIM_JOBS_MAX);
        return;
    }
    t = calloc(1, sizeof(*t));
    if (!t) {
        request_reply_code(rq, -ENOMEM, NULL);
        return;
    }
    nr_trims++;
    t->rq = rq;
    rq->work = t;
    attach_open(rq->server->attachments, &request, opened, t);
}
