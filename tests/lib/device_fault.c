#include "tests/lib/device_fault.h"

#include <stdlib.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/device/driver.h"

struct rule {
    enum fault_kind kind;
    unsigned op_mask;
    uint64_t skip;  /* requests that still pass */
    uint64_t times; /* requests that still meet; UINT64_MAX: all */
    int code;
    uint64_t arg;
};

/* One request on its way through. */
struct fault_io {
    struct device_io inner;
    struct fault_device *fd;
    struct device_io *outer;
    struct thin_timer timer;
    struct rule rule; /* the one it met */
    bool met;
    struct iovec iov[DEVICE_IOV_MAX]; /* TEAR: cut short */
    TAILQ_ENTRY(fault_io) link;
};

struct fault_device {
    struct device base;
    struct device *inner;
    struct rule rules[FAULT_RULES_MAX];
    unsigned nr_rules;
    TAILQ_HEAD(, fault_io) held;
    unsigned nr_held;
    uint64_t nr_met;
    uint64_t nr_op[DEVICE_ALLOCATE + 1];
    void (*closed)(void *arg);
    void *closed_arg;
};

static struct fault_device *
to_fault(struct device *dev)
{
    return container_of(dev, struct fault_device, base);
}

static void
end(struct fault_io *fio, int result)
{
    struct fault_device *fd = fio->fd;

    device_finish(&fd->base, fio->outer, result);
    free(fio);
}

static void
flip_byte(struct device_io *io, uint64_t at)
{
    char byte;

    at %= io->len;
    device_iov_to_buf(io, at, &byte, 1);
    byte = (char)~byte;
    device_iov_from_buf(io, at, &byte, 1);
}

static void
inner_done(struct device_io *io, int result)
{
    struct fault_io *fio = container_of(io, struct fault_io, inner);

    fio->outer->ret_nr_extents = io->ret_nr_extents;
    if (fio->met && result == 0) {
        if (fio->rule.kind == FAULT_FAIL_AFTER || fio->rule.kind == FAULT_TEAR)
            result = fio->rule.code;
        else if (fio->rule.kind == FAULT_CORRUPT && io->op == DEVICE_READ)
            flip_byte(io, fio->rule.arg);
    }
    end(fio, result);
}

/* Leaves only the first `arg` bytes of a write. */
static void
cut_short(struct fault_io *fio)
{
    uint64_t left = round_down_u64(min_u64(fio->rule.arg, fio->outer->len), SECTOR_SIZE);
    unsigned n = 0;

    fio->inner.len = left;
    for (; left > 0; n++) {
        fio->iov[n] = fio->outer->iov[n];
        fio->iov[n].iov_len = min_u64(fio->iov[n].iov_len, left);
        left -= fio->iov[n].iov_len;
    }
    fio->inner.iov = fio->iov;
    fio->inner.nr_iov = n;
}

static void
start(struct fault_io *fio)
{
    bool tears =
        fio->met && (fio->rule.kind == FAULT_TEAR || fio->rule.kind == FAULT_TEAR_SILENT);

    fio->inner = *fio->outer;
    fio->inner.done = inner_done;
    if (tears && fio->inner.op == DEVICE_WRITE) {
        cut_short(fio);
        if (fio->inner.len == 0) {
            end(fio, fio->rule.kind == FAULT_TEAR ? fio->rule.code : 0);
            return;
        }
    }
    device_submit(fio->fd->inner, &fio->inner);
}

static void
delay_over(struct thin_timer *timer)
{
    start(container_of(timer, struct fault_io, timer));
}

static bool
find_rule(struct fault_device *fd, enum device_op op, struct rule *ret_rule)
{
    bool met = false;

    for (unsigned i = 0; i < fd->nr_rules; i++) {
        struct rule *rule = &fd->rules[i];

        if (!(rule->op_mask & FAULT_OP(op)) || rule->times == 0)
            continue;
        if (rule->skip > 0) {
            rule->skip--;
            continue;
        }
        if (met)
            continue;
        if (rule->times != UINT64_MAX)
            rule->times--;
        *ret_rule = *rule;
        met = true;
    }
    return met;
}

