/* Growing the pool, and the format's held root. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/pool/admin_private.h"

#define RELEASE_BUDGET 16u /* nodes that one step of releasing a held root enters */

/* ---- grow ------------------------------------------------------------------------------------ */

/*
 * The devices grow first, one after the other; the space maps follow in one job. A crash
 * between leaves devices that are larger than recorded, which is allowed.
 */
struct grow {
    struct admin_job *job;
    uint64_t data_bytes, metadata_bytes; /* 0: leave */
    uint64_t metadata_had;               /* bytes, before */
    struct device_io io;
};

static void grow_data_device(struct grow *grow);
static void grow_metadata_device(struct grow *grow);

static int
grow_apply(struct admin_job *job, struct thin_error *err)
{
    struct metadata *md = job->pool->md;
    bool done = true;
    int r = 0;

    /* value2: metadata blocks, first; value: data blocks, whose bitmaps may need them. */
    if (job->value2)
        return metadata_grow_own(md, job->value2, err);
    if (job->value)
        r = metadata_grow_data(md, job->value, &done, err);
    job->flag = done;
    return r;
}

static bool
grow_applied(struct admin_job *job)
{
    if (job->value2) {
        job->value2 = 0;
        space_resume(job->pool);
        admin_background_kick(job->pool->admin);
        return job->value != 0;
    }
    if (!job->flag)
        return true;
    if (job->value) {
        space_grown(job->pool);
        space_resume(job->pool);
    }
    /* A delete may have waited for room in the metadata. */
    admin_background_kick(job->pool->admin);
    return false;
}

static const struct admin_kind grow_kind = {
    .name = "grow the pool",
    .purse = TM_RESERVE,
    .no_records = true,
    .degraded = true,
    .makes_room = true,
    .apply = grow_apply,
    .applied = grow_applied,
};

static void
grow_end(struct grow *grow, int result, const struct thin_error *err)
{
    struct admin_job *job = grow->job;
    struct admin *admin = job->pool->admin;

    free(grow);
    admin->nr_reads--;
    if (result < 0)
        admin_refuse(job->pool, job, job->done, result, err);
    else
        admin_submit(job, false);
    admin_check_stopped(admin);
}

static void
grow_failed(struct grow *grow, const struct device *dev, int result)
{
    struct thin_error err;

    thin_error_init(&err);
    /* What cannot grow by itself was asked all the same: it may have been enlarged. */
    if (dev->limits.grows || (result != -THIN_E_RANGE && result != -THIN_E_UNSUPPORTED))
        thin_fail_code(&err, result, "enlarge %s", dev->name);
    else
        result = thin_fail(&err, -THIN_E_INVALID,
                           "%s has fewer than %" PRIu64
                           " bytes, and does not grow by itself: enlarge it first",
                           dev->name, grow->io.offset);
    grow_end(grow, result, &err);
}

static void
data_device_grown(struct device_io *io, int result)
{
    struct grow *grow = container_of(io, struct grow, io);

    if (result < 0)
        grow_failed(grow, grow->job->pool->data, result);
    else
        grow_metadata_device(grow);
}

static void
metadata_allocated(struct device_io *io, int result)
{
    struct grow *grow = container_of(io, struct grow, io);
    struct device *dev = grow->job->pool->metadata_dev;

    /* What was enlarged by others has its place from them. */
    if (result < 0 && (dev->limits.grows || result != -THIN_E_UNSUPPORTED))
        grow_failed(grow, dev, result);
    else
        grow_end(grow, 0, NULL);
}

static void
metadata_device_grown(struct device_io *io, int result)
{
    struct grow *grow = container_of(io, struct grow, io);
    struct device *dev = grow->job->pool->metadata_dev;

    if (result < 0) {
        grow_failed(grow, dev, result);
        return;
    }
    /* Metadata has its place in full: a commit never meets a full file system. */
    memset(io, 0, sizeof(*io));
    io->op = DEVICE_ALLOCATE;
    io->offset = grow->metadata_had;
    io->len = dev->size - grow->metadata_had;
    io->done = metadata_allocated;
    device_submit(dev, io);
}

static void
grow_device(struct grow *grow, struct device *dev, uint64_t bytes,
            void (*done)(struct device_io *io, int result))
{
    memset(&grow->io, 0, sizeof(grow->io));
    grow->io.op = DEVICE_GROW;
    grow->io.offset = bytes;
    grow->io.done = done;
    device_submit(dev, &grow->io);
}

static void
grow_data_device(struct grow *grow)
{
    struct device *dev = grow->job->pool->data;

    if (grow->data_bytes > dev->size)
        grow_device(grow, dev, grow->data_bytes, data_device_grown);
    else
        grow_metadata_device(grow);
}

