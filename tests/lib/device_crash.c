#include "tests/lib/device_crash.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/seeded_bug.h"
#include "core/device/driver.h"
#include "tests/lib/crash_image.h"

#define KEPT_MAX     4096u
#define NR_OPS       (DEVICE_ALLOCATE + 1)
#define RUBBISH      0xdb
#define BUFFER_STALE 0xa5 /* what a read's buffer holds until it is done */

/* One request in flight, or one completed write that no flush protects. */
struct crash_io {
    struct crash_disk *disk;
    struct device_io *io; /* NULL once completed */
    struct thin_timer timer;
    enum device_op op;
    unsigned flags;
    uint64_t offset, len;
    uint64_t seq;    /* place among the completed ones; 0 in flight */
    uint64_t covers; /* FLUSH: protects everything up to this place */
    /* WRITE: a copy made at submission, in pages as they lie on the disk. NULL
       otherwise: zeros. */
    struct crash_page **pages;
    uint64_t nr_pages;
    char *some; /* for each sector whether it was changed; NULL: all of them */
    TAILQ_ENTRY(crash_io) link;
};

TAILQ_HEAD(crash_ios, crash_io);

struct crash_device {
    struct device base;
    struct crash_disk *disk; /* NULL after the cut */
};

struct crash_disk {
    struct thin_random *rng;
    struct crash_params params;
    uint64_t size;
    uint64_t bad_page;     /* cannot be read; UINT64_MAX: none */
    uint64_t flushed_size; /* for a bug on purpose: growth that is not durable */
    struct crash_image live, durable;
    uint64_t *durable_seq; /* for each sector, the newest write that is durable there */
    bool *allocated;       /* for each page: a hole that has its place */
    uint64_t seq;
    struct crash_device *dev;
    struct crash_ios running, kept;
    unsigned nr_kept;
    uint64_t nr_ios, nr_op[NR_OPS];
    unsigned fail_mask;
    uint64_t fail_nth;
    int fail_code;
    bool failed;
};

/* ---- which sectors of a write are there ------------------------------------------------ */

enum fate { KEPT, DROPPED, HEAD, TAIL, SCATTERED, FATES };

struct survival {
    enum fate fate;
    uint64_t cut;
};

static struct survival
draw_survival(struct thin_random *rng, uint64_t nr_sectors)
{
    /* Torn ones are half: they find more than their share in life would. */
    static const enum fate fates[] = {KEPT, KEPT, DROPPED,   DROPPED,
                                      HEAD, TAIL, SCATTERED, SCATTERED};
    struct survival s = {.fate = fates[random_below(rng, 8)]};

    s.cut = random_below(rng, nr_sectors + 1);
    return s;
}

static bool
survives(const struct survival *s, struct thin_random *rng, uint64_t sector)
{
    switch (s->fate) {
    case KEPT:
        return true;
    case DROPPED:
        return false;
    case HEAD:
        return sector < s->cut;
    case TAIL:
        return sector >= s->cut;
    default:
        return random_u64(rng) >> 63;
    }
}

/* The place of byte `offset` of the disk in the request's copy. */
static char *
byte_data(const struct crash_io *c, uint64_t offset)
{
    uint64_t page = offset / CRASH_PAGE_BYTES - c->offset / CRASH_PAGE_BYTES;

    return crash_page_bytes(c->pages[page]) + offset % CRASH_PAGE_BYTES;
}

static const char *
sector_data(const struct crash_io *c, uint64_t i)
{
    return c->pages ? byte_data(c, c->offset + i * SECTOR_SIZE) : NULL;
}

/* The request covers the whole page of its sector `i`, which is the page's first. */
static bool
has_page(const struct crash_io *c, uint64_t i)
{
    uint64_t at = c->offset + i * SECTOR_SIZE;

    return !c->some && at % CRASH_PAGE_BYTES == 0 &&
           at + CRASH_PAGE_BYTES <= c->offset + c->len;
}

static void
share_page(struct crash_image *image, const struct crash_io *c, uint64_t i)
{
    uint64_t index = (c->offset + i * SECTOR_SIZE) / CRASH_PAGE_BYTES;
    struct crash_page *zero;

    if (c->pages) {
        crash_image_share(image, index, c->pages[index - c->offset / CRASH_PAGE_BYTES]);
        return;
    }
    zero = crash_page_zero();
    crash_image_share(image, index, zero);
    crash_page_put(zero);
}

