#include "server/pool_devices.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/ondisk/superblock.h"
#include "server/backing.h"
#include "server/probe.h"
#include "server/stack.h"

#define HEAD_BYTES (256u << 10) /* of an export, where signatures are looked for */

_Static_assert(sizeof(((struct pool_devices *)0)->data_path) == POOLS_PATH_MAX, "paths");

static struct server *
server_of(const struct pool_devices *d)
{
    return pools_server(d->sp->pools);
}

static void
on_helper(struct pool_devices *d, void (*work)(struct blocking_job *),
          void (*done)(struct blocking_job *))
{
    d->job.work = work;
    d->job.done = done;
    d->job.loop = server_of(d)->loop;
    blocking_submit(server_of(d)->blocking, &d->job);
}

/* ---- the end ------------------------------------------------------------------------------ */

static void
finish(struct pool_devices *d)
{
    free(take(d->data_head));
    free(take(d->metadata_head));
    d->done(d);
}

static void
one_is_closed(void *arg)
{
    struct pool_devices *d = arg;

    if (d->data)
        device_close(take(d->data), one_is_closed, d);
    else if (d->metadata)
        device_close(take(d->metadata), one_is_closed, d);
    else
        finish(d);
}

static void
nothing(struct blocking_job *job)
{
    (void)job;
}

static void
close_and_finish(struct blocking_job *job)
{
    one_is_closed(container_of(job, struct pool_devices, job));
}

/* Closes what is open, and ends on a later turn. */
static void
fail(struct pool_devices *d, int result)
{
    d->result = result;
    on_helper(d, nothing, close_and_finish);
}

/* ---- helper thread: files ------------------------------------------------------------------ */

/* Metadata for a pool of `data_bytes`: 64 bytes for each data block, at least 16 MiB. */
static uint64_t
metadata_size_for(uint64_t data_bytes, uint32_t block_size)
{
    uint64_t size = round_up_u64(div_up_u64(data_bytes, block_size) * 64, 1u << 20);

    size = max_u64(size, 16u << 20);
    return min_u64(size, (uint64_t)METADATA_BLOCKS_MAX * METADATA_BLOCK_SIZE);
}

static int
inspect_one(const char *path, const struct device *export, struct probe_file *ret,
            struct thin_error *err)
{
    if (!export)
        return probe_path(path, ret, err);
    *ret = (struct probe_file){.exists = true, .size = export->size};
    return 0;
}

/* What stands at both places, and that it may be used so. */
static int
inspect(struct pool_devices *d, struct probe_file *data, struct probe_file *metadata)
{
    int r = inspect_one(d->data_path, d->data, data, &d->err);

    if (r == 0)
        r = inspect_one(d->metadata_path, d->metadata, metadata, &d->err);
    if (r != 0)
        return r;
    if (strcmp(d->data_path, d->metadata_path) == 0 ||
        (data->exists && metadata->exists && data->ino && data->dev == metadata->dev &&
         data->ino == metadata->ino))
        return thin_fail(&d->err, -THIN_E_INVALID,
                         "data and metadata are the same device: %s", d->data_path);
    if (!d->make && !(data->exists && metadata->exists))
        return thin_fail_code(&d->err, -ENOENT, "%s",
                              data->exists ? d->metadata_path : d->data_path);
    return 0;
}

void
pool_devices_unmake(const struct pool_devices *d)
{
    if (d->made_data)
        unlink(d->data_path);
    if (d->made_metadata)
        unlink(d->metadata_path);
}

/* What is there is used as it is, whatever size was said; an empty file is like none. */
static void
heed_said_size(const char *path, uint64_t said, struct probe_file *file)
{
    if (!said || !file->exists || file->size == said)
        return;
    if (file->ino && !file->is_block && file->size == 0)
        file->exists = false;
    else
        log_notice("used as it is: it exists, and has another size than was said path=%s "
                   "size=%" PRIu64 " said=%" PRIu64,
                   path, file->size, said);
}

static int
check_sizes(struct pool_devices *d, const struct probe_file *data,
            const struct probe_file *metadata, uint64_t *ret_data, uint64_t *ret_metadata)
{
    if (!data->exists && !d->data_size)
        return thin_fail(&d->err, -THIN_E_INVALID,
                         "%s does not exist; say PATH:SIZE to have it made",
                         d->data_path);
    *ret_data = data->exists ? data->size : d->data_size;
    if (*ret_data < d->block_size)
        return thin_fail(&d->err, -THIN_E_INVALID,
                         "%s: %" PRIu64 " bytes hold no data block of %" PRIu32,
                         d->data_path, *ret_data, d->block_size);
    *ret_metadata = metadata->exists   ? metadata->size
                    : d->metadata_size ? d->metadata_size
                                       : metadata_size_for(*ret_data, d->block_size);
    if (*ret_metadata < POOLS_METADATA_MIN)
        return thin_fail(&d->err, -THIN_E_INVALID,
                         "%s: %" PRIu64 " bytes of metadata, at least 4M are needed",
                         d->metadata_path, *ret_metadata);
    return 0;
}

