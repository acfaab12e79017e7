/* The file device's blocking reads, writes and flush. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/device/file_private.h"

#define PIECES_AT_ONCE 64u

bool
file_is_aligned(const struct file_device *f, const struct device_io *io)
{
    if (!f->direct)
        return true;
    if (io->offset % f->offset_align || io->len % f->offset_align)
        return false;
    if (io->op == DEVICE_WRITE_ZEROES)
        return true;
    for (unsigned i = 0; i < io->nr_iov; i++)
        if ((uintptr_t)io->iov[i].iov_base % f->mem_align ||
            io->iov[i].iov_len % f->offset_align)
            return false;
    return true;
}

/* Leaves the first `len` bytes, which is not 0, of `n` pieces. */
static int
cut_pieces(struct iovec *iov, int n, uint64_t len)
{
    int i = 0;

    while (i < n && iov[i].iov_len < len)
        len -= iov[i++].iov_len;
    if (i == n)
        return n;
    iov[i].iov_len = len;
    return i + 1;
}

/*
 * How far a buffered write from `pos` on goes in one call. The kernel makes page cache
 * folios as large as one write allows, and ext4 walks all blocks of a folio at each
 * later write into it and at each flush: after writes of 1 MiB a random 4 KiB overwrite
 * costs twice, its flush three times as much.
 */
static uint64_t
write_bytes(const struct file_device *f, uint64_t pos, uint64_t left)
{
    return f->direct ? left : min_u64(left, FILE_FOLIO_BYTES - pos % FILE_FOLIO_BYTES);
}

bool
file_pad_sector(const struct file_device *f, const struct device_io *io)
{
    static const char zeros[SECTOR_SIZE];
    uint64_t at = io->driver_u64[0];

    if (io->op != DEVICE_READ || f->data_end == 0 || io->offset + at != f->data_end)
        return false;
    device_iov_from_buf(io, at, zeros, io->len - at);
    return true;
}

static int
rw_pieces(struct file_device *f, struct device_io *io)
{
    struct iovec iov[PIECES_AT_ONCE];
    uint64_t at = io->driver_u64[0];

    while (at < io->len) {
        int n = (int)device_iov_window(io, at, iov, PIECES_AT_ONCE);
        off_t pos = (off_t)(io->offset + at);
        ssize_t moved;

        if (io->op == DEVICE_READ) {
            moved = preadv(f->fd, iov, n, pos);
        } else {
            n = cut_pieces(iov, n, write_bytes(f, io->offset + at, io->len - at));
            moved = pwritev(f->fd, iov, n, pos);
        }

        if (moved < 0 && errno == EINTR)
            continue;
        if (moved < 0)
            return -errno;
        if (moved == 0 && file_pad_sector(f, io))
            return 0;
        /* The file has become shorter than the size we recorded. */
        if (moved == 0)
            return -EIO;
        at += (uint64_t)moved;
        io->driver_u64[0] = at;
    }
    return 0;
}

static int
read_full(int fd, char *buf, size_t len, uint64_t pos)
{
    while (len > 0) {
        ssize_t got = pread(fd, buf, len, (off_t)pos);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            return -EIO;
        buf += got;
        len -= (size_t)got;
        pos += (uint64_t)got;
    }
    return 0;
}

static int
write_full(int fd, const char *buf, size_t len, uint64_t pos)
{
    while (len > 0) {
        ssize_t put = pwrite(fd, buf, len, (off_t)pos);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        if (put == 0)
            return -EIO;
        buf += put;
        len -= (size_t)put;
        pos += (uint64_t)put;
    }
    return 0;
}

static int
bounce_ready(struct file_device *f, struct file_bounce *bounce)
{
    size_t align = max_u64(max_u64(f->offset_align, f->mem_align), FILE_PAGE_BYTES);

    if (!bounce->buf)
        bounce->buf = aligned_alloc(align, FILE_BOUNCE_BYTES);
    return bounce->buf ? 0 : -ENOMEM;
}