static void
grow_metadata_device(struct grow *grow)
{
    struct device *dev = grow->job->pool->metadata_dev;

    grow->metadata_had = dev->size;
    if (grow->metadata_bytes > dev->size)
        grow_device(grow, dev, grow->metadata_bytes, metadata_device_grown);
    else
        grow_end(grow, 0, NULL);
}

/* What a device must become, or why not. */
static int
grow_judge(const char *what, uint64_t recorded, uint64_t *bytes, struct thin_error *err)
{
    if (*bytes == 0)
        return 0;
    *bytes = round_down_u64(*bytes, SECTOR_SIZE);
    if (*bytes < recorded)
        return thin_fail(err, -THIN_E_INVALID,
                         "the pool's %s has %" PRIu64 " bytes; %" PRIu64
                         " are less, and pools do not shrink",
                         what, recorded, *bytes);
    return 0;
}

void
pool_grow(struct pool *pool, uint64_t data_bytes, uint64_t metadata_bytes,
          struct pool_done done)
{
    struct admin_job *job = admin_job_create(pool, &grow_kind, done);
    struct grow *grow;
    struct metadata_space data, own;
    struct thin_error err;
    uint64_t reserve, meta_blocks, data_blocks;
    int r;

    if (!job)
        return;
    thin_error_init(&err);
    metadata_data_space(pool->md, &data);
    metadata_own_space(pool->md, &own, &reserve);
    r = pool->admin->stopping
            ? thin_fail(&err, -THIN_E_SHUTDOWN, "the pool is being closed")
            : pool_may_change(pool, &err);
    if (r == 0)
        r = grow_judge("data", data.nr_blocks * pool->block_size, &data_bytes, &err);
    if (r == 0)
        r = grow_judge("metadata", own.nr_blocks * METADATA_BLOCK_SIZE, &metadata_bytes,
                       &err);
    data_blocks = data_bytes / pool->block_size;
    meta_blocks = metadata_bytes / METADATA_BLOCK_SIZE;
    if (r == 0 && meta_blocks > METADATA_BLOCKS_MAX)
        r = thin_fail(&err, -THIN_E_LIMIT,
                      "the metadata may have %u blocks of %u bytes at most",
                      METADATA_BLOCKS_MAX, METADATA_BLOCK_SIZE);
    if (r == 0 && data_blocks > DATA_BLOCK_NR_MAX)
        r = thin_fail(&err, -THIN_E_LIMIT, "the data may have %llu blocks at most",
                      DATA_BLOCK_NR_MAX);
    grow = r == 0 ? calloc(1, sizeof(*grow)) : NULL;
    if (r == 0 && !grow)
        r = thin_fail_code(&err, -ENOMEM, "grow the pool");
    if (!grow) {
        admin_refuse(pool, job, done, r, &err);
        return;
    }
    job->value = data_blocks > data.nr_blocks ? data_blocks : 0;
    job->value2 = meta_blocks > own.nr_blocks ? meta_blocks : 0;
    grow->job = job;
    grow->data_bytes = job->value ? data_bytes : 0;
    grow->metadata_bytes = job->value2 ? metadata_bytes : 0;
    pool->admin->nr_reads++;
    grow_data_device(grow);
}

/* ---- the held root ------------------------------------------------------------------------------ */

static int
reserve_apply(struct admin_job *job, struct thin_error *err)
{
    int r = limits_judge_held(job->pool, err);

    return r < 0 ? r : metadata_reserve_snap(job->pool->md, err);
}

static bool
reserve_applied(struct admin_job *job)
{
    limits_held(job->pool);
    return false;
}

static const struct admin_kind reserve_kind = {
    .name = "reserve a metadata snapshot",
    .purse = TM_NORMAL,
    .no_records = true,
    .degraded = true,
    .apply = reserve_apply,
    .applied = reserve_applied,
};

static int
release_apply(struct admin_job *job, struct thin_error *err)
{
    return metadata_release_snap_step(job->pool->md, RELEASE_BUDGET, &job->flag, err);
}

static bool
release_applied(struct admin_job *job)
{
    if (job->flag)
        limits_released(job->pool);
    return !job->flag;
}

static const struct admin_kind release_kind = {
    .name = "release a metadata snapshot",
    .purse = TM_RESERVE,
    .no_records = true,
    .degraded = true,
    .apply = release_apply,
    .applied = release_applied,
};

void
pool_reserve_snap(struct pool *pool, struct pool_done done)
{
    struct admin_job *job = admin_job_create(pool, &reserve_kind, done);

    if (job)
        admin_submit(job, false);
}

void
pool_release_snap(struct pool *pool, struct pool_done done)
{
    struct admin_job *job = admin_job_create(pool, &release_kind, done);

    if (job)
        admin_submit(job, false);
}
