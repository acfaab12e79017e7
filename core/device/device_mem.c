/*
 * RAM as a device: a directory of leaves of 512 page pointers. A page is absent (hole),
 * or there; bit 0 of its pointer says that it was only allocated or zeroed whole, so
 * that it is known to read as zeros. Requests run inside submit and are told later.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/device/driver.h"

#define PAGE_BYTES     4096u
#define LEAF_PAGES     512u
#define LEAF_BYTES     ((uint64_t)PAGE_BYTES * LEAF_PAGES)
#define SIZE_MAX_BYTES (1ull << 50) /* the directory is then 4 GiB */

#define KNOWN_ZERO ((uintptr_t)1)

struct mem_leaf {
    uintptr_t pages[LEAF_PAGES];
};

struct mem_device {
    struct device base;
    struct mem_leaf **leaves;
    uint64_t nr_leaves;
};

static struct mem_device *
to_mem(struct device *dev)
{
    return container_of(dev, struct mem_device, base);
}

static uintptr_t *
find_slot(struct mem_device *mem, uint64_t page)
{
    struct mem_leaf *leaf = mem->leaves[page / LEAF_PAGES];

    return leaf ? &leaf->pages[page % LEAF_PAGES] : NULL;
}

static char *
slot_bytes(uintptr_t slot)
{
    return (char *)(slot & ~KNOWN_ZERO);
}

/* The page for writing, made when absent. NULL when out of memory. */
static uintptr_t *
make_page(struct mem_device *mem, uint64_t page)
{
    struct mem_leaf **leaf = &mem->leaves[page / LEAF_PAGES];
    uintptr_t *slot;
    void *bytes;

    if (!*leaf)
        *leaf = calloc(1, sizeof(**leaf));
    if (!*leaf)
        return NULL;
    slot = &(*leaf)->pages[page % LEAF_PAGES];
    if (*slot)
        return slot;
    bytes = calloc(1, PAGE_BYTES);
    if (!bytes)
        return NULL;
    *slot = (uintptr_t)bytes | KNOWN_ZERO;
    return slot;
}

static void
drop_page(uintptr_t *slot)
{
    free(slot_bytes(*slot));
    *slot = 0;
}

static void
mem_read(struct mem_device *mem, struct device_io *io)
{
    static const char zeros[PAGE_BYTES];
    uint64_t at = 0;

    while (at < io->len) {
        uint64_t pos = io->offset + at;
        uint64_t in_page = pos % PAGE_BYTES;
        size_t n = min_u64(PAGE_BYTES - in_page, io->len - at);
        uintptr_t *slot = find_slot(mem, pos / PAGE_BYTES);

        device_iov_from_buf(io, at, slot && *slot ? slot_bytes(*slot) + in_page : zeros,
                            n);
        at += n;
    }
}

static int
mem_write(struct mem_device *mem, struct device_io *io)
{
    uint64_t at = 0;

    while (at < io->len) {
        uint64_t pos = io->offset + at;
        uint64_t in_page = pos % PAGE_BYTES;
        size_t n = min_u64(PAGE_BYTES - in_page, io->len - at);
        uintptr_t *slot = make_page(mem, pos / PAGE_BYTES);

        if (!slot)
            return -ENOMEM;
        *slot &= ~KNOWN_ZERO;
        device_iov_to_buf(io, at, slot_bytes(*slot) + in_page, n);
        at += n;
    }
    return 0;
}

/* Zeros a part of one page; a whole one becomes a hole unless `keep`. */
static int
zero_part(struct mem_device *mem, uint64_t pos, size_t n, bool keep)
{
    uintptr_t *slot;

    if (keep && !make_page(mem, pos / PAGE_BYTES))
        return -ENOMEM;
    slot = find_slot(mem, pos / PAGE_BYTES);
    if (!slot || !*slot)
        return 0;
    if (n == PAGE_BYTES && !keep) {
        drop_page(slot);
        return 0;
    }
    memset(slot_bytes(*slot) + pos % PAGE_BYTES, 0, n);
    if (n == PAGE_BYTES)
        *slot |= KNOWN_ZERO;
    return 0;
}

static int
mem_zero(struct mem_device *mem, uint64_t offset, uint64_t len, bool keep)
{
    uint64_t end = offset + len;

    while (offset < end) {
        size_t n = min_u64(PAGE_BYTES - offset % PAGE_BYTES, end - offset);
        int r;

        /* A discard of terabytes must not walk leaves that are not there. */
        if (!keep && !mem->leaves[offset / LEAF_BYTES]) {
            offset = (offset / LEAF_BYTES + 1) * LEAF_BYTES;
            continue;
        }
        r = zero_part(mem, offset, n, keep);
        if (r < 0)
            return r;
        offset += n;
    }
    return 0;
}

