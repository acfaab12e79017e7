/*
 * A regular file or block device: which way each request goes, and what follows when it
 * has ended. file_private.h draws the whole.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/device/file_private.h"

static struct file_device *
to_file(struct device *dev)
{
    return container_of(dev, struct file_device, base);
}

/* ---- the ways --------------------------------------------------------------------------- */

static void
run_inline(struct file_device *f, struct device_io *io)
{
    file_ended(f, io,
               io->op == DEVICE_FLUSH || (io->driver_u32 & FILE_IO_SYNCING)
                   ? file_flush(f)
                   : file_run(f, io, &f->bounce));
}

void
file_send_lane(struct file_device *f, enum file_lane_id lane, struct device_io *io)
{
    /* Without a thread the loop waits: slow, but right. */
    if (f->way == DEVICE_WAY_INLINE || file_lane_push(f, lane, io) < 0)
        run_inline(f, io);
}

static void
send_ring(struct file_device *f, struct device_io *io)
{
    if (!file_ring_push(f, io))
        file_send_lane(f, FILE_LANE_IO, io);
}

/* What the page cache has, at once. True if that was all. */
static bool
read_cached(struct file_device *f, struct device_io *io)
{
    ssize_t got;

    if (!f->nowait)
        return false;
    got = preadv2(f->fd, io->iov, (int)io->nr_iov, (off_t)io->offset, RWF_NOWAIT);
    if (got < 0) {
        if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL)
            f->nowait = false;
        return false;
    }
    io->driver_u64[0] = (uint64_t)got;
    return (uint64_t)got == io->len;
}

static void
route_read(struct file_device *f, struct device_io *io)
{
    if (f->way == DEVICE_WAY_THREADS || !file_is_aligned(f, io))
        file_send_lane(f, FILE_LANE_IO, io);
    else if (f->way == DEVICE_WAY_URING || f->direct)
        send_ring(f, io);
    else if (io->len >= FILE_LARGE_BYTES)
        file_send_lane(f, FILE_LANE_IO, io);
    else if (read_cached(f, io))
        file_ended(f, io, 0);
    else
        send_ring(f, io);
}

static bool
is_cached(struct file_device *f, uint64_t pos)
{
    char byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};

    return f->nowait && preadv2(f->fd, &iov, 1, (off_t)pos, RWF_NOWAIT) == 1;
}

/* A buffered write of a part of a page reads the page first, unless it is there. */
static bool
needs_no_read(struct file_device *f, const struct device_io *io)
{
    uint64_t end = io->offset + io->len;

    if (io->offset % FILE_PAGE_BYTES && !is_cached(f, io->offset))
        return false;
    return end % FILE_PAGE_BYTES == 0 || is_cached(f, end - 1);
}

static void
route_write(struct file_device *f, struct device_io *io)
{
    enum file_lane_id lane = f->direct ? FILE_LANE_IO : FILE_LANE_WRITE;
    bool ring = f->way == DEVICE_WAY_URING || (f->way == DEVICE_WAY_AUTO && f->direct);

    if (ring && io->op == DEVICE_WRITE && file_is_aligned(f, io))
        send_ring(f, io);
    else if (f->way == DEVICE_WAY_AUTO && !f->direct && io->len < FILE_LARGE_BYTES &&
             !f->crowded && f->nr_space == 0 && f->dirty_bytes < FILE_INLINE_DIRTY_MAX &&
             needs_no_read(f, io))
        run_inline(f, io);
    else
        file_send_lane(f, lane, io);
}

static bool
is_written(const struct device_io *io)
{
    return io->op == DEVICE_WRITE || (io->driver_u32 & FILE_IO_BY_WRITING);
}

/* These hold the inode's lock while the disk works; a write of the loop would wait for it. */
static void
send_space(struct file_device *f, struct device_io *io)
{
    io->driver_u32 |= FILE_IO_SPACE;
    f->nr_space++;
    file_send_lane(f, FILE_LANE_SPACE, io);
}

