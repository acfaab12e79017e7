#include "core/device/device.h"

#include <errno.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/device/driver.h"

/* What is delivered in one turn of the loop, before others have theirs. */
#define DEVICE_DELIVER_NS 50000u

/* ---- what a request must look like ---------------------------------------------- */

static unsigned
allowed_flags(enum device_op op)
{
    switch (op) {
    case DEVICE_WRITE:
        return DEVICE_FUA;
    case DEVICE_WRITE_ZEROES:
        return DEVICE_FUA | DEVICE_NO_UNMAP | DEVICE_ONLY_FAST;
    default:
        return 0;
    }
}

static bool
changes(enum device_op op)
{
    return op == DEVICE_WRITE || op == DEVICE_WRITE_ZEROES || op == DEVICE_DISCARD ||
           op == DEVICE_GROW || op == DEVICE_ALLOCATE;
}

static int
check_iov(const struct device_io *io)
{
    uint64_t sum = 0;

    if (io->len > DEVICE_IO_MAX || io->nr_iov == 0 || io->nr_iov > DEVICE_IOV_MAX ||
        !io->iov)
        return -THIN_E_INVALID;
    for (unsigned i = 0; i < io->nr_iov; i++)
        if (!checked_add_u64(sum, io->iov[i].iov_len, &sum))
            return -THIN_E_INVALID;
    return sum == io->len ? 0 : -THIN_E_INVALID;
}

static int
check_shape(const struct device_io *io)
{
    if (io->flags & ~allowed_flags(io->op))
        return -THIN_E_INVALID;
    switch (io->op) {
    case DEVICE_FLUSH:
        return 0;
    case DEVICE_GROW:
        return io->offset % SECTOR_SIZE ? -THIN_E_INVALID : 0;
    case DEVICE_READ:
    case DEVICE_WRITE:
    case DEVICE_WRITE_ZEROES:
    case DEVICE_DISCARD:
    case DEVICE_EXTENTS:
    case DEVICE_ALLOCATE:
        break;
    default:
        return -THIN_E_INVALID;
    }
    if (io->len == 0 || io->offset % SECTOR_SIZE || io->len % SECTOR_SIZE)
        return -THIN_E_INVALID;
    if (io->op == DEVICE_READ || io->op == DEVICE_WRITE)
        return check_iov(io);
    if (io->op == DEVICE_EXTENTS && (!io->extents || io->max_extents == 0))
        return -THIN_E_INVALID;
    return 0;
}

static int
check_io(const struct device *dev, const struct device_io *io)
{
    int r;

    if (dev->lost)
        return -THIN_E_LOST;
    if (dev->closing)
        return -THIN_E_SHUTDOWN;
    r = check_shape(io);
    if (r < 0)
        return r;
    if (dev->read_only && changes(io->op))
        return -THIN_E_READ_ONLY;
    if (io->op == DEVICE_FLUSH)
        return 0;
    if (io->op == DEVICE_GROW)
        return io->offset < dev->size ? -THIN_E_INVALID : 0;
    return range_inside(io->offset, io->len, dev->size) ? 0 : -THIN_E_RANGE;
}

/* ---- submit, finish, close ---------------------------------------------------------- */

static void
deliver(struct device *dev, struct device_io *io, int result)
{
    THIN_ASSERT(dev->in_flight > 0);
    dev->in_flight--;
    if (io->op == DEVICE_GROW && result == 0 && io->offset > dev->size)
        dev->size = io->offset;
    io->done(io, result);
}

/* Ends the device if it is closing and drained. The device may be gone afterwards. */
static void
close_if_drained(struct device *dev)
{
    if (!dev->closing || dev->winding_up || dev->in_flight > 0 || dev->delivering)
        return;
    dev->winding_up = true;
    loop_defer_cancel(dev->loop, &dev->finish_task);
    dev->ops->close(dev, dev->closed, dev->closed_arg);
}

static void
finish_run(struct thin_task *task)
{
    struct device *dev = container_of(task, struct device, finish_task);
    struct device_io_list ended = TAILQ_HEAD_INITIALIZER(ended);
    uint64_t began = loop_now_ns(dev->loop);
    bool nested = dev->delivering;
    struct device_io *io;

    /* A `done` that waits runs the loop and so comes here again: only the outermost
       call may let the device go. */
    dev->delivering = true;
    TAILQ_CONCAT(&ended, &dev->finished, link);
    while ((io = TAILQ_FIRST(&ended))) {
        /* What a request's end leads to may take its time: others come in between. */
        if (loop_now_ns(dev->loop) - began > DEVICE_DELIVER_NS) {
            TAILQ_CONCAT(&ended, &dev->finished, link);
            TAILQ_CONCAT(&dev->finished, &ended, link);
            loop_defer(dev->loop, &dev->finish_task);
            break;
        }
        TAILQ_REMOVE(&ended, io, link);
        deliver(dev, io, io->result);
    }
    dev->delivering = nested;
    close_if_drained(dev);
}

void
device_init(struct device *dev, const struct device_ops *ops, struct thin_loop *loop,
            const char *name)
{
    size_t len = strnlen(name, sizeof(dev->name) - 1);

    memset(dev, 0, sizeof(*dev));
    dev->ops = ops;
    dev->loop = loop;
    memcpy(dev->name, name, len);
    dev->finish_task.run = finish_run;
    TAILQ_INIT(&dev->finished);
    dev->limits = (struct device_limits){
        .alignment = SECTOR_SIZE,
        .best_io_bytes = 1u << 20,
        .discard_align = SECTOR_SIZE,
    };
}

