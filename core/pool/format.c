/*
 * Formatting over what stood there: block 0 goes first. An old superblock must not stand
 * over blocks that the new pool writes upon: after a power cut it would open and lie.
 *
 *   format_wipe ─ zeros over block 0 ─► flush ─► done; only then is anything else written
 */
#include "core/pool/io_private.h"

static void
wipe_end(struct pool *pool, int result, const char *doing)
{
    struct pool_end *end = pool->end;
    struct thin_error err;

    thin_error_init(&err);
    if (result < 0)
        thin_fail_code(&err, result, "%s", doing);
    end->wiped(pool, result, &err);
}

static void
wipe_flushed(struct device_io *io, int result)
{
    wipe_end(container_of(io, struct pool_end, wipe_io)->pool, result,
             "flush the wiped superblock");
}

static void
wipe_written(struct device_io *io, int result)
{
    struct pool_end *end = container_of(io, struct pool_end, wipe_io);
    struct pool *pool = end->pool;

    if (result < 0) {
        wipe_end(pool, result, "wipe the old superblock");
        return;
    }
    memset(io, 0, sizeof(*io));
    io->op = DEVICE_FLUSH;
    io->done = wipe_flushed;
    device_submit(pool->metadata_dev, io);
}

void
format_wipe(struct pool *pool,
            void (*done)(struct pool *pool, int result, const struct thin_error *err))
{
    struct pool_end *end = pool->end;
    struct device_io *io = &end->wipe_io;

    end->wiped = done;
    end->wipe_iov.iov_base = pool->in->zeros;
    end->wipe_iov.iov_len = METADATA_BLOCK_SIZE;
    memset(io, 0, sizeof(*io));
    io->op = DEVICE_WRITE;
    io->len = METADATA_BLOCK_SIZE;
    io->iov = &end->wipe_iov;
    io->nr_iov = 1;
    io->done = wipe_written;
    device_submit(pool->metadata_dev, io);
}
