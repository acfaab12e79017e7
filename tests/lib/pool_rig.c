#include "tests/lib/pool_rig.h"
#include "tests/lib/test_cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "tests/lib/sim_loop.h"

struct waiting {
    bool done;
    int result;
    struct thin_error err;
    struct pool *pool;
    struct volume *volume;
};

static void
wait_for(struct pool_rig *rig, const bool *done, const char *what)
{
    while (!*done) {
        if (!sim_loop_step(rig->loop)) {
            fprintf(stderr, "nothing is left to run, but %s has not ended\n", what);
            abort();
        }
    }
}

static int
waited(struct pool_rig *rig, const struct waiting *w)
{
    rig->err = w->err;
    return w->result;
}

static void
pool_call_done(void *arg, int result, const struct thin_error *err)
{
    struct waiting *w = arg;

    w->done = true;
    w->result = result;
    if (err)
        w->err = *err;
}

static void
event(void *arg, struct pool *pool, const char *name, const char *words)
{
    struct pool_rig *rig = arg;

    (void)pool;
    (void)words;
    rig->nr_events++;
    snprintf(rig->last_event, sizeof(rig->last_event), "%s", name);
}

void
rig_params(struct pool_rig *rig, struct pool_params *params, struct device *data,
           struct device *metadata)
{
    memset(params, 0, sizeof(*params));
    params->loop = rig->loop;
    params->name = "tank";
    params->data = data;
    params->metadata = metadata;
    pool_config_default(&params->config);
    params->cache_clean = test_cache_clean();
    params->seed = 1;
    params->data_block_sectors = 128; /* 64 KiB */
    params->wall_clock_s = 1700000000;
    params->event = event;
    params->event_arg = rig;
}

static void
opened(void *arg, struct pool *pool, int result, const struct thin_error *err)
{
    struct waiting *w = arg;

    w->pool = pool;
    pool_call_done(arg, result, err);
}

int
rig_open(struct pool_rig *rig, const struct pool_params *params)
{
    struct waiting w = {.done = false};

    pool_open(params, opened, &w);
    wait_for(rig, &w.done, "opening the pool");
    rig->pool = w.pool;
    return waited(rig, &w);
}

int
rig_close(struct pool_rig *rig, bool force)
{
    struct waiting w = {.done = false};
    struct pool_done done = {pool_call_done, &w};

    pool_close(rig->pool, force, done);
    wait_for(rig, &w.done, "closing the pool");
    if (w.result != -THIN_E_BUSY)
        rig->pool = NULL;
    return waited(rig, &w);
}

int
rig_create(struct pool_rig *rig, const char *name, uint64_t size)
{
    struct waiting w = {.done = false};
    struct pool_done done = {pool_call_done, &w};
    struct volume_spec spec = {.name = name, .size = size};

    pool_volume_create(rig->pool, &spec, done);
    wait_for(rig, &w.done, "creating a volume");
    return waited(rig, &w);
}

int
rig_snapshot(struct pool_rig *rig, const char *origin, const char *name)
{
    struct waiting w = {.done = false};
    struct pool_done done = {pool_call_done, &w};

    pool_volume_snapshot(rig->pool, &origin, &name, 1, done);
    wait_for(rig, &w.done, "a snapshot");
    return waited(rig, &w);
}

int
rig_delete(struct pool_rig *rig, const char *name)
{
    struct waiting w = {.done = false};
    struct pool_done done = {pool_call_done, &w};

    pool_volume_delete(rig->pool, name, done);
    wait_for(rig, &w.done, "deleting a volume");
    return waited(rig, &w);
}

int
rig_commit(struct pool_rig *rig)
{
    struct waiting w = {.done = false};
    struct pool_done done = {pool_call_done, &w};

    pool_commit(rig->pool, done);
    wait_for(rig, &w.done, "a commit");
    return waited(rig, &w);
}

int
rig_grow(struct pool_rig *rig, uint64_t data_bytes)
{
    struct waiting w = {.done = false};
    struct pool_done done = {pool_call_done, &w};

    pool_grow(rig->pool, data_bytes, 0, done);
    wait_for(rig, &w.done, "growing the pool");
    return waited(rig, &w);
}

static void
volume_opened(void *arg, struct volume *volume, int result, const struct thin_error *err)
{
    struct waiting *w = arg;

    w->volume = volume;
    pool_call_done(arg, result, err);
}

int
rig_volume(struct pool_rig *rig, const char *name, struct volume **ret_volume)
{
    struct waiting w = {.done = false};

    pool_volume_open(rig->pool, name, false, volume_opened, &w);
    wait_for(rig, &w.done, "opening a volume");
    *ret_volume = w.volume;
    return waited(rig, &w);
}

static void
io_done(struct volume_io *io, int result)
{
    struct rig_io *rio = container_of(io, struct rig_io, io);

    rio->done = true;
    rio->result = result;
}

void
rig_io_start(struct pool_rig *rig, struct volume *volume, struct rig_io *rio,
             enum volume_op op, unsigned flags, uint64_t offset, void *buf, uint64_t len)
{
    rio->rig = rig;
    rio->done = false;
    rio->iov.iov_base = buf;
    rio->iov.iov_len = len;
    rio->io.op = op;
    rio->io.flags = flags;
    rio->io.offset = offset;
    rio->io.len = len;
    rio->io.iov = &rio->iov;
    rio->io.nr_iov = 1;
    rio->io.done = io_done;
    volume_submit(volume, &rio->io);
}

int
rig_io_wait(struct rig_io *rio)
{
    wait_for(rio->rig, &rio->done, "a request");
    return rio->result;
}

int
rig_io(struct pool_rig *rig, struct volume *volume, enum volume_op op, unsigned flags,
       uint64_t offset, void *buf, uint64_t len)
{
    struct rig_io rio;

    memset(&rio, 0, sizeof(rio));
    rig_io_start(rig, volume, &rio, op, flags, offset, buf, len);
    return rig_io_wait(&rio);
}

int
rig_read(struct pool_rig *rig, struct volume *volume, uint64_t offset, void *buf,
         uint64_t len)
{
    return rig_io(rig, volume, VOLUME_READ, 0, offset, buf, len);
}

int
rig_write(struct pool_rig *rig, struct volume *volume, uint64_t offset, const void *buf,
          uint64_t len)
{
    return rig_io(rig, volume, VOLUME_WRITE, 0, offset, (void *)(uintptr_t)buf, len);
}

int
rig_flush(struct pool_rig *rig, struct volume *volume)
{
    return rig_io(rig, volume, VOLUME_FLUSH, 0, 0, NULL, 0);
}