static int
look_for_signatures(const char *path, const void *head, size_t len, uint64_t size,
                    struct thin_error *err)
{
    return head ? probe_signatures_in(path, head, len, size, err)
                : probe_signatures(path, err);
}

static int
make_files(struct pool_devices *d, struct probe_file *data, struct probe_file *metadata)
{
    uint64_t data_size = 0, metadata_size = 0;
    int r;

    heed_said_size(d->data_path, d->data_size, data);
    heed_said_size(d->metadata_path, d->metadata_size, metadata);
    r = check_sizes(d, data, metadata, &data_size, &metadata_size);
    if (r == 0 && !d->force && data->exists)
        r = look_for_signatures(d->data_path, d->data_head, d->data_head_len, data_size,
                                &d->err);
    if (r == 0 && !d->force && metadata->exists)
        r = look_for_signatures(d->metadata_path, d->metadata_head, d->metadata_head_len,
                                metadata_size, &d->err);
    if (r == 0 && d->force && metadata->exists)
        r = probe_owner(d->metadata_path, d->metadata_head, d->takeover, &d->err);
    if (r == 0 && !metadata->exists) {
        r = probe_make_file(d->metadata_path, metadata_size, true, &d->err);
        d->made_metadata = r == 0;
    }
    if (r == 0 && !data->exists) {
        r = probe_make_file(d->data_path, data_size, false, &d->err);
        d->made_data = r == 0;
    }
    return r;
}

static int
open_files(struct pool_devices *d)
{
    struct device_file_params params = {.path = d->metadata_path};
    struct thin_loop *loop = server_of(d)->thin_loop;
    int r = 0;

    if (!d->metadata)
        r = device_file_open(loop, &params, &d->metadata, &d->err);
    params.path = d->data_path;
    params.direct = d->direct;
    if (r == 0 && !d->data)
        r = device_file_open(loop, &params, &d->data, &d->err);
    return r;
}

static void
work_files(struct blocking_job *job)
{
    struct pool_devices *d = container_of(job, struct pool_devices, job);
    struct probe_file data, metadata;
    int r = inspect(d, &data, &metadata);

    if (r == 0 && d->make)
        r = make_files(d, &data, &metadata);
    if (r == 0)
        r = open_files(d);
    d->result = r;
}

static void
files_open(struct blocking_job *job)
{
    struct pool_devices *d = container_of(job, struct pool_devices, job);

    if (d->result < 0)
        one_is_closed(d);
    else
        finish(d);
}

/* ---- the loop: exports ------------------------------------------------------------------------ */

static void next_export(struct pool_devices *d);

static void
head_read(struct device_io *io, int result)
{
    struct pool_devices *d = container_of(io, struct pool_devices, io);

    if (result < 0)
        fail(d,
             thin_fail_code(&d->err, result, "look for signatures on %s", io->dev->name));
    else
        next_export(d);
}

static void
read_head(struct pool_devices *d, struct device *dev, void **ret_head, size_t *ret_len)
{
    *ret_len = min_u64(HEAD_BYTES, dev->size);
    *ret_head = calloc(1, *ret_len);
    if (!*ret_head) {
        fail(d, thin_fail_code(&d->err, -ENOMEM, "look for signatures on %s", dev->name));
        return;
    }
    d->iov = (struct iovec){*ret_head, *ret_len};
    d->io = (struct device_io){.op = DEVICE_READ,
                               .len = *ret_len,
                               .iov = &d->iov,
                               .nr_iov = 1,
                               .done = head_read};
    device_submit(dev, &d->io);
}

static void
export_open(struct pool_devices *d, int result, const struct thin_error *err)
{
    if (result < 0) {
        d->err = *err;
        fail(d, result);
    } else {
        next_export(d);
    }
}

static void
metadata_open(void *arg, struct device *dev, int result, const struct thin_error *err)
{
    struct pool_devices *d = arg;

    d->metadata = dev;
    export_open(d, result, err);
}

static void
data_open(void *arg, struct device *dev, int result, const struct thin_error *err)
{
    struct pool_devices *d = arg;

    d->data = dev;
    export_open(d, result, err);
}

