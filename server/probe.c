#include "server/probe.h"

#include <blkid.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/host.h"
#include "core/offline/owner.h"
#include "core/offline/source.h"
#include "core/ondisk/owner_mark.h"
#include "core/ondisk/superblock.h"
#include "core/ondisk/trailer.h"

#define FILE_MODE 0600

int
probe_path(const char *path, struct probe_file *ret, struct thin_error *err)
{
    struct probe_file f = {0};
    struct stat st;

    if (path[0] != '/')
        return thin_fail(err, -THIN_E_INVALID, "%s: not an absolute path", path);
    if (stat(path, &st) < 0) {
        AUTO_FREE char *copy = strdup(path);

        if (errno != ENOENT)
            return thin_fail_code(err, -errno, "%s", path);
        if (!copy)
            return thin_fail_code(err, -ENOMEM, "%s", path);
        if (stat(dirname(copy), &st) < 0)
            return thin_fail_code(err, -errno, "%s: its folder", path);
        *ret = f;
        return 0;
    }
    f.exists = true;
    f.dev = st.st_dev;
    f.ino = st.st_ino;
    if (S_ISREG(st.st_mode)) {
        f.size = (uint64_t)st.st_size;
    } else if (S_ISBLK(st.st_mode)) {
        AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);

        f.is_block = true;
        if (fd < 0 || ioctl(fd, BLKGETSIZE64, &f.size) < 0)
            return thin_fail_code(err, -errno, "%s", path);
    } else {
        return thin_fail(err, -THIN_E_INVALID,
                         "%s: neither a regular file nor a block device", path);
    }
    *ret = f;
    return 0;
}

static bool
read_at_most(int fd, void *buf, size_t len, size_t *ret_len)
{
    ssize_t got = pread(fd, buf, len, 0);

    *ret_len = got > 0 ? (size_t)got : 0;
    return got >= 0;
}

static int
judge_signatures(const char *path, int fd, struct thin_error *err)
{
    uint8_t head[512] = {0};
    size_t len;
    blkid_probe pr;
    const char *what = NULL;
    int r;

    if (fd < 0 || !read_at_most(fd, head, sizeof(head), &len))
        return thin_fail_code(err, -errno, "look for signatures on %s", path);
    if (len >= 64 && superblock_is_thin(head))
        return thin_fail(
            err, -THIN_E_SIGNATURE,
            "%s holds a thin-pool superblock; use pool import to serve it, or "
            "--force to overwrite it",
            path);
    if (len >= 4 && memcmp(head, "QFI\xfb", 4) == 0)
        return thin_fail(err, -THIN_E_SIGNATURE,
                         "%s holds a qcow2 image; use --force to overwrite it", path);
    pr = blkid_new_probe();
    if (!pr || blkid_probe_set_device(pr, fd, 0, 0) < 0) {
        blkid_free_probe(pr);
        /* An empty file has no room for a signature. */
        return len == 0 ? 0
                        : thin_fail_code(err, -EIO, "look for signatures on %s", path);
    }
    blkid_probe_enable_superblocks(pr, 1);
    blkid_probe_set_superblocks_flags(pr, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_MAGIC |
                                              BLKID_SUBLKS_USAGE);
    blkid_probe_enable_partitions(pr, 1);
    r = blkid_do_fullprobe(pr);
    if (r == 0 && blkid_probe_lookup_value(pr, "TYPE", &what, NULL) < 0 &&
        blkid_probe_lookup_value(pr, "PTTYPE", &what, NULL) < 0)
        what = "known";
    if (r == 0)
        r = thin_fail(err, -THIN_E_SIGNATURE,
                      "%s holds a signature (%s); use --force to overwrite it", path,
                      what);
    else if (r == 1) /* nothing found */
        r = 0;
    else
        r = thin_fail(err, -THIN_E_SIGNATURE,
                      "%s: signatures are ambiguous or cannot be read; use --force to "
                      "overwrite it",
                      path);
    blkid_free_probe(pr);
    return r;
}

