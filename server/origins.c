#include "server/origins.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/cleanup.h"
#include "core/base/crc32c.h"
#include "server/backing.h"
#include "server/block_identity.h"
#include "server/pools.h"
#include "server/probe.h"

struct origin_opening {
    struct blocking_job job;
    struct thin_loop *loop;
    pool_origin_opened_fn opened;
    void *opened_arg;
    struct device *dev;
    int result;
    struct thin_error err;
    char identity[POOL_ORIGIN_IDENTITY_MAX];
    char path[POOL_ORIGIN_MAX];
};

static void
tell(struct origin_opening *o)
{
    o->opened(o->opened_arg, o->dev, o->identity, o->result, &o->err);
    free(o);
}

/* ---- files, on the helper thread -------------------------------------------------------- */

/* In words as far as they fit; of the whole at least a checksum. */
static void
identify_block(const char *path, const struct stat *st, uint64_t size,
               char ret[POOL_ORIGIN_IDENTITY_MAX])
{
    char text[BLOCK_IDENTITY_MAX];
    int len;

    block_identity(path, st, text);
    len = snprintf(ret, POOL_ORIGIN_IDENTITY_MAX, "block size=%" PRIu64 "%s", size, text);
    if (len < (int)POOL_ORIGIN_IDENTITY_MAX)
        return;
    snprintf(ret, POOL_ORIGIN_IDENTITY_MAX,
             "block size=%" PRIu64 " sum=%08" PRIx32 "%.64s", size,
             crc32c(text, strlen(text)), text);
}

static int
identify(const char *path, char ret[POOL_ORIGIN_IDENTITY_MAX], struct thin_error *err)
{
    struct probe_file file;
    struct stat st;
    int r = probe_path(path, &file, err);

    if (r < 0)
        return r;
    if (!file.exists || stat(path, &st) < 0)
        return thin_fail_code(err, file.exists ? -errno : -ENOENT, "%s", path);
    if (file.is_block)
        identify_block(path, &st, file.size, ret);
    else
        snprintf(ret, POOL_ORIGIN_IDENTITY_MAX,
                 "file size=%" PRIu64 " inode=%" PRIu64 " time=%lld.%09ld", file.size,
                 (uint64_t)file.ino, (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    return 0;
}

static void
work_file(struct blocking_job *job)
{
    struct origin_opening *o = container_of(job, struct origin_opening, job);
    struct device_file_params params = {
        .path = o->path, .read_only = true, .no_lock = true, .pad_tail = true};

    char again[POOL_ORIGIN_IDENTITY_MAX] = "";

    o->result = identify(o->path, o->identity, &o->err);
    if (o->result == 0)
        o->result = device_file_open(o->loop, &params, &o->dev, &o->err);
    if (o->result == 0)
        o->result = identify(o->path, again, &o->err);
    /* Of a file that changes meanwhile we would not know what we have. */
    if (o->result == 0 && strcmp(o->identity, again) != 0)
        o->result = thin_fail(&o->err, -THIN_E_BUSY, "%s is being changed", o->path);
}

static void
dropped(void *arg)
{
    tell(arg);
}

static void
file_open(struct blocking_job *job)
{
    struct origin_opening *o = container_of(job, struct origin_opening, job);

    if (o->result == 0 && o->dev->size == 0)
        o->result = thin_fail(&o->err, -THIN_E_INVALID, "%s is empty", o->path);
    if (o->result < 0 && o->dev)
        device_close(take(o->dev), dropped, o);
    else
        tell(o);
}

/* ---- exports, on the loop ----------------------------------------------------------------- */

static void
export_open(void *arg, struct device *dev, int result, const struct thin_error *err)
{
    struct origin_opening *o = arg;

    o->dev = dev;
    o->result = result;
    if (result < 0)
        o->err = *err;
    else
        snprintf(o->identity, sizeof(o->identity), "export size=%" PRIu64, dev->size);
    tell(o);
}

static void
work_nothing(struct blocking_job *job)
{
    (void)job;
}

void
origins_open(void *arg, struct thin_loop *loop, const char *uri,
             pool_origin_opened_fn opened, void *opened_arg)
{
    struct server_pool *sp = arg;
    struct server *server = pools_server(sp->pools);
    struct origin_opening *o = calloc(1, sizeof(*o));
    int r;

    if (!o) {
        opened(opened_arg, NULL, NULL, -ENOMEM, NULL);
        return;
    }
    o->loop = loop;
    o->opened = opened;
    o->opened_arg = opened_arg;
    thin_error_init(&o->err);
    snprintf(o->path, sizeof(o->path), "%s", uri);
    o->job.loop = server->loop;
    o->job.work = work_file;
    o->job.done = file_open;
    r = backing_check(uri, &o->err);
    if (r == 0 && backing_is_uri(uri)) {
        r = stack_open(sp, uri, true, export_open, o, &o->err);
        if (r == 0)
            return;
    }
    if (r < 0) { /* told on a later turn */
        o->result = r;
        o->job.work = work_nothing;
    }
    blocking_submit(server->blocking, &o->job);
}
