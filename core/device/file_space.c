/* The file device's calls about space: zeroes, discard, grow, allocate, extents. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/checked.h"
#include "core/device/file_private.h"

#define FIEMAP_EXTENTS 32u

static int
try_fallocate(struct file_device *f, int mode, const struct device_io *io)
{
    int r;

    do
        r = fallocate(f->fd, mode, (off_t)io->offset, (off_t)io->len) < 0 ? -errno : 0;
    while (r == -EINTR);
    return r;
}

/* "Not by this call": the file system or driver does not know it, or not so aligned. */
static bool
is_refusal(int r)
{
    return r == -EOPNOTSUPP || r == -EINVAL || r == -ENOSYS || r == -ENODEV ||
           r == -ENOTTY;
}

static int
zero_range(struct file_device *f, struct device_io *io, struct file_bounce *bounce)
{
    bool no_unmap = io->flags & DEVICE_NO_UNMAP, fast = io->flags & DEVICE_ONLY_FAST;
    int r;

    if (!no_unmap && !f->no_punch) {
        r = try_fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, io);
        if (!is_refusal(r))
            return r;
        f->no_punch = r != -EINVAL;
    }
    /* For a block device this call may write all the zeros: it is not a fast one. */
    if (!f->no_zero_range && !(f->is_block && fast)) {
        r = try_fallocate(f, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, io);
        if (!is_refusal(r))
            return r;
        f->no_zero_range = r != -EINVAL;
    }
    return fast ? -EOPNOTSUPP : file_write_zeros(f, io, bounce);
}

static int
discard(struct file_device *f, struct device_io *io)
{
    uint64_t range[2] = {io->offset, io->len};
    int r;

    if (f->no_punch)
        return 0;
    if (!f->is_block)
        r = try_fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, io);
    else
        r = ioctl(f->fd, BLKDISCARD, range) < 0 ? -errno : 0;
    if (!is_refusal(r))
        return r;
    /* A hint: that nothing happens is no failure. */
    if (!f->is_block)
        f->no_punch = r != -EINVAL;
    return 0;
}

static int
grow(struct file_device *f, struct device_io *io)
{
    uint64_t bytes = 0;
    struct stat st;

    if (f->is_block) {
        if (ioctl(f->fd, BLKGETSIZE64, &bytes) < 0)
            return -errno;
        return bytes >= io->offset ? 0 : -THIN_E_RANGE;
    }
    if (f->direct && io->offset % f->offset_align)
        return -THIN_E_INVALID;
    if (io->offset > INT64_MAX)
        return -EFBIG;
    if (fstat(f->fd, &st) < 0)
        return -errno;
    while (st.st_size < (off_t)io->offset && ftruncate(f->fd, (off_t)io->offset) < 0)
        if (errno != EINTR)
            return -errno;
    /* Not through file_flush: a size is no data, its failure loses none. */
    return fsync(f->fd) < 0 ? -errno : 0;
}

static int
allocate(struct file_device *f, struct device_io *io)
{
    int r;

    if (f->is_block)
        return 0;
    r = try_fallocate(f, 0, io);
    return is_refusal(r) ? -THIN_E_UNSUPPORTED : r;
}

/*
 * Splits a stretch that reads as zeros into what is allocated and what is not.
 * False: the request's extents are full.
 */
static bool
add_zeros(struct file_device *f, struct device_io *io, uint64_t pos, uint64_t end)
{
    union {
        struct fiemap map;
        char bytes[sizeof(struct fiemap) + FIEMAP_EXTENTS * sizeof(struct fiemap_extent)];
    } u;

    while (pos < end && !f->no_fiemap) {
        bool last = false;

        memset(&u.map, 0, sizeof(u.map));
        u.map.fm_start = pos;
        u.map.fm_length = end - pos;
        u.map.fm_extent_count = FIEMAP_EXTENTS;
        if (ioctl(f->fd, FS_IOC_FIEMAP, &u.map) < 0) {
            f->no_fiemap = true;
            break;
        }
        if (u.map.fm_mapped_extents == 0)
            break;
        for (unsigned i = 0; i < u.map.fm_mapped_extents && pos < end; i++) {
            const struct fiemap_extent *e = &u.map.fm_extents[i];
            uint64_t from = min_u64(max_u64(e->fe_logical, pos), end);
            uint64_t to = min_u64(e->fe_logical + e->fe_length, end);

            if (!device_extent_add(io, from - pos, DEVICE_EXTENT_HOLE))
                return false;
            pos = from;
            if (to > pos && !device_extent_add(io, to - pos, DEVICE_EXTENT_ZERO))
                return false;
            pos = max_u64(pos, to);
            last = e->fe_flags & FIEMAP_EXTENT_LAST;
        }
        if (last || u.map.fm_mapped_extents < FIEMAP_EXTENTS)
            break;
    }
    return device_extent_add(io, end - pos, DEVICE_EXTENT_HOLE);
}

/*
 * SEEK_DATA decides what reads as zeros, because it sees the page cache too: an
 * unwritten extent with a dirty page over it is data, and FIEMAP alone would not say so.
 */
static int
extents(struct file_device *f, struct device_io *io)
{
    uint64_t pos = io->offset, end = io->offset + io->len;

    if (f->is_block) {
        device_extent_add(io, io->len, DEVICE_EXTENT_DATA);
        return 0;
    }
    while (pos < end) {
        off_t data = lseek(f->fd, (off_t)pos, SEEK_DATA);
        uint64_t next = end;

        if (data < 0 && errno != ENXIO) {
            /* No such call here: everything may be data. */
            if (errno != EINVAL && errno != EOPNOTSUPP)
                return -errno;
            device_extent_add(io, end - pos, DEVICE_EXTENT_DATA);
            return 0;
        }
        if (data < 0 || (uint64_t)data > pos) {
            if (data >= 0)
                next = min_u64((uint64_t)data, end);
            if (!add_zeros(f, io, pos, next))
                return 0;
        } else {
            off_t hole = lseek(f->fd, (off_t)pos, SEEK_HOLE);

            if (hole < 0)
                return -errno;
            if ((uint64_t)hole > pos)
                next = min_u64((uint64_t)hole, end);
            if (!device_extent_add(io, next - pos, DEVICE_EXTENT_DATA))
                return 0;
        }
        pos = next;
    }
    return 0;
}

int
file_run_space(struct file_device *f, struct device_io *io, struct file_bounce *bounce)
{
    switch (io->op) {
    case DEVICE_WRITE_ZEROES:
        return zero_range(f, io, bounce);
    case DEVICE_DISCARD:
        return discard(f, io);
    case DEVICE_GROW:
        return grow(f, io);
    case DEVICE_ALLOCATE:
        return allocate(f, io);
    case DEVICE_EXTENTS:
        return extents(f, io);
    default:
        return -THIN_E_UNSUPPORTED;
    }
}