static int
mem_allocate(struct mem_device *mem, uint64_t offset, uint64_t len)
{
    for (uint64_t page = offset / PAGE_BYTES; page * PAGE_BYTES < offset + len; page++)
        if (!make_page(mem, page))
            return -ENOMEM;
    return 0;
}

static int
mem_extents(struct mem_device *mem, struct device_io *io)
{
    uint64_t pos = io->offset, end = io->offset + io->len;

    while (pos < end) {
        enum device_extent_kind kind = DEVICE_EXTENT_HOLE;
        uint64_t next = (pos / PAGE_BYTES + 1) * PAGE_BYTES;
        uintptr_t *slot = find_slot(mem, pos / PAGE_BYTES);

        if (!slot)
            next = (pos / LEAF_BYTES + 1) * LEAF_BYTES;
        else if (*slot)
            kind = *slot & KNOWN_ZERO ? DEVICE_EXTENT_ZERO : DEVICE_EXTENT_DATA;
        next = min_u64(next, end);
        if (!device_extent_add(io, next - pos, kind))
            break;
        pos = next;
    }
    return 0;
}

static int
mem_set_size(struct mem_device *mem, uint64_t size)
{
    uint64_t nr = max_u64(div_up_u64(size, LEAF_BYTES), 1);
    struct mem_leaf **leaves;

    if (size > SIZE_MAX_BYTES)
        return -EFBIG;
    if (nr <= mem->nr_leaves)
        return 0;
    /* calloc, not realloc: the kernel gives a large sparse directory for nothing. */
    leaves = calloc(nr, sizeof(struct mem_leaf *));
    if (!leaves)
        return -ENOMEM;
    if (mem->nr_leaves > 0)
        memcpy(leaves, mem->leaves, mem->nr_leaves * sizeof(struct mem_leaf *));
    free(mem->leaves);
    mem->leaves = leaves;
    mem->nr_leaves = nr;
    return 0;
}

static int
mem_run(struct mem_device *mem, struct device_io *io)
{
    switch (io->op) {
    case DEVICE_READ:
        mem_read(mem, io);
        return 0;
    case DEVICE_WRITE:
        return mem_write(mem, io);
    case DEVICE_WRITE_ZEROES:
        return mem_zero(mem, io->offset, io->len, io->flags & DEVICE_NO_UNMAP);
    case DEVICE_DISCARD:
        return mem_zero(mem, io->offset, io->len, false);
    case DEVICE_FLUSH:
        return 0;
    case DEVICE_GROW:
        return mem_set_size(mem, io->offset);
    case DEVICE_EXTENTS:
        return mem_extents(mem, io);
    case DEVICE_ALLOCATE:
        return mem_allocate(mem, io->offset, io->len);
    }
    return -THIN_E_UNSUPPORTED;
}

static void
mem_submit(struct device *dev, struct device_io *io)
{
    device_finish(dev, io, mem_run(to_mem(dev), io));
}

static void
mem_free(struct mem_device *mem)
{
    for (uint64_t i = 0; i < mem->nr_leaves; i++) {
        if (!mem->leaves[i])
            continue;
        for (unsigned j = 0; j < LEAF_PAGES; j++)
            drop_page(&mem->leaves[i]->pages[j]);
        free(mem->leaves[i]);
    }
    free(mem->leaves);
    free(mem);
}

static void
mem_close(struct device *dev, void (*closed)(void *arg), void *arg)
{
    mem_free(to_mem(dev));
    if (closed)
        closed(arg);
}

static const struct device_ops mem_ops = {
    .kind = "memory",
    .submit = mem_submit,
    .close = mem_close,
};

int
device_mem_open(struct thin_loop *loop, uint64_t size, struct device **ret_dev)
{
    struct mem_device *mem = calloc(1, sizeof(*mem));
    int r;

    if (!mem)
        return -ENOMEM;
    device_init(&mem->base, &mem_ops, loop, "memory");
    mem->base.size = round_down_u64(size, SECTOR_SIZE);
    mem->base.limits.discards = true;
    mem->base.limits.discard_align = PAGE_BYTES;
    mem->base.limits.zeroes_fast = true;
    mem->base.limits.grows = true;
    mem->base.limits.zeroes_fresh = true;
    r = mem_set_size(mem, size);
    if (r < 0) {
        mem_free(mem);
        return r;
    }
    *ret_dev = &mem->base;
    return 0;
}

const void *
device_mem_page(struct device *dev, uint64_t page_index)
{
    struct mem_device *mem = to_mem(dev);
    uintptr_t *slot;

    THIN_ASSERT(dev->ops == &mem_ops);
    if (page_index / LEAF_PAGES >= mem->nr_leaves)
        return NULL;
    slot = find_slot(mem, page_index);
    return slot && *slot ? slot_bytes(*slot) : NULL;
}