static bool
has_sector(const struct crash_io *c, uint64_t i)
{
    return !c->some || c->some[i];
}

static bool
unmaps(const struct crash_io *c)
{
    return !c->pages && !(c->flags & DEVICE_NO_UNMAP);
}

/* ---- the two images ------------------------------------------------------------------------ */

static void *
zeroed(uint64_t n, size_t size)
{
    void *p = calloc(n + 1, size);

    THIN_ASSERT(p);
    return p;
}

static void
set_size(struct crash_disk *disk, uint64_t size)
{
    uint64_t *seq = zeroed(size / SECTOR_SIZE, sizeof(*seq));
    bool *allocated = zeroed(div_up_u64(size, CRASH_PAGE_BYTES), sizeof(*allocated));

    if (disk->durable_seq) {
        memcpy(seq, disk->durable_seq, disk->size / SECTOR_SIZE * sizeof(*seq));
        memcpy(allocated, disk->allocated,
               div_up_u64(disk->size, CRASH_PAGE_BYTES) * sizeof(*allocated));
    }
    free(disk->durable_seq);
    free(disk->allocated);
    disk->durable_seq = seq;
    disk->allocated = allocated;
    disk->size = size;
    crash_image_grow(&disk->live, size);
    crash_image_grow(&disk->durable, size);
}

/* Pages of which a request unmaps everything become holes. */
static void
punch_whole_pages(struct crash_disk *disk, struct crash_image *image,
                  const struct crash_io *c)
{
    uint64_t page = div_up_u64(c->offset, CRASH_PAGE_BYTES);

    if (!unmaps(c) || c->some)
        return;
    for (; (page + 1) * CRASH_PAGE_BYTES <= c->offset + c->len; page++) {
        crash_image_punch(image, page);
        if (image == &disk->live)
            disk->allocated[page] = false;
    }
}

static bool
meets_bad_page(const struct crash_disk *disk, const struct crash_io *c)
{
    return disk->bad_page != UINT64_MAX &&
           c->offset < (disk->bad_page + 1) * CRASH_PAGE_BYTES &&
           c->offset + c->len > disk->bad_page * CRASH_PAGE_BYTES;
}

static void
apply_live(struct crash_disk *disk, const struct crash_io *c)
{
    if (meets_bad_page(disk, c))
        disk->bad_page = UINT64_MAX;
    for (uint64_t i = 0; i < c->len / SECTOR_SIZE; i++) {
        if (has_page(c, i)) {
            share_page(&disk->live, c, i);
            i += CRASH_PAGE_SECTORS - 1;
        } else if (has_sector(c, i)) {
            crash_image_put(&disk->live, c->offset / SECTOR_SIZE + i, sector_data(c, i));
        }
    }
    punch_whole_pages(disk, &disk->live, c);
}

/* Nothing that is newer stands in the page. */
static bool
page_is_older(const struct crash_disk *disk, uint64_t sector, uint64_t seq)
{
    for (uint64_t i = sector; i < sector + CRASH_PAGE_SECTORS; i++)
        if (disk->durable_seq[i] > seq)
            return false;
    return true;
}

/* What is newer and durable already stays: a late flush of an old write is no news. */
static void
apply_durable(struct crash_disk *disk, const struct crash_io *c, const struct survival *s,
              struct thin_random *rng)
{
    for (uint64_t i = 0; i < c->len / SECTOR_SIZE; i++) {
        uint64_t sector = c->offset / SECTOR_SIZE + i;

        if (!s && has_page(c, i) && page_is_older(disk, sector, c->seq)) {
            share_page(&disk->durable, c, i);
            for (unsigned k = 0; k < CRASH_PAGE_SECTORS; k++)
                disk->durable_seq[sector + k] = c->seq;
            i += CRASH_PAGE_SECTORS - 1;
            continue;
        }
        if (!has_sector(c, i) || disk->durable_seq[sector] > c->seq ||
            (s && !survives(s, rng, i)))
            continue;
        crash_image_put(&disk->durable, sector, sector_data(c, i));
        disk->durable_seq[sector] = c->seq;
    }
}

static void
free_io(struct crash_io *c)
{
    for (uint64_t i = 0; i < c->nr_pages; i++)
        crash_page_put(c->pages[i]);
    free(c->pages);
    free(c->some);
    free(c);
}