void
device_finish(struct device *dev, struct device_io *io, int result)
{
    io->result = result;
    TAILQ_INSERT_TAIL(&dev->finished, io, link);
    loop_defer(dev->loop, &dev->finish_task);
}

void
device_log_trouble(const struct device *dev, const struct device_io *io, int result,
                   struct thin_log_limit *limit)
{
    static const char *const op_names[] = {
        [DEVICE_READ] = "read",
        [DEVICE_WRITE] = "write",
        [DEVICE_WRITE_ZEROES] = "write_zeroes",
        [DEVICE_DISCARD] = "discard",
        [DEVICE_FLUSH] = "flush",
        [DEVICE_GROW] = "grow",
        [DEVICE_EXTENTS] = "extents",
        [DEVICE_ALLOCATE] = "allocate",
    };
    unsigned dropped = 0;

    if (result >= 0 || result <= -1001 || result == -ENOSPC || result == -EDQUOT ||
        result == -EOPNOTSUPP || result == -EFBIG)
        return;
    if (thin_log_allowed(limit, loop_now_ns(dev->loop) / NS_PER_MS, &dropped))
        log_error("a device request failed op=%s device=%s offset=%llu len=%llu error=%s "
                  "not_shown=%u",
                  op_names[io->op], dev->name, (unsigned long long)io->offset,
                  (unsigned long long)io->len, thin_strerror(result), dropped);
}

void
device_deliver(struct device *dev, struct device_io *io, int result)
{
    bool nested = dev->delivering;

    dev->delivering = true;
    deliver(dev, io, result);
    dev->delivering = nested;
    close_if_drained(dev);
}

void
device_submit(struct device *dev, struct device_io *io)
{
    int r = check_io(dev, io);

    THIN_ASSERT(io->done);
    THIN_ASSERT(!dev->winding_up);
    io->dev = dev;
    io->ret_nr_extents = 0;
    dev->in_flight++;
    if (r < 0)
        device_finish(dev, io, r);
    else
        dev->ops->submit(dev, io);
}

void
device_close(struct device *dev, void (*closed)(void *arg), void *arg)
{
    if (!dev)
        return;
    THIN_ASSERT(!dev->closing);
    dev->closing = true;
    dev->closed = closed;
    dev->closed_arg = arg;
    loop_defer(dev->loop, &dev->finish_task);
}

/* ---- waiting forms --------------------------------------------------------------------- */

struct waiting {
    struct device_io io;
    bool ended;
    int result;
};

static void
wait_done(struct device_io *io, int result)
{
    struct waiting *w = container_of(io, struct waiting, io);

    w->ended = true;
    w->result = result;
}

/* A request that nobody completes any more, or a loop that may not wait, is our bug. */
static void
wait_turn(struct thin_loop *loop)
{
    int r = loop_run_once(loop);

    THIN_ASSERT(r == 0 || r == -ENOMEM);
}

int
device_wait(struct device *dev, struct device_io *io)
{
    struct waiting w = {.io = *io};

    w.io.done = wait_done;
    device_submit(dev, &w.io);
    while (!w.ended)
        wait_turn(dev->loop);
    io->ret_nr_extents = w.io.ret_nr_extents;
    io->result = w.result;
    return w.result;
}

static int
wait_pieces(struct device *dev, enum device_op op, uint64_t offset, char *buf,
            uint64_t len_bytes, unsigned flags)
{
    int r = 0;

    do {
        uint64_t len = min_u64(len_bytes, DEVICE_IO_MAX);
        struct iovec iov = {.iov_base = buf, .iov_len = len};
        struct device_io io = {
            .op = op,
            .flags = flags,
            .offset = offset,
            .len = len,
            .iov = &iov,
            .nr_iov = 1,
        };

        r = device_wait(dev, &io);
        offset += len;
        buf += len;
        len_bytes -= len;
    } while (r == 0 && len_bytes > 0);
    return r;
}

int
device_read_wait(struct device *dev, uint64_t offset, void *buf, uint64_t len_bytes)
{
    return wait_pieces(dev, DEVICE_READ, offset, buf, len_bytes, 0);
}

int
device_write_wait(struct device *dev, uint64_t offset, const void *buf,
                  uint64_t len_bytes, unsigned flags)
{
    /* struct iovec knows no const; a write does not change its pieces. */
    return wait_pieces(dev, DEVICE_WRITE, offset, (char *)(uintptr_t)buf, len_bytes,
                       flags);
}

int
device_zero_wait(struct device *dev, uint64_t offset, uint64_t len_bytes, unsigned flags)
{
    struct device_io io = {
        .op = DEVICE_WRITE_ZEROES, .flags = flags, .offset = offset, .len = len_bytes};

    return device_wait(dev, &io);
}

int
device_flush_wait(struct device *dev)
{
    struct device_io io = {.op = DEVICE_FLUSH};

    return device_wait(dev, &io);
}

int
device_grow_wait(struct device *dev, uint64_t new_size)
{
    struct device_io io = {.op = DEVICE_GROW, .offset = new_size};

    return device_wait(dev, &io);
}

static void
wait_closed(void *arg)
{
    *(bool *)arg = true;
}

void
device_close_wait(struct device *dev)
{
    bool closed = false;
    struct thin_loop *loop;

    if (!dev)
        return;
    loop = dev->loop;
    device_close(dev, wait_closed, &closed);
    while (!closed)
        wait_turn(loop);
}