static void
fault_submit(struct device *dev, struct device_io *io)
{
    struct fault_device *fd = to_fault(dev);
    struct fault_io *fio = calloc(1, sizeof(*fio));

    THIN_ASSERT(fio);
    fio->fd = fd;
    fio->outer = io;
    fio->timer.fire = delay_over;
    fd->nr_op[io->op]++;
    fio->met = find_rule(fd, io->op, &fio->rule);
    fd->nr_met += fio->met;
    if (fio->met && fio->rule.kind == FAULT_FAIL) {
        end(fio, fio->rule.code);
    } else if (fio->met && fio->rule.kind == FAULT_DELAY) {
        int r = loop_timer_set(dev->loop, &fio->timer,
                               loop_now_ns(dev->loop) + fio->rule.arg);

        THIN_ASSERT(r == 0);
    } else if (fio->met && fio->rule.kind == FAULT_HOLD) {
        TAILQ_INSERT_TAIL(&fd->held, fio, link);
        fd->nr_held++;
    } else {
        start(fio);
    }
}

static void
inner_closed(void *arg)
{
    struct fault_device *fd = arg;
    void (*closed)(void *closed_arg) = fd->closed;
    void *closed_arg = fd->closed_arg;

    free(fd);
    if (closed)
        closed(closed_arg);
}

static void
fault_close(struct device *dev, void (*closed)(void *arg), void *arg)
{
    struct fault_device *fd = to_fault(dev);

    fd->closed = closed;
    fd->closed_arg = arg;
    device_close(fd->inner, inner_closed, fd);
}

static const struct device_ops fault_ops = {
    .kind = "fault",
    .submit = fault_submit,
    .close = fault_close,
};

struct device *
device_fault_open(struct device *inner)
{
    struct fault_device *fd = calloc(1, sizeof(*fd));

    THIN_ASSERT(fd);
    device_init(&fd->base, &fault_ops, inner->loop, inner->name);
    fd->base.size = inner->size;
    fd->base.limits = inner->limits;
    fd->base.read_only = inner->read_only;
    fd->inner = inner;
    TAILQ_INIT(&fd->held);
    return &fd->base;
}

void
device_fault_order(struct device *dev, enum fault_kind kind, unsigned op_mask,
                   uint64_t nth, uint64_t times, int code, uint64_t arg)
{
    struct fault_device *fd = to_fault(dev);
    unsigned i = 0;

    THIN_ASSERT(nth > 0);
    while (i < fd->nr_rules && fd->rules[i].times > 0)
        i++;
    THIN_ASSERT(i < FAULT_RULES_MAX);
    if (i == fd->nr_rules)
        fd->nr_rules++;
    fd->rules[i] = (struct rule){.kind = kind,
                                 .op_mask = op_mask,
                                 .skip = nth - 1,
                                 .times = times ? times : UINT64_MAX,
                                 .code = code,
                                 .arg = arg};
}

void
device_fault_clear(struct device *dev)
{
    to_fault(dev)->nr_rules = 0;
}

unsigned
device_fault_release(struct device *dev)
{
    struct fault_device *fd = to_fault(dev);
    struct fault_io *fio;
    unsigned n = 0;

    while ((fio = TAILQ_FIRST(&fd->held))) {
        TAILQ_REMOVE(&fd->held, fio, link);
        fd->nr_held--;
        start(fio);
        n++;
    }
    return n;
}

unsigned
device_fault_nr_held(struct device *dev)
{
    return to_fault(dev)->nr_held;
}

uint64_t
device_fault_nr_met(struct device *dev)
{
    return to_fault(dev)->nr_met;
}

uint64_t
device_fault_nr_op(struct device *dev, enum device_op op)
{
    return to_fault(dev)->nr_op[op];
}
