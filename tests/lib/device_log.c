#include "tests/lib/device_log.h"

#include <stdlib.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "core/device/driver.h"

struct device_log {
    struct device_log_entry *entries;
    size_t length, room;
    size_t nr_completed;
    unsigned nr_sources;
};

struct log_device {
    struct device base;
    struct device *inner;
    struct device_log *log;
    unsigned source;
    void (*closed)(void *arg);
    void *closed_arg;
};

struct log_io {
    struct device_io inner;
    struct log_device *ld;
    struct device_io *outer;
    size_t entry;
};

struct device_log *
device_log_create(void)
{
    struct device_log *log = calloc(1, sizeof(*log));

    THIN_ASSERT(log);
    return log;
}

void
device_log_destroy(struct device_log *log)
{
    if (!log)
        return;
    for (size_t i = 0; i < log->length; i++)
        free(log->entries[i].data);
    free(log->entries);
    free(log);
}

static size_t
append(struct device_log *log, unsigned source, const struct device_io *io)
{
    struct device_log_entry *e;

    if (log->length == log->room) {
        log->room = log->room ? 2 * log->room : 64;
        log->entries = realloc(log->entries, log->room * sizeof(*log->entries));
        THIN_ASSERT(log->entries);
    }
    e = &log->entries[log->length];
    *e = (struct device_log_entry){.op = io->op,
                                   .source = source,
                                   .flags = io->flags,
                                   .offset = io->offset,
                                   .len = io->len,
                                   .submitted_after = log->nr_completed};
    if (io->op == DEVICE_WRITE) {
        e->data = malloc(io->len);
        THIN_ASSERT(e->data);
        device_iov_to_buf(io, 0, e->data, io->len);
    }
    return log->length++;
}

static void
inner_done(struct device_io *io, int result)
{
    struct log_io *lio = container_of(io, struct log_io, inner);
    struct device_log *log = lio->ld->log;
    struct device_log_entry *e = &log->entries[lio->entry];

    e->completed_as = ++log->nr_completed;
    e->result = result;
    lio->outer->ret_nr_extents = io->ret_nr_extents;
    /* At once: what is submitted from here on comes after this completion. */
    device_deliver(&lio->ld->base, lio->outer, result);
    free(lio);
}

static void
log_submit(struct device *dev, struct device_io *io)
{
    struct log_device *ld = container_of(dev, struct log_device, base);
    struct log_io *lio = calloc(1, sizeof(*lio));

    THIN_ASSERT(lio);
    lio->inner = *io;
    lio->inner.done = inner_done;
    lio->ld = ld;
    lio->outer = io;
    lio->entry = append(ld->log, ld->source, io);
    device_submit(ld->inner, &lio->inner);
}

static void
inner_closed(void *arg)
{
    struct log_device *ld = arg;
    void (*closed)(void *closed_arg) = ld->closed;
    void *closed_arg = ld->closed_arg;

    free(ld);
    if (closed)
        closed(closed_arg);
}

static void
log_close(struct device *dev, void (*closed)(void *arg), void *arg)
{
    struct log_device *ld = container_of(dev, struct log_device, base);

    ld->closed = closed;
    ld->closed_arg = arg;
    device_close(ld->inner, inner_closed, ld);
}

static const struct device_ops log_ops = {
    .kind = "log",
    .submit = log_submit,
    .close = log_close,
};

struct device *
device_log_open(struct device_log *log, struct device *inner)
{
    struct log_device *ld = calloc(1, sizeof(*ld));

    THIN_ASSERT(ld);
    device_init(&ld->base, &log_ops, inner->loop, inner->name);
    ld->base.size = inner->size;
    ld->base.limits = inner->limits;
    ld->base.read_only = inner->read_only;
    ld->inner = inner;
    ld->log = log;
    ld->source = log->nr_sources++;
    return &ld->base;
}

size_t
device_log_length(const struct device_log *log)
{
    return log->length;
}

const struct device_log_entry *
device_log_get(const struct device_log *log, size_t i)
{
    THIN_ASSERT(i < log->length);
    return &log->entries[i];
}

bool
device_log_covers(const struct device_log *log, size_t f, size_t w)
{
    const struct device_log_entry *flush = device_log_get(log, f);
    const struct device_log_entry *write = device_log_get(log, w);

    if (f == w)
        return write->flags & DEVICE_FUA;
    return flush->op == DEVICE_FLUSH && write->completed_as > 0 &&
           write->completed_as <= flush->submitted_after;
}

int
device_log_replay_one(const struct device_log *log, size_t i, struct device *dev)
{
    const struct device_log_entry *e = device_log_get(log, i);
    struct iovec iov = {.iov_base = e->data, .iov_len = e->len};
    struct device_io io = {.op = e->op,
                           .flags = e->flags,
                           .offset = e->offset,
                           .len = e->len,
                           .iov = &iov,
                           .nr_iov = 1};

    if (e->result < 0 || e->op == DEVICE_READ || e->op == DEVICE_EXTENTS)
        return 0;
    return device_wait(dev, &io);
}

int
device_log_replay(const struct device_log *log, size_t from, size_t to,
                  struct device *dev)
{
    int r = 0;

    for (size_t i = from; i < to && r == 0; i++)
        r = device_log_replay_one(log, i, dev);
    return r;
}