static void
settle(struct crash_disk *disk, struct crash_io *c, const struct survival *s)
{
    apply_durable(disk, c, s, disk->rng);
    TAILQ_REMOVE(&disk->kept, c, link);
    disk->nr_kept--;
    free_io(c);
}

/* ---- ends of requests ------------------------------------------------------------------------ */

static bool
draw_error(struct crash_disk *disk, uint32_t ppm)
{
    return ppm > 0 && random_below(disk->rng, 1000000) < ppm;
}

static void
tear(struct crash_disk *disk, struct crash_io *c)
{
    uint64_t n = c->len / SECTOR_SIZE;
    struct survival s = draw_survival(disk->rng, n);

    c->some = zeroed(n, 1);
    for (uint64_t i = 0; i < n; i++)
        c->some[i] = survives(&s, disk->rng, i);
}

/* A change that has happened, but for a flush. */
static void
keep(struct crash_disk *disk, struct crash_io *c)
{
    unsigned max = disk->params.max_kept ? disk->params.max_kept : KEPT_MAX;

    c->seq = ++disk->seq;
    c->io = NULL;
    apply_live(disk, c);
    TAILQ_INSERT_TAIL(&disk->kept, c, link);
    disk->nr_kept++;
    while (disk->nr_kept > max)
        settle(disk, TAILQ_FIRST(&disk->kept), NULL);
}

enum { COPY_IN, COMPARE, COPY_OUT, SPOIL };

/* Walks the request's pieces and the disk's pages side by side. */
static void
walk_pieces(const struct crash_io *c, const struct crash_image *image, int what)
{
    static const char nothing[CRASH_PAGE_BYTES];
    const struct device_io *io = c->io;
    uint64_t at = c->offset, end = c->offset + c->len, skip = 0;

    for (unsigned i = 0; at < end;) {
        size_t n = min_u64(CRASH_PAGE_BYTES - at % CRASH_PAGE_BYTES, end - at);
        char *piece;
        const char *page;

        THIN_ASSERT(i < io->nr_iov);
        piece = (char *)io->iov[i].iov_base + skip;
        n = min_u64(n, io->iov[i].iov_len - skip);
        if (n == 0) {
            i++;
            skip = 0;
            continue;
        }
        if (what == COPY_IN) {
            memcpy(byte_data(c, at), piece, n);
        } else if (what == COMPARE) {
            /* The submitter has changed its buffer before the write was done. */
            THIN_ASSERT(memcmp(byte_data(c, at), piece, n) == 0);
        } else if (what == COPY_OUT) {
            page = crash_image_page(image, at / CRASH_PAGE_BYTES);
            memcpy(piece, page ? page + at % CRASH_PAGE_BYTES : nothing, n);
        } else {
            memset(piece, BUFFER_STALE, n);
        }
        at += n;
        skip += n;
    }
}

/* A copy of what is written, made at submission. */
static void
take_data(struct crash_io *c)
{
    uint64_t first = c->offset / CRASH_PAGE_BYTES;

    c->nr_pages = div_up_u64(c->offset + c->len, CRASH_PAGE_BYTES) - first;
    c->pages = zeroed(c->nr_pages, sizeof(struct crash_page *));
    for (uint64_t i = 0; i < c->nr_pages; i++)
        c->pages[i] = crash_page_create(NULL);
    walk_pieces(c, NULL, COPY_IN);
}

static int
end_change(struct crash_disk *disk, struct crash_io *c, int r)
{
    struct device_io *io = c->io;

    if (c->op == DEVICE_WRITE)
        walk_pieces(c, NULL, COMPARE);
    if (r == 0 && draw_error(disk, disk->params.write_error_ppm))
        r = -EIO;
    if (r == 0 && (c->flags & DEVICE_FUA) &&
        draw_error(disk, disk->params.flush_error_ppm))
        r = -EIO;
    if (r < 0)
        tear(disk, c);
    keep(disk, c);
    if (r == 0 && (io->flags & DEVICE_FUA) && !TAILQ_EMPTY(&disk->kept) &&
        TAILQ_LAST(&disk->kept, crash_ios) == c)
        settle(disk, c, NULL);
    return r;
}

