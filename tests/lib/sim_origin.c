/*
 * The external origin of the simulated volumes: a device that is read, holds the pattern of
 * SIM_ORIGIN, takes its time, and fails while origin_faults_ppm says so.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/device/driver.h"
#include "tests/lib/sim_drive.h"

struct origin_device {
    struct device base;
    struct sim *sim;
    unsigned in_flight;
};

struct origin_io {
    struct thin_timer timer;
    struct origin_device *device;
    struct device_io *io;
};

/* An opening that is on its way. */
struct origin_opening {
    struct thin_timer timer;
    struct thin_loop *loop;
    struct sim *sim;
    pool_origin_opened_fn opened;
    void *arg;
};

static void *
zeroed(size_t size)
{
    void *p = calloc(1, size);

    THIN_ASSERT(p);
    return p;
}

static void
set_timer(struct sim *sim, struct thin_loop *loop, struct thin_timer *timer)
{
    uint64_t ns = 20000 + random_below(&sim->rng, 3 * NS_PER_MS);
    int r = loop_timer_set(loop, timer, loop_now_ns(loop) + ns);

    THIN_ASSERT(r == 0);
}

static bool
fails(struct sim *sim)
{
    if (sim->origin_faults_ppm == 0 ||
        random_below(&sim->rng, 1000000) >= sim->origin_faults_ppm)
        return false;
    sim->origin_failed_ns = loop_now_ns(sim->loop);
    return true;
}

struct pause {
    struct thin_timer timer;
    bool over;
};

static void
pause_fires(struct thin_timer *timer)
{
    container_of(timer, struct pause, timer)->over = true;
}

bool
sim_origin_wait(struct sim *sim)
{
    struct pause pause = {.timer.fire = pause_fires};
    int r;

    if (sim->origin_failed_ns == 0 || sim->origin_faults_ppm > 0)
        return false;
    r = loop_timer_set(sim->loop, &pause.timer, sim->origin_failed_ns + 2 * NS_PER_SEC);
    THIN_ASSERT(r == 0);
    while (!pause.over && sim_loop_step(sim->loop))
        ;
    return true;
}

void
sim_origin_closed(struct sim *sim)
{
    if (sim->nr_origin_devices > 0)
        sim_die(sim, "the pool is closed, its origin is open %u times",
                sim->nr_origin_devices);
}

/* ---- reading ------------------------------------------------------------------------------- */

static void
read_fires(struct thin_timer *timer)
{
    struct origin_io *o = container_of(timer, struct origin_io, timer);
    struct origin_device *device = o->device;
    struct device_io *io = o->io;
    unsigned char sector[SECTOR_SIZE];

    free(o);
    device->in_flight--;
    if (fails(device->sim)) {
        /* One in two is final for this handle. */
        device->base.lost = device->base.lost || random_below(&device->sim->rng, 2);
        device_deliver(&device->base, io, device->base.lost ? -THIN_E_LOST : -EIO);
        return;
    }
    for (uint64_t at = 0; at < io->len; at += SECTOR_SIZE) {
        sim_fill(sector, io->offset + at, SECTOR_SIZE, SIM_ORIGIN);
        device_iov_from_buf(io, at, sector, SECTOR_SIZE);
    }
    device_deliver(&device->base, io, 0);
}

static void
origin_submit(struct device *dev, struct device_io *io)
{
    struct origin_device *device = container_of(dev, struct origin_device, base);
    struct origin_io *o = zeroed(sizeof(*o));

    THIN_ASSERT(io->op == DEVICE_READ);
    THIN_ASSERT(io->offset % SECTOR_SIZE == 0 && io->len % SECTOR_SIZE == 0);
    o->timer.fire = read_fires;
    o->device = device;
    o->io = io;
    device->in_flight++;
    set_timer(device->sim, dev->loop, &o->timer);
}

static void
origin_close(struct device *dev, void (*closed)(void *arg), void *arg)
{
    struct origin_device *device = container_of(dev, struct origin_device, base);

    THIN_ASSERT(device->in_flight == 0);
    device->sim->nr_origin_devices--;
    free(device);
    if (closed)
        closed(arg);
}

static const struct device_ops origin_ops = {
    .kind = "origin",
    .submit = origin_submit,
    .close = origin_close,
};

/* ---- opening ------------------------------------------------------------------------------- */

static void
opening_fires(struct thin_timer *timer)
{
    struct origin_opening *opening = container_of(timer, struct origin_opening, timer);
    struct sim *sim = opening->sim;
    struct origin_device *device = NULL;
    struct thin_error err;
    int r = 0;

    thin_error_init(&err);
    if (fails(sim)) {
        r = thin_fail_code(&err, -EIO, "open the origin");
    } else {
        device = zeroed(sizeof(*device));
        device_init(&device->base, &origin_ops, opening->loop, "origin");
        device->base.size = sim->origin_size;
        device->base.read_only = true;
        device->sim = sim;
        sim->nr_origin_devices++;
    }
    opening->opened(opening->arg, device ? &device->base : NULL,
                    device ? "as ever" : NULL, r, &err);
    free(opening);
}

void
sim_origin_open(void *arg, struct thin_loop *loop, const char *uri,
                pool_origin_opened_fn opened, void *opened_arg)
{
    struct sim *sim = arg;
    struct origin_opening *opening = zeroed(sizeof(*opening));

    THIN_ASSERT(strcmp(uri, "sim:origin") == 0);
    opening->timer.fire = opening_fires;
    opening->loop = loop;
    opening->sim = sim;
    opening->opened = opened;
    opening->arg = opened_arg;
    set_timer(sim, loop, &opening->timer);
}