/* Reads the disk blocks that a write covers in part only, so that their rest survives. */
static int
read_edges(struct file_device *f, char *buf, uint64_t begin, uint64_t end,
           uint64_t data_begin, uint64_t data_end)
{
    uint64_t last = end - f->offset_align;
    bool head = data_begin != begin, tail = data_end != end;
    int r = 0;

    if (head || (tail && last == begin))
        r = read_full(f->fd, buf, f->offset_align, begin);
    if (r == 0 && tail && last != begin)
        r = read_full(f->fd, buf + (last - begin), f->offset_align, last);
    return r;
}

/* The request through an aligned buffer, in pieces. Also writes zeros. */
static int
rw_bounced(struct file_device *f, const struct device_io *io, struct file_bounce *bounce)
{
    uint64_t at = 0;
    int r = bounce_ready(f, bounce);

    while (r == 0 && at < io->len) {
        uint64_t pos = io->offset + at;
        uint64_t begin = round_down_u64(pos, f->offset_align);
        uint64_t end = min_u64(round_up_u64(io->offset + io->len, f->offset_align),
                               begin + FILE_BOUNCE_BYTES);
        uint64_t data_end = min_u64(end, io->offset + io->len);
        char *data = bounce->buf + (pos - begin);
        size_t n = data_end - pos;

        if (io->op == DEVICE_READ) {
            r = read_full(f->fd, bounce->buf, end - begin, begin);
            if (r == 0)
                device_iov_from_buf(io, at, data, n);
        } else {
            r = read_edges(f, bounce->buf, begin, end, pos, data_end);
            if (r == 0 && io->op == DEVICE_WRITE)
                device_iov_to_buf(io, at, data, n);
            else if (r == 0)
                memset(data, 0, n);
            if (r == 0)
                r = write_full(f->fd, bounce->buf, end - begin, begin);
        }
        at += n;
    }
    return r;
}

int
file_write_zeros(struct file_device *f, const struct device_io *io,
                 struct file_bounce *bounce)
{
    /* Page-aligned for O_DIRECT; pwritev only reads it. */
    static const _Alignas(FILE_PAGE_BYTES) char zeros[FILE_ZERO_WRITE_MAX];
    struct iovec iov[16];
    uint64_t at = 0;

    if (!file_is_aligned(f, io))
        return rw_bounced(f, io, bounce);
    while (at < io->len) {
        uint64_t left = write_bytes(f, io->offset + at, io->len - at);
        int n = 0;
        ssize_t put;

        while (n < 16 && left > 0) {
            iov[n].iov_base = (void *)(uintptr_t)zeros;
            iov[n].iov_len = min_u64(left, sizeof(zeros));
            left -= iov[n++].iov_len;
        }
        put = pwritev(f->fd, iov, n, (off_t)(io->offset + at));
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        if (put == 0)
            return -EIO;
        at += (uint64_t)put;
    }
    return 0;
}

int
file_run(struct file_device *f, struct device_io *io, struct file_bounce *bounce)
{
    if (io->op == DEVICE_READ || io->op == DEVICE_WRITE)
        return file_is_aligned(f, io) ? rw_pieces(f, io) : rw_bounced(f, io, bounce);
    THIN_ASSERT(io->op != DEVICE_FLUSH);
    if (io->op == DEVICE_WRITE_ZEROES && (io->driver_u32 & FILE_IO_BY_WRITING))
        return file_write_zeros(f, io, bounce);
    return file_run_space(f, io, bounce);
}

int
file_flush(struct file_device *f)
{
    int r;

    pthread_mutex_lock(&f->lock);
    r = f->sync_error;
    pthread_mutex_unlock(&f->lock);
    if (r < 0)
        return r;
    do
        r = fdatasync(f->fd) < 0 ? -errno : 0;
    while (r == -EINTR);
    if (r < 0) {
        pthread_mutex_lock(&f->lock);
        f->sync_error = r;
        pthread_mutex_unlock(&f->lock);
    }
    return r;
}