static int
end_discard(struct crash_disk *disk, struct crash_io *c, int r)
{
    enum crash_discard what = disk->params.discard;

    if (what == CRASH_DISCARD_ANY)
        what = (enum crash_discard)(1 + random_below(disk->rng, 3));
    if (r < 0 || what == CRASH_DISCARD_NOTHING) {
        free_io(c);
        return r;
    }
    if (what == CRASH_DISCARD_RUBBISH) {
        uint64_t first = c->offset / CRASH_PAGE_BYTES;

        c->nr_pages = div_up_u64(c->offset + c->len, CRASH_PAGE_BYTES) - first;
        c->pages = zeroed(c->nr_pages, sizeof(struct crash_page *));
        for (uint64_t i = 0; i < c->nr_pages; i++) {
            c->pages[i] = crash_page_create(NULL);
            memset(crash_page_bytes(c->pages[i]), RUBBISH, CRASH_PAGE_BYTES);
        }
    }
    keep(disk, c);
    return 0;
}

static int
end_read(struct crash_disk *disk, struct crash_io *c, int r)
{
    if (r == 0 && draw_error(disk, disk->params.read_error_ppm))
        r = -EIO;
    if (r == 0 && meets_bad_page(disk, c))
        r = -EIO;
    if (r == 0)
        walk_pieces(c, &disk->live, COPY_OUT);
    return r;
}

static int
end_flush(struct crash_disk *disk, struct crash_io *c, int r)
{
    struct crash_io *w;

    if (r == 0 && draw_error(disk, disk->params.flush_error_ppm))
        r = -EIO;
    while ((w = TAILQ_FIRST(&disk->kept)) && w->seq <= c->covers) {
        struct survival s = draw_survival(disk->rng, w->len / SECTOR_SIZE);

        /* The failed flush has forgotten what it could not write. */
        settle(disk, w, r < 0 ? &s : NULL);
    }
    if (r == 0)
        disk->flushed_size = disk->size;
    return r;
}

static void
end_extents(struct crash_disk *disk, struct crash_io *c)
{
    uint64_t pos = c->offset, end = c->offset + c->len;

    while (pos < end) {
        uint64_t page = pos / CRASH_PAGE_BYTES;
        uint64_t next = min_u64((page + 1) * CRASH_PAGE_BYTES, end);
        enum device_extent_kind kind = DEVICE_EXTENT_DATA;

        if (crash_image_is_hole(&disk->live, page))
            kind = disk->allocated[page] ? DEVICE_EXTENT_ZERO : DEVICE_EXTENT_HOLE;
        if (!device_extent_add(c->io, next - pos, kind))
            return;
        pos = next;
    }
}

static void
end_allocate(struct crash_disk *disk, struct crash_io *c)
{
    uint64_t page = c->offset / CRASH_PAGE_BYTES;

    for (; page * CRASH_PAGE_BYTES < c->offset + c->len; page++)
        disk->allocated[page] = true;
}

static void
request_fires(struct thin_timer *timer)
{
    struct crash_io *c = container_of(timer, struct crash_io, timer);
    struct crash_disk *disk = c->disk;
    struct device *dev = &disk->dev->base;
    struct device_io *io = c->io;
    int r = 0;

    TAILQ_REMOVE(&disk->running, c, link);
    if ((disk->fail_mask & 1u << c->op) && disk->fail_nth > 0 && --disk->fail_nth == 0) {
        disk->failed = true;
        r = disk->fail_code;
    }
    switch (c->op) {
    case DEVICE_WRITE:
    case DEVICE_WRITE_ZEROES:
        device_deliver(dev, io, end_change(disk, c, r));
        return; /* kept, or settled */
    case DEVICE_DISCARD:
        device_deliver(dev, io, end_discard(disk, c, r));
        return;
    case DEVICE_READ:
        r = end_read(disk, c, r);
        break;
    case DEVICE_FLUSH:
        r = end_flush(disk, c, r);
        break;
    case DEVICE_GROW:
        if (r == 0 && io->offset > disk->size)
            set_size(disk, io->offset);
        break;
    case DEVICE_EXTENTS:
        if (r == 0)
            end_extents(disk, c);
        break;
    case DEVICE_ALLOCATE:
        if (r == 0)
            end_allocate(disk, c);
        break;
    }
    free_io(c);
    device_deliver(dev, io, r);
}

/* ---- the device ---------------------------------------------------------------------------------- */

static uint64_t
draw_latency(struct crash_disk *disk)
{
    uint64_t min = disk->params.latency_min_ns, max = disk->params.latency_max_ns, ns;

    if (max == 0) {
        min = 10000;
        max = 2 * NS_PER_MS;
    }
    ns = min + random_below(disk->rng, max - min + 1);
    /* Now and then one is left behind by all the others. */
    return random_below(disk->rng, 64) == 0 ? ns * 10 : ns;
}

