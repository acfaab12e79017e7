/* thinmeta trim, thin_trim: discards the free space of the data device. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/device/device.h"
#include "core/offline/trim.h"
#include "core/tools/tool.h"

struct trimmer {
    int fd;
    bool block_device;
    uint64_t size;
    uint64_t nr_ranges, bytes;
};

static int
discard(void *arg, const struct superblock *sb, dblock_t begin, dblock_t end)
{
    struct trimmer *t = arg;
    uint64_t block = (uint64_t)sb->data_block_size * SECTOR_SIZE;
    uint64_t range[2] = {begin * block, (end - begin) * block};
    int r = tool_go_on();

    if (r < 0)
        return r;
    /* Recorded for the data device, which may have been cut since: nothing beyond. */
    if (range[0] >= t->size)
        return 0;
    range[1] = min_u64(range[1], t->size - range[0]);
    if (t->block_device)
        r = ioctl(t->fd, BLKDISCARD, range);
    else
        r = fallocate(t->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)range[0],
                      (off_t)range[1]);
    if (r < 0)
        return -errno;
    t->nr_ranges++;
    t->bytes += range[1];
    return 0;
}

static int
open_data(const char *path, struct trimmer *t, struct thin_error *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct stat st;

    if (stat(path, &st) < 0)
        return thin_fail_code(err, -errno, "open %s", path);
    t->block_device = S_ISBLK(st.st_mode);
    if (!t->block_device && !S_ISREG(st.st_mode))
        return thin_fail(err, -THIN_E_INVALID,
                         "%s is neither a regular file nor a block device", path);
    t->fd = open(path, O_RDWR | O_CLOEXEC | (t->block_device ? O_EXCL : 0));
    if (t->fd < 0)
        return thin_fail_code(err, errno == EBUSY ? -THIN_E_BUSY : -errno, "open %s",
                              path);
    if (t->block_device) {
        if (ioctl(t->fd, BLKGETSIZE64, &t->size) < 0)
            return thin_fail_code(err, -errno, "size of %s", path);
        return 0;
    }
    t->size = (uint64_t)st.st_size;
    if (fcntl(t->fd, F_OFD_SETLK, &lock) < 0)
        return thin_fail(err, -THIN_E_BUSY,
                         "%s is in use by another program; close its pool first", path);
    return device_file_check_no_loop(path, &st, err);
}

static int
trim(const char *metadata, const char *data, struct trimmer *t, struct thin_error *err)
{
    struct meta_source *src = NULL;
    int r = open_data(data, t, err);

    /* Exclusive, though it only reads: nobody may allocate meanwhile. */
    if (r >= 0)
        r = tool_open(metadata, SOURCE_WRITE, &src, err);
    if (r >= 0)
        r = trim_free_ranges(src, discard, t, err);
    if (r >= 0 && fsync(t->fd) < 0)
        r = -errno;
    tool_close(src);
    tool_progress_end();
    if (r < 0 && err->text[0] == '\0')
        r = thin_fail_code(err, r, "discard on %s", data);
    return r;
}

int
tool_trim(const struct tool *tool, int argc, char **argv)
{
    enum { METADATA = 256, DATA };
    static const struct option longopts[] = {
        {"metadata-dev", required_argument, NULL, METADATA},
        {"data-dev", required_argument, NULL, DATA},
        TOOL_LONG_TAKEOVER,
        TOOL_LONG_COMMON,
    };
    const char *metadata = NULL, *data = NULL;
    struct trimmer t = {.fd = -1};
    struct thin_error err;
    int opt, exit_code, r;

    while ((opt = getopt_long(argc, argv, "hV", longopts, NULL)) != -1) {
        if (tool_common_option(tool, opt, &exit_code))
            return exit_code;
        if (opt == 0)
            continue;
        *(opt == METADATA ? &metadata : &data) = optarg;
    }
    if (optind != argc)
        return tool_misused(tool, "unexpected argument '%s'", argv[optind]);
    if (!metadata)
        return tool_misused(tool, "--metadata-dev is needed");
    if (!data)
        return tool_misused(tool, "--data-dev is needed");
    thin_error_init(&err);
    r = trim(metadata, data, &t, &err);
    if (t.fd >= 0)
        close(t.fd);
    if (r == -THIN_E_CANCELLED && t.nr_ranges) {
        tool_progress_end();
        fprintf(stderr,
                "%s: interrupted after %" PRIu64 " bytes in %" PRIu64
                " ranges were discarded\n",
                tool_name(tool), t.bytes, t.nr_ranges);
        return 1;
    }
    if (r < 0)
        return tool_fail(tool, r, &err);
    if (!tool->as_official)
        printf("%" PRIu64 " bytes in %" PRIu64 " ranges discarded\n", t.bytes,
               t.nr_ranges);
    return 0;
}
