#include "server/metaview.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/base/poll_loop.h"
#include "core/device/device_nbd.h"
#include "core/ondisk/superblock.h"
#include "server/backing.h"

/* Trailer bytes that stay the same while a pool lives: magic and UUID. */
#define TRAILER_ID_BYTES 24u
#define EXPORT_ANSWER_MS 5000u /* then what is read of an export has failed */

static int
read_file(int fd, uint64_t offset, void *buf, size_t len)
{
    while (len > 0) {
        ssize_t got = pread(fd, buf, len, (off_t)offset);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        buf = (char *)buf + got;
        offset += (size_t)got;
        len -= (size_t)got;
    }
    return 0;
}

static int
read_fully(const struct metaview *view, uint64_t offset, void *buf, size_t len)
{
    return view->export ? device_read_wait(view->export, offset, buf, len)
                        : read_file(view->fd, offset, buf, len);
}

/* Block 0 goes on changing: the pinned one stands for it. */
static int
view_read(void *arg, uint64_t offset, void *buf, size_t len)
{
    const struct metaview *view = arg;
    int r = read_fully(view, offset, buf, len);

    if (r == 0 && offset == 0)
        memcpy(buf, view->superblock, METADATA_BLOCK_SIZE);
    return r;
}

static const struct source_ops view_ops = {.read = view_read};

/* The device that the pool has open, and not what has come to its path since. */
static int
judge_device(const struct metaview *view, struct thin_error *err)
{
    AUTO_FREE uint8_t *block = aligned_alloc(METADATA_BLOCK_SIZE, METADATA_BLOCK_SIZE);
    const uint8_t *pinned = view->superblock;
    static const uint8_t none[TRAILER_ID_BYTES];
    int r;

    if (!block)
        return thin_fail_code(err, -ENOMEM, "read the metadata device");
    r = read_fully(view, 0, block, METADATA_BLOCK_SIZE);
    if (r < 0)
        return thin_fail_code(err, r, "read the metadata device");
    if (!superblock_is_thin(block) ||
        (memcmp(pinned + SUPERBLOCK_TRAILER_OFFSET, none, TRAILER_ID_BYTES) != 0 &&
         memcmp(pinned + SUPERBLOCK_TRAILER_OFFSET, block + SUPERBLOCK_TRAILER_OFFSET,
                TRAILER_ID_BYTES) != 0))
        return thin_fail(err, -THIN_E_LOST,
                         "another device has taken the place of the pool's metadata");
    return 0;
}

/*
 * Without a lock, with reads as the pool's driver sees its writes: a file by the page
 * cache, a block device past it (which writes back first).
 */
static int
open_file(struct metaview *view, const char *path, uint64_t *ret_size)
{
    struct stat st;
    off_t end;
    int flags = O_RDONLY | O_CLOEXEC;

    if (stat(path, &st) == 0 && S_ISBLK(st.st_mode))
        flags |= O_DIRECT;
    view->fd = open(path, flags);
    end = view->fd >= 0 ? lseek(view->fd, 0, SEEK_END) : -1;
    if (end < 0)
        return -errno;
    *ret_size = (uint64_t)end;
    return 0;
}

/* A loop of our own: the server's may be the one that serves the export. */
static int
open_export(struct metaview *view, const char *uri, uint64_t *ret_size)
{
    struct device_nbd_params params = {
        .uri = uri, .read_only = true, .answer_timeout_ms = EXPORT_ANSWER_MS};
    int r;

    view->loop = poll_loop_create();
    if (!view->loop)
        return -ENOMEM;
    r = device_nbd_open_wait(view->loop, &params, &view->export, NULL);
    if (r == 0)
        *ret_size = view->export->size;
    return r;
}

int
metaview_open(struct metaview *view, const char *path, const char *pool,
              const void *superblock, struct meta_source **ret_src,
              struct thin_error *err)
{
    uint64_t end = 0;
    int r;

    view->superblock = superblock;
    r = backing_is_uri(path) ? open_export(view, path, &end)
                             : open_file(view, path, &end);
    if (r < 0) {
        log_error("the metadata cannot be opened for reading: %s pool=%s path=%s",
                  thin_strerror(r), pool, path);
        return thin_fail_code(err, r, "open the metadata device");
    }
    r = judge_device(view, err);
    if (r == 0) {
        r = source_open_ops(&view_ops, view, end, false, ret_src);
        if (r < 0)
            r = thin_fail_code(err, r, "read the metadata");
    }
    return r;
}

void
metaview_close(struct metaview *view)
{
    if (view->fd >= 0)
        close(view->fd);
    view->fd = -1;
    if (view->export)
        device_close_wait(take(view->export));
    if (view->loop)
        poll_loop_destroy(take(view->loop));
}