static void
crash_submit(struct device *dev, struct device_io *io)
{
    struct crash_disk *disk = container_of(dev, struct crash_device, base)->disk;
    struct crash_io *c = zeroed(0, sizeof(*c));
    int r;

    *c = (struct crash_io){
        .disk = disk,
        .io = io,
        .timer.fire = request_fires,
        .op = io->op,
        .flags = io->flags,
        .offset = io->offset,
        .len = io->op == DEVICE_FLUSH || io->op == DEVICE_GROW ? 0 : io->len,
        .covers = disk->seq,
    };
    disk->nr_ios++;
    disk->nr_op[io->op]++;
    if (io->op == DEVICE_WRITE)
        take_data(c);
    else if (io->op == DEVICE_READ)
        walk_pieces(c, NULL, SPOIL);
    TAILQ_INSERT_TAIL(&disk->running, c, link);
    r = loop_timer_set(dev->loop, &c->timer, loop_now_ns(dev->loop) + draw_latency(disk));
    THIN_ASSERT(r == 0);
}

static void
crash_close(struct device *dev, void (*closed)(void *arg), void *arg)
{
    struct crash_device *cd = container_of(dev, struct crash_device, base);

    if (cd->disk)
        cd->disk->dev = NULL;
    free(cd);
    if (closed)
        closed(arg);
}

static const struct device_ops crash_ops = {
    .kind = "crash",
    .submit = crash_submit,
    .close = crash_close,
};

struct device *
crash_disk_open(struct crash_disk *disk, struct thin_loop *loop)
{
    struct crash_device *cd = zeroed(0, sizeof(*cd));

    THIN_ASSERT(!disk->dev);
    device_init(&cd->base, &crash_ops, loop, "crash disk");
    cd->base.size = disk->size;
    cd->base.limits.discards = true;
    cd->base.limits.discard_align = CRASH_PAGE_BYTES;
    cd->base.limits.zeroes_fast = true;
    cd->base.limits.grows = true;
    cd->base.limits.zeroes_fresh = true;
    cd->disk = disk;
    disk->dev = cd;
    return &cd->base;
}

/* ---- the cut ------------------------------------------------------------------------------------ */

static bool
is_change(const struct crash_io *c)
{
    return c->op == DEVICE_WRITE || c->op == DEVICE_WRITE_ZEROES ||
           c->op == DEVICE_DISCARD;
}

/* What of `from`'s unprotected changes has reached `to` when the power went. */
static void
draw_survivors(struct crash_disk *to, const struct crash_disk *from,
               struct thin_random *rng)
{
    struct crash_io *c;

    TAILQ_FOREACH(c, &from->kept, link) {
        struct survival s = draw_survival(rng, c->len / SECTOR_SIZE);

        apply_durable(to, c, &s, rng);
    }
    TAILQ_FOREACH(c, &from->running, link) {
        struct survival s = draw_survival(rng, c->len / SECTOR_SIZE);
        uint64_t seq = c->seq;

        if (c->op == DEVICE_GROW && c->io->offset > to->size && random_below(rng, 2))
            set_size(to, c->io->offset);
        if (!is_change(c))
            continue;
        c->seq = ++to->seq;
        apply_durable(to, c, &s, rng);
        c->seq = seq;
    }
    crash_image_copy(&to->live, &to->durable);
    /* Nothing promises that a place which holds no data has outlived the cut. */
    for (uint64_t i = 0; i < div_up_u64(to->size, CRASH_PAGE_BYTES); i++)
        to->allocated[i] = from->allocated[i] && random_below(rng, 2);
}

static void
drop_all(struct crash_disk *disk)
{
    struct crash_io *c;

    while ((c = TAILQ_FIRST(&disk->kept))) {
        TAILQ_REMOVE(&disk->kept, c, link);
        free_io(c);
    }
    disk->nr_kept = 0;
    while ((c = TAILQ_FIRST(&disk->running))) {
        struct device *dev = &disk->dev->base;

        TAILQ_REMOVE(&disk->running, c, link);
        loop_timer_cancel(dev->loop, &c->timer);
        device_finish(dev, c->io, -THIN_E_LOST);
        free_io(c);
    }
}