static void
route(struct file_device *f, struct device_io *io)
{
    if (f->way == DEVICE_WAY_INLINE)
        run_inline(f, io);
    else if (io->op == DEVICE_READ)
        route_read(f, io);
    else if (is_written(io))
        route_write(f, io);
    else if (io->op == DEVICE_FLUSH)
        file_send_lane(f, FILE_LANE_FLUSH, io);
    else
        send_space(f, io);
}

/* ---- direct writes of a part of a disk block ---------------------------------------------- */

static bool
is_gated(const struct file_device *f, const struct device_io *io)
{
    return f->direct && (io->op == DEVICE_WRITE || io->op == DEVICE_WRITE_ZEROES ||
                         io->op == DEVICE_DISCARD);
}

static bool
must_be_alone(const struct file_device *f, const struct device_io *io)
{
    return io->offset % f->offset_align || io->len % f->offset_align;
}

static bool
gate_open(const struct file_device *f, const struct device_io *io)
{
    return !f->alone && (f->nr_writes == 0 || !must_be_alone(f, io));
}

static void
pass_gate(struct file_device *f, struct device_io *io)
{
    f->nr_writes++;
    if (must_be_alone(f, io))
        f->alone = io;
    route(f, io);
}

static void
enter_gate(struct file_device *f, struct device_io *io)
{
    if (TAILQ_EMPTY(&f->gated) && gate_open(f, io))
        pass_gate(f, io);
    else
        TAILQ_INSERT_TAIL(&f->gated, io, link);
}

static void
leave_gate(struct file_device *f, struct device_io *io)
{
    THIN_ASSERT(f->nr_writes > 0);
    f->nr_writes--;
    if (f->alone == io)
        f->alone = NULL;
    /* What passes may end at once and come here again. */
    if (f->pumping)
        return;
    f->pumping = true;
    while ((io = TAILQ_FIRST(&f->gated)) && gate_open(f, io)) {
        TAILQ_REMOVE(&f->gated, io, link);
        pass_gate(f, io);
    }
    f->pumping = false;
}

/* ---- ends ------------------------------------------------------------------------------------ */

/*
 * After every few MiB of writes that lie close together writeback is started, so that a
 * flush finds little to do. Scattered ones are left alone, since the same pages may well
 * be written again; the thread only looks whether the kernel is crowded with dirty pages.
 * If so, everything is written back, and writes leave the loop, since the kernel makes
 * writers wait before long.
 */
static void
count_dirty(struct file_device *f, const struct device_io *io)
{
    uint64_t begin, end;
    bool dense;

    if (f->dirty_bytes == 0) {
        f->dirty_begin = io->offset;
        f->dirty_end = io->offset + io->len;
    }
    f->dirty_begin = min_u64(f->dirty_begin, io->offset);
    f->dirty_end = max_u64(f->dirty_end, io->offset + io->len);
    f->dirty_bytes += io->len;
    begin = f->dirty_begin;
    end = f->dirty_end;
    dense = f->dirty_bytes >= (end - begin) / 4;
    if (f->dirty_bytes < (dense ? FILE_WRITEBACK_BYTES : FILE_SCATTERED_BYTES) ||
        f->writeback_running || f->way == DEVICE_WAY_INLINE)
        return;
    /* Without the thread, the kernel's own writeback has to do. */
    f->writeback_running = file_lane_start_writeback(f, begin, dense ? end : begin);
    f->dirty_bytes = 0;
}

void
file_ended(struct file_device *f, struct device_io *io, int result)
{
    if (io->driver_u32 & FILE_IO_SPACE) {
        io->driver_u32 &= ~FILE_IO_SPACE;
        f->nr_space--;
    }
    if (!(io->driver_u32 & FILE_IO_SYNCING)) {
        bool fua = io->flags & DEVICE_FUA;

        if (is_written(io) && !f->direct)
            count_dirty(f, io);
        if (is_gated(f, io)) {
            /* Marked first: the gate may let others end inside this call. */
            leave_gate(f, io);
        }
        if (fua && result == 0) {
            io->driver_u32 |= FILE_IO_SYNCING;
            file_send_lane(f, FILE_LANE_FLUSH, io);
            return;
        }
    }
    if (result < 0)
        device_log_trouble(&f->base, io, result, &f->log_limit);
    device_finish(&f->base, io, result);
}

