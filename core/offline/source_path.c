/* A metadata source on a regular file or block device. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/device/device.h"
#include "core/offline/source.h"

struct path_source {
    int fd;
    bool cached;   /* by the page cache */
    int direct_fd; /* the same file past it, or -1 */
};

static int
read_fd(int fd, uint64_t offset, void *buf, size_t len_bytes)
{
    size_t done = 0;

    while (done < len_bytes) {
        ssize_t n =
            pread(fd, (char *)buf + done, len_bytes - done, (off_t)(offset + done));

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -EIO;
        done += (size_t)n;
    }
    return 0;
}

static int
path_read(void *arg, uint64_t offset, void *buf, size_t len_bytes)
{
    struct path_source *p = arg;

    return read_fd(p->fd, offset, buf, len_bytes);
}

/* Through the page cache where there is no other way: also good, and slower. */
static int
path_read_from_disk(void *arg, uint64_t offset, void *buf, size_t len_bytes)
{
    struct path_source *p = arg;

    if (p->direct_fd >= 0 && read_fd(p->direct_fd, offset, buf, len_bytes) == 0)
        return 0;
    return read_fd(p->fd, offset, buf, len_bytes);
}

static int
path_write(void *arg, uint64_t offset, const void *buf, size_t len_bytes)
{
    struct path_source *p = arg;
    size_t done = 0;

    while (done < len_bytes) {
        ssize_t n = pwrite(p->fd, (const char *)buf + done, len_bytes - done,
                           (off_t)(offset + done));

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        done += (size_t)n;
    }
    return 0;
}

static int
path_flush(void *arg)
{
    struct path_source *p = arg;

    return fdatasync(p->fd) < 0 ? -errno : 0;
}

static void
path_close(void *arg)
{
    struct path_source *p = arg;

    if (p->direct_fd >= 0)
        close(p->direct_fd);
    close(p->fd);
    free(p);
}

static const struct source_ops file_ops = {
    .read = path_read,
    .any_thread = true,
    .read_from_disk = path_read_from_disk,
    .write = path_write,
    .flush = path_flush,
    .close = path_close,
};

static const struct source_ops block_device_ops = {
    .read = path_read,
    .any_thread = true,
    .read_from_disk = path_read,
    .write = path_write,
    .flush = path_flush,
    .close = path_close,
};

/* The lock that the server's file driver takes: of the open file, over the whole of it. */
static int
lock_file(int fd, enum source_mode mode, const char *path, struct thin_error *err)
{
    struct flock lock = {.l_type = mode == SOURCE_WRITE ? F_WRLCK : F_RDLCK,
                         .l_whence = SEEK_SET};

    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    if (errno == EAGAIN || errno == EACCES)
        return thin_fail(err, -THIN_E_BUSY,
                         "%s is in use by another program; close its pool first", path);
    return thin_fail_code(err, -errno, "lock %s", path);
}

/* By its number, so that it is the same file whatever the path means by now. */
static int
open_direct(int fd)
{
    char name[32];

    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    return open(name, O_RDONLY | O_DIRECT | O_CLOEXEC);
}

static int
open_fd(const char *path, enum source_mode mode, struct path_source *p,
        uint64_t *ret_size, struct thin_error *err)
{
    int flags = O_CLOEXEC | (mode == SOURCE_WRITE ? O_RDWR : O_RDONLY);
    struct stat st;

    /* Asked first: opening a FIFO or a tape for a look would wait, or act. */
    if (stat(path, &st) < 0)
        return thin_fail_code(err, -errno, "open %s", path);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return thin_fail(err, -THIN_E_INVALID,
                         "%s is neither a regular file nor a block device", path);
    if (S_ISBLK(st.st_mode)) {
        /* The page cache of a live pool's device may hold blocks of long ago. */
        flags |= O_DIRECT | (mode == SOURCE_READ_SHARED ? 0 : O_EXCL);
    }
    p->fd = open(path, flags);
    if (p->fd < 0)
        return errno == EBUSY ? thin_fail(err, -THIN_E_BUSY,
                                          "%s is in use; close its pool first", path)
                              : thin_fail_code(err, -errno, "open %s", path);
    if (fstat(p->fd, &st) < 0)
        return thin_fail_code(err, -errno, "stat %s", path);
    if (S_ISBLK(st.st_mode)) {
        if (ioctl(p->fd, BLKGETSIZE64, ret_size) < 0)
            return thin_fail_code(err, -errno, "size of %s", path);
        return 0;
    }
    /* Who reads here knows what comes next; the kernel's guesses cost a third. */
    (void)posix_fadvise(p->fd, 0, 0, POSIX_FADV_RANDOM);
    p->cached = true;
    p->direct_fd = open_direct(p->fd);
    *ret_size = (uint64_t)st.st_size;
    if (mode == SOURCE_WRITE) {
        int r = device_file_check_no_loop(path, &st, err);

        if (r < 0)
            return r;
    }
    return mode == SOURCE_READ_SHARED ? 0 : lock_file(p->fd, mode, path, err);
}

int
source_open_path(const char *path, enum source_mode mode, struct meta_source **ret_src,
                 struct thin_error *err)
{
    AUTO_FREE struct path_source *p = calloc(1, sizeof(*p));
    uint64_t size = 0;
    int r;

    if (!p)
        return thin_fail_code(err, -ENOMEM, "open %s", path);
    p->fd = p->direct_fd = -1;
    r = open_fd(path, mode, p, &size, err);
    if (r == 0 && size < METADATA_BLOCK_SIZE)
        r = thin_fail(err, -THIN_E_NOT_THIN,
                      "%s is too small to hold metadata (%llu bytes)", path,
                      (unsigned long long)size);
    if (r == 0) {
        r = source_open_ops(p->cached ? &file_ops : &block_device_ops, p, size,
                            mode == SOURCE_WRITE, ret_src);
        if (r < 0)
            r = thin_fail_code(err, r, "open %s", path);
    }
    if (r < 0) {
        if (p->direct_fd >= 0)
            close(p->direct_fd);
        if (p->fd >= 0)
            close(p->fd);
        return r;
    }
    (void)take(p);
    return 0;
}