void
crash_disk_cut(struct crash_disk *disk)
{
    draw_survivors(disk, disk, disk->rng);
    if (seeded_bug(SEEDED_SIZE_NOT_DURABLE))
        disk->size = disk->flushed_size;
    drop_all(disk);
    if (disk->dev) {
        disk->dev->base.lost = true;
        disk->dev->disk = NULL;
        disk->dev = NULL;
    }
}

struct crash_disk *
crash_disk_fork_cut(const struct crash_disk *disk, struct thin_random *rng)
{
    struct crash_disk *fork = crash_disk_create(rng, disk->size, NULL);

    crash_image_copy(&fork->durable, &disk->durable);
    memcpy(fork->durable_seq, disk->durable_seq,
           disk->size / SECTOR_SIZE * sizeof(*fork->durable_seq));
    fork->seq = disk->seq;
    draw_survivors(fork, disk, rng);
    return fork;
}

/* ---- the disk ------------------------------------------------------------------------------------- */

struct crash_disk *
crash_disk_create(struct thin_random *rng, uint64_t size,
                  const struct crash_params *params)
{
    struct crash_disk *disk = zeroed(0, sizeof(*disk));

    disk->rng = rng;
    if (params)
        disk->params = *params;
    crash_image_init(&disk->live, size);
    crash_image_init(&disk->durable, size);
    set_size(disk, round_down_u64(size, SECTOR_SIZE));
    disk->flushed_size = disk->size;
    disk->bad_page = UINT64_MAX;
    TAILQ_INIT(&disk->running);
    TAILQ_INIT(&disk->kept);
    return disk;
}

void
crash_disk_destroy(struct crash_disk *disk)
{
    if (!disk)
        return;
    THIN_ASSERT(!disk->dev);
    drop_all(disk);
    crash_image_fini(&disk->live);
    crash_image_fini(&disk->durable);
    free(disk->durable_seq);
    free(disk->allocated);
    free(disk);
}

struct crash_params *
crash_disk_params(struct crash_disk *disk)
{
    return &disk->params;
}

void
crash_disk_fail_nth(struct crash_disk *disk, unsigned op_mask, uint64_t nth, int code)
{
    disk->fail_mask = op_mask;
    disk->fail_nth = nth;
    disk->fail_code = code;
    disk->failed = false;
}

bool
crash_disk_failed(const struct crash_disk *disk)
{
    return disk->failed;
}

uint64_t
crash_disk_nr_ios(const struct crash_disk *disk)
{
    return disk->nr_ios;
}

uint64_t
crash_disk_nr_op(const struct crash_disk *disk, enum device_op op)
{
    return disk->nr_op[op];
}

unsigned
crash_disk_nr_kept(const struct crash_disk *disk)
{
    return disk->nr_kept;
}

uint64_t
crash_disk_size(const struct crash_disk *disk)
{
    return disk->size;
}

void
crash_disk_read(const struct crash_disk *disk, uint64_t offset, void *buf, uint64_t len)
{
    crash_image_read(&disk->live, offset, buf, len);
}

const void *
crash_disk_page(const struct crash_disk *disk, uint64_t index)
{
    return crash_image_page(&disk->live, index);
}

void
crash_disk_read_durable(const struct crash_disk *disk, uint64_t offset, void *buf,
                        uint64_t len)
{
    crash_image_read(&disk->durable, offset, buf, len);
}

void
crash_disk_grow(struct crash_disk *disk, uint64_t size)
{
    if (size > disk->size)
        set_size(disk, size);
    disk->flushed_size = disk->size;
}

void
crash_disk_spoil(struct crash_disk *disk, uint64_t page)
{
    disk->bad_page = page;
}

void
crash_disk_write(struct crash_disk *disk, uint64_t offset, const void *buf, uint64_t len)
{
    const char *from = buf;

    THIN_ASSERT(offset % SECTOR_SIZE == 0 && len % SECTOR_SIZE == 0);
    if (disk->bad_page != UINT64_MAX && offset <= disk->bad_page * CRASH_PAGE_BYTES &&
        offset + len >= (disk->bad_page + 1) * CRASH_PAGE_BYTES)
        disk->bad_page = UINT64_MAX;
    disk->seq++;
    for (; len > 0; offset += SECTOR_SIZE, from += SECTOR_SIZE, len -= SECTOR_SIZE) {
        crash_image_put(&disk->live, offset / SECTOR_SIZE, from);
        crash_image_put(&disk->durable, offset / SECTOR_SIZE, from);
        disk->durable_seq[offset / SECTOR_SIZE] = disk->seq;
    }
}