static void
work_identify(struct blocking_job *job)
{
    struct pool_devices *d = container_of(job, struct pool_devices, job);

    probe_uuid(d->metadata_path, d->uuid);
}

static void
identified(struct blocking_job *job)
{
    struct pool_devices *d = container_of(job, struct pool_devices, job);
    int r;

    d->identified = true;
    r = stack_set_uuid(d->sp, d->uuid, &d->err);
    if (r < 0)
        fail(d, r);
    else
        next_export(d);
}

/* The metadata are an export, and their head has been read. */
static int
identify_head(struct pool_devices *d)
{
    d->identified = true;
    if (d->metadata_head_len < METADATA_BLOCK_SIZE)
        return 0;
    probe_uuid_in(d->metadata_head, d->uuid);
    return stack_set_uuid(d->sp, d->uuid, &d->err);
}

/* One step; when none is left, the helper goes on. */
static void
next_export(struct pool_devices *d)
{
    bool uri = backing_is_uri(d->metadata_path);
    int r = 0;

    if (!d->make && !d->identified && d->metadata_head)
        r = identify_head(d);
    if (r < 0) {
        fail(d, r);
        return;
    }
    if (!d->make && !d->identified && !uri)
        on_helper(d, work_identify, identified);
    else if (!d->metadata && uri)
        r = stack_open(d->sp, d->metadata_path, false, metadata_open, d, &d->err);
    else if (d->metadata && !d->metadata_head)
        read_head(d, d->metadata, &d->metadata_head, &d->metadata_head_len);
    else if (!d->data && backing_is_uri(d->data_path))
        r = stack_open(d->sp, d->data_path, false, data_open, d, &d->err);
    else if (d->make && d->data && !d->data_head)
        read_head(d, d->data, &d->data_head, &d->data_head_len);
    else
        on_helper(d, work_files, files_open);
    if (r < 0)
        fail(d, r);
}

static void
begin(struct pool_devices *d, void (*done)(struct pool_devices *))
{
    d->done = done;
    thin_error_init(&d->err);
    memcpy(d->data_path, d->sp->data_path, sizeof(d->data_path));
    memcpy(d->metadata_path, d->sp->metadata_path, sizeof(d->metadata_path));
    d->direct = d->sp->direct;
}

void
pool_devices_open(struct pool_devices *d, void (*done)(struct pool_devices *))
{
    int r;

    begin(d, done);
    r = backing_check(d->data_path, &d->err);
    if (r == 0)
        r = backing_check(d->metadata_path, &d->err);
    if (r < 0)
        fail(d, r);
    else
        next_export(d);
}

/* ---- wiping ---------------------------------------------------------------------------------- */

static void
work_unmake(struct blocking_job *job)
{
    struct pool_devices *d = container_of(job, struct pool_devices, job);

    if (!backing_is_uri(d->metadata_path))
        d->result = probe_wipe_superblock(d->metadata_path, &d->err);
    if (d->result == 0)
        pool_devices_unmake(d);
}

static void
wiped_export(struct device_io *io, int result)
{
    struct pool_devices *d = container_of(io, struct pool_devices, io);

    d->result =
        result < 0 ? thin_fail_code(&d->err, result, "wipe %s", d->metadata_path) : 0;
    on_helper(d, work_unmake, close_and_finish);
}

static void
export_to_wipe(void *arg, struct device *dev, int result, const struct thin_error *err)
{
    static char zeros[METADATA_BLOCK_SIZE];
    struct pool_devices *d = arg;

    d->metadata = dev;
    if (result < 0) {
        d->err = *err;
        fail(d, result);
        return;
    }
    d->iov = (struct iovec){zeros, sizeof(zeros)};
    d->io = (struct device_io){.op = DEVICE_WRITE,
                               .flags = DEVICE_FUA,
                               .len = sizeof(zeros),
                               .iov = &d->iov,
                               .nr_iov = 1,
                               .done = wiped_export};
    device_submit(dev, &d->io);
}

void
pool_devices_wipe(struct pool_devices *d, void (*done)(struct pool_devices *))
{
    int r;

    begin(d, done);
    d->made_data = d->sp->data_is_ours;
    d->made_metadata = d->sp->metadata_is_ours;
    if (!backing_is_uri(d->metadata_path)) {
        on_helper(d, work_unmake, files_open);
        return;
    }
    r = stack_open(d->sp, d->metadata_path, false, export_to_wipe, d, &d->err);
    if (r < 0)
        fail(d, r);
}
