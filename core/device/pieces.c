/* Pieces of a request: scattered memory, and the extents of an answer. */
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/device/driver.h"

/* Finds the piece that holds byte `skip`; *skip becomes the offset inside it. */
static unsigned
find_piece(const struct device_io *io, uint64_t *skip)
{
    unsigned i = 0;

    while (i < io->nr_iov && *skip >= io->iov[i].iov_len) {
        *skip -= io->iov[i].iov_len;
        i++;
    }
    return i;
}

void
device_iov_to_buf(const struct device_io *io, uint64_t skip, void *buf, size_t len)
{
    char *to = buf;

    for (unsigned i = find_piece(io, &skip); len > 0; i++, skip = 0) {
        size_t n;

        THIN_ASSERT(i < io->nr_iov);
        n = min_u64(io->iov[i].iov_len - skip, len);
        if (n > 0)
            memcpy(to, (const char *)io->iov[i].iov_base + skip, n);
        to += n;
        len -= n;
    }
}

void
device_iov_from_buf(const struct device_io *io, uint64_t skip, const void *buf,
                    size_t len)
{
    const char *from = buf;

    for (unsigned i = find_piece(io, &skip); len > 0; i++, skip = 0) {
        size_t n;

        THIN_ASSERT(i < io->nr_iov);
        n = min_u64(io->iov[i].iov_len - skip, len);
        if (n > 0)
            memcpy((char *)io->iov[i].iov_base + skip, from, n);
        from += n;
        len -= n;
    }
}

unsigned
device_iov_window(const struct device_io *io, uint64_t skip, struct iovec *ret_iov,
                  unsigned max)
{
    unsigned n = 0;

    for (unsigned i = find_piece(io, &skip); i < io->nr_iov && n < max; i++, skip = 0) {
        if (io->iov[i].iov_len == skip)
            continue;
        ret_iov[n++] = (struct iovec){
            .iov_base = (char *)io->iov[i].iov_base + skip,
            .iov_len = io->iov[i].iov_len - skip,
        };
    }
    return n;
}

bool
device_extent_add(struct device_io *io, uint64_t len, enum device_extent_kind kind)
{
    if (len == 0)
        return true;
    if (io->ret_nr_extents > 0) {
        struct device_extent *last = &io->extents[io->ret_nr_extents - 1];

        if (last->kind == kind) {
            last->len += len;
            return true;
        }
    }
    if (io->ret_nr_extents == io->max_extents)
        return false;
    io->extents[io->ret_nr_extents++] = (struct device_extent){.len = len, .kind = kind};
    return true;
}
