/*
 * The file device's io_uring. Requests are collected and handed to the kernel once per
 * turn of the loop; completions wake it through the device's eventfd. A ring that
 * stops working sends everything to the threads.
 */
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

#include "core/base/cleanup.h"
#include "core/device/file_private.h"

struct file_ring {
    struct io_uring ring;
    struct file_device *f;
    struct device_io_list waiting;  /* no entry yet */
    struct device_io_list prepared; /* entry written, not yet taken by the kernel */
    unsigned nr_used;               /* entries prepared or in flight */
    struct thin_task submit_task;
};

static void
prepare(struct file_ring *fr, struct io_uring_sqe *sqe, struct device_io *io)
{
    int fd = fr->f->fd;
    uint64_t at = io->driver_u64[0];

    if (io->nr_iov == 1) {
        char *base = (char *)io->iov[0].iov_base + at;
        unsigned len = (unsigned)(io->len - at);

        if (io->op == DEVICE_READ)
            io_uring_prep_read(sqe, fd, base, len, io->offset + at);
        else
            io_uring_prep_write(sqe, fd, base, len, io->offset + at);
    } else if (io->op == DEVICE_READ)
        io_uring_prep_readv(sqe, fd, io->iov, io->nr_iov, io->offset);
    else
        io_uring_prep_writev(sqe, fd, io->iov, io->nr_iov, io->offset);
    io_uring_sqe_set_data(sqe, io);
}

/* The ring refuses to work: what the kernel has not taken goes to the threads. */
static void
give_up(struct file_ring *fr, int why)
{
    struct device_io_list left = TAILQ_HEAD_INITIALIZER(left);
    struct file_device *f = fr->f;
    struct device_io *io;

    log_warning("io_uring failed, going on with threads device=%s error=%s", f->base.name,
                thin_strerror(why));
    f->ring_refused = true;
    TAILQ_FOREACH(io, &fr->prepared, link)
        fr->nr_used--;
    TAILQ_CONCAT(&left, &fr->prepared, link);
    TAILQ_CONCAT(&left, &fr->waiting, link);
    while ((io = TAILQ_FIRST(&left))) {
        TAILQ_REMOVE(&left, io, link);
        file_send_lane(f, FILE_LANE_IO, io);
    }
}

static void
submit_run(struct thin_task *task)
{
    struct file_ring *fr = container_of(task, struct file_ring, submit_task);
    struct device_io *io;
    int r;

    if (fr->f->ring_refused)
        return;
    while ((io = TAILQ_FIRST(&fr->waiting)) && fr->nr_used < FILE_RING_DEPTH) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&fr->ring);

        if (!sqe)
            break;
        TAILQ_REMOVE(&fr->waiting, io, link);
        TAILQ_INSERT_TAIL(&fr->prepared, io, link);
        fr->nr_used++;
        prepare(fr, sqe, io);
    }
    if (TAILQ_EMPTY(&fr->prepared))
        return;
    r = io_uring_submit(&fr->ring);
    if (r < 0 && r != -EAGAIN && r != -EBUSY && r != -EINTR) {
        give_up(fr, r);
        return;
    }
    for (; r > 0 && (io = TAILQ_FIRST(&fr->prepared)); r--)
        TAILQ_REMOVE(&fr->prepared, io, link);
    if (!TAILQ_EMPTY(&fr->prepared))
        loop_defer(fr->f->base.loop, task);
}

bool
file_ring_push(struct file_device *f, struct device_io *io)
{
    if (io->op != DEVICE_READ && io->op != DEVICE_WRITE)
        return false;
    if (io->driver_u64[0] > 0 && io->nr_iov > 1)
        return false;
    if (file_ring_start(f) < 0)
        return false;
    TAILQ_INSERT_TAIL(&f->ring->waiting, io, link);
    loop_defer(f->base.loop, &f->ring->submit_task);
    return true;
}

/* What a thread may do better: asked again, cut short, or a call the kernel lacks. */
static bool
wants_thread(int res)
{
    return res == -EAGAIN || res == -EINTR || res == -EINVAL || res == -EOPNOTSUPP ||
           res == -ECANCELED;
}

static void
completed(struct file_device *f, struct device_io *io, int res)
{
    if (res > 0)
        io->driver_u64[0] += (unsigned)res;
    if (wants_thread(res) || (res > 0 && io->driver_u64[0] < io->len))
        file_send_lane(f, FILE_LANE_IO, io);
    else if (res == 0 && file_pad_sector(f, io))
        file_ended(f, io, 0);
    else if (res <= 0)
        /* Nothing moved: the file is shorter than the size we recorded. */
        file_ended(f, io, res < 0 ? res : -EIO);
    else
        file_ended(f, io, 0);
}

void
file_ring_reap(struct file_device *f)
{
    struct file_ring *fr = f->ring;
    struct io_uring_cqe *cqe;

    if (!fr)
        return;
    while (io_uring_peek_cqe(&fr->ring, &cqe) == 0) {
        struct device_io *io = io_uring_cqe_get_data(cqe);
        int res = cqe->res;

        io_uring_cqe_seen(&fr->ring, cqe);
        fr->nr_used--;
        completed(f, io, res);
    }
    if (!TAILQ_EMPTY(&fr->waiting))
        loop_defer(f->base.loop, &fr->submit_task);
}

int
file_ring_start(struct file_device *f)
{
    struct file_ring *fr;
    int r;

    if (f->ring_refused)
        return -EPERM;
    if (f->ring)
        return 0;
    r = file_wake_start(f);
    if (r < 0)
        return r;
    fr = calloc(1, sizeof(*fr));
    if (!fr)
        return -ENOMEM;
    r = io_uring_queue_init(FILE_RING_DEPTH, &fr->ring, 0);
    if (r == 0) {
        r = io_uring_register_eventfd(&fr->ring, f->wake_fd);
        if (r < 0)
            io_uring_queue_exit(&fr->ring);
    }
    if (r < 0) {
        free(fr);
        f->ring_refused = true;
        return r;
    }
    fr->f = f;
    fr->submit_task.run = submit_run;
    TAILQ_INIT(&fr->waiting);
    TAILQ_INIT(&fr->prepared);
    f->ring = fr;
    return 0;
}

void
file_ring_stop(struct file_device *f)
{
    if (!f->ring)
        return;
    loop_defer_cancel(f->base.loop, &f->ring->submit_task);
    io_uring_queue_exit(&f->ring->ring);
    free(f->ring);
    f->ring = NULL;
}