int
probe_signatures(const char *path, struct thin_error *err)
{
    AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    return judge_signatures(path, fd, err);
}

int
probe_signatures_in(const char *name, const void *head, size_t len, uint64_t size,
                    struct thin_error *err)
{
    /* A file in memory of the same size: what knows signatures reads files. */
    AUTO_FD int fd = memfd_create("signatures", MFD_CLOEXEC);
    ssize_t put;

    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        return thin_fail_code(err, -errno, "look for signatures on %s", name);
    put = pwrite(fd, head, len, 0);
    if (put != (ssize_t)len)
        return thin_fail_code(err, put < 0 ? -errno : -EIO, "look for signatures on %s",
                              name);
    return judge_signatures(name, fd, err);
}

void
probe_uuid_in(const void *block, uint8_t ret_uuid[16])
{
    struct catalogue_trailer trailer;
    bool found = false;

    memset(ret_uuid, 0, 16);
    if (superblock_is_thin(block) &&
        catalogue_trailer_decode((const uint8_t *)block + SUPERBLOCK_TRAILER_OFFSET,
                                 &trailer, &found, NULL) == 0 &&
        found)
        memcpy(ret_uuid, trailer.uuid, 16);
}

void
probe_uuid(const char *path, uint8_t ret_uuid[16])
{
    uint8_t block[METADATA_BLOCK_SIZE] = {0};
    AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t got = fd >= 0 ? pread(fd, block, sizeof(block), 0) : -1;

    memset(ret_uuid, 0, 16);
    if (got == (ssize_t)sizeof(block))
        probe_uuid_in(block, ret_uuid);
}

static int
sync_folder(const char *path)
{
    AUTO_FREE char *copy = strdup(path);
    AUTO_FD int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

    if (!copy)
        return -ENOMEM;
    return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

int
probe_make_file(const char *path, uint64_t size, bool in_full, struct thin_error *err)
{
    AUTO_FD int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, FILE_MODE);
    bool there = fd < 0 && errno == EEXIST;
    struct stat st;
    int r = 0;

    if (there)
        fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return thin_fail_code(err, -errno, "create %s", path);
    if (there && (!S_ISREG(st.st_mode) || st.st_size != 0))
        return thin_fail_code(err, -EEXIST, "create %s", path);
    if (ftruncate(fd, (off_t)size) < 0)
        r = -errno;
    if (r == 0 && in_full)
        r = -posix_fallocate(fd, 0, (off_t)size);
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    if (r == 0)
        r = sync_folder(path);
    if (r < 0) {
        if (!there || ftruncate(fd, 0) < 0)
            unlink(path);
        return thin_fail_code(err, r, "create %s of %" PRIu64 " bytes", path, size);
    }
    return 0;
}

int
probe_owner(const char *path, const void *head, bool takeover, struct thin_error *err)
{
    struct meta_source *src = NULL;
    uint8_t machine[HOST_ID_BYTES];
    int r;

    if (head) {
        host_machine_id(machine);
        return owner_mark_judge(head, machine, takeover, err);
    }
    r = source_open_path(path, SOURCE_READ, &src, err);
    if (r == 0)
        r = owner_judge(src, takeover, err);
    source_close(src);
    return r < 0 ? thin_wrap(err, r, "%s", path) : 0;
}

int
probe_wipe_superblock(const char *path, struct thin_error *err)
{
    static const uint8_t zeros[METADATA_BLOCK_SIZE];
    struct meta_source *src = NULL;
    int r = source_open_path(path, SOURCE_WRITE, &src, err);

    if (r == 0)
        r = owner_judge(src, false, err);
    if (r == 0)
        r = source_write(src, SUPERBLOCK_LOCATION, zeros, 1, err);
    if (r == 0)
        r = source_flush(src, err);
    source_close(src);
    return r < 0 ? thin_wrap(err, r, "wipe %s", path) : 0;
}