static void
file_submit(struct device *dev, struct device_io *io)
{
    struct file_device *f = to_file(dev);

    io->driver_u32 = 0;
    io->driver_u64[0] = 0;
    /* Small: written zeros keep the extent tree in one piece and stay written. */
    if (io->op == DEVICE_WRITE_ZEROES && (io->flags & DEVICE_NO_UNMAP) &&
        !(io->flags & DEVICE_ONLY_FAST) && io->len <= FILE_ZERO_WRITE_MAX)
        io->driver_u32 |= FILE_IO_BY_WRITING;
    if (is_gated(f, io))
        enter_gate(f, io);
    else
        route(f, io);
}

/* ---- the threads' and the ring's call ------------------------------------------------------- */

static void wind_up(struct file_device *f);

static void
wake_ready(struct thin_watch *watch, unsigned events)
{
    struct file_device *f = container_of(watch, struct file_device, watch);
    struct device_io_list done = TAILQ_HEAD_INITIALIZER(done);
    bool writeback_done, close_done, crowded;
    struct device_io *io;
    uint64_t count;

    (void)events;
    /* Emptied first: what ends from here on writes it anew. */
    while (read(f->wake_fd, &count, sizeof(count)) < 0 && errno == EINTR)
        continue;
    pthread_mutex_lock(&f->lock);
    f->woken = false;
    TAILQ_CONCAT(&done, &f->done, link);
    writeback_done = f->writeback_done;
    f->writeback_done = false;
    close_done = f->close_done;
    crowded = f->found_crowded;
    pthread_mutex_unlock(&f->lock);

    if (writeback_done) {
        f->writeback_running = false;
        f->crowded = crowded;
    }
    while ((io = TAILQ_FIRST(&done))) {
        TAILQ_REMOVE(&done, io, link);
        file_ended(f, io, io->result);
    }
    file_ring_reap(f);
    if (f->closing && (writeback_done || close_done))
        wind_up(f);
}

int
file_wake_start(struct file_device *f)
{
    int r;

    if (f->wake_fd >= 0)
        return 0;
    f->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (f->wake_fd < 0)
        return -errno;
    f->watch = (struct thin_watch){.ready = wake_ready, .fd = f->wake_fd};
    r = loop_watch_set(f->base.loop, &f->watch, THIN_WATCH_READ);
    if (r < 0) {
        close(f->wake_fd);
        f->wake_fd = -1;
    }
    return r;
}

/* ---- close ----------------------------------------------------------------------------------- */

void
file_free(struct file_device *f)
{
    file_lanes_fini(f);
    file_ring_stop(f);
    if (f->wake_fd >= 0) {
        loop_watch_cancel(f->base.loop, &f->watch);
        close(f->wake_fd);
    }
    if (f->fd >= 0)
        close(f->fd);
    free(f->bounce.buf);
    free(f);
}

/*
 * Nothing is in flight. The last close of a block device writes back what is left, so
 * that it runs on a thread, after a writeback that is still on its way.
 */
static void
wind_up(struct file_device *f)
{
    void (*closed)(void *arg) = f->closed;
    void *arg = f->closed_arg;
    bool on_thread = f->is_block || file_lane_has_thread(f, FILE_LANE_FLUSH);

    if (f->writeback_running)
        return;
    if (f->way != DEVICE_WAY_INLINE && f->fd >= 0 && on_thread &&
        file_lane_start_close(f))
        return;
    file_free(f);
    if (closed)
        closed(arg);
}

static void
file_close(struct device *dev, void (*closed)(void *arg), void *arg)
{
    struct file_device *f = to_file(dev);

    f->closed = closed;
    f->closed_arg = arg;
    f->closing = true;
    wind_up(f);
}

const struct device_ops file_ops = {
    .kind = "file",
    .submit = file_submit,
    .close = file_close,
};
