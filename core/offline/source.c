#include "core/offline/source.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/offline/source_sweep.h"

int
source_open_ops(const struct source_ops *ops, void *arg, uint64_t size_bytes,
                bool writable, struct meta_source **ret_src)
{
    struct meta_source *src = calloc(1, sizeof(*src));

    if (!src)
        return -ENOMEM;
    src->piece = aligned_alloc(METADATA_BLOCK_SIZE,
                               (size_t)SOURCE_PIECE_BLOCKS * METADATA_BLOCK_SIZE);
    if (!src->piece) {
        free(src);
        return -ENOMEM;
    }
    src->ops = ops;
    src->arg = arg;
    src->nr_blocks = size_bytes / METADATA_BLOCK_SIZE;
    src->writable = writable;
    *ret_src = src;
    return 0;
}

void
source_close(struct meta_source *src)
{
    if (!src)
        return;
    aside_free(src->aside);
    ahead_destroy(src->ahead);
    if (src->ops->close)
        src->ops->close(src->arg);
    free(src->piece);
    free(src);
}

/* Into the aligned piece. */
static int
timed_read(struct meta_source *src, uint64_t offset, size_t len_bytes)
{
    uint64_t begin = ahead_now_us();
    int r = src->ops->read(src->arg, offset, src->piece, len_bytes);

    src->slow = ahead_is_slow(ahead_now_us() - begin, len_bytes / METADATA_BLOCK_SIZE);
    return r;
}

int
source_read(struct meta_source *src, mblock_t b, void *buf, struct thin_error *err)
{
    const uint8_t *aside;
    int r, unchecked;

    if (b >= src->nr_blocks)
        return thin_fail(err, -THIN_E_RANGE,
                         "metadata block %" PRIu64 " is beyond the device's %" PRIu64
                         " blocks",
                         b, src->nr_blocks);
    aside = aside_find(src->aside, b, BLOCK_KINDS, &unchecked);
    if (aside) {
        src->nr_read++;
        memcpy(buf, aside, METADATA_BLOCK_SIZE);
        return 0;
    }
    /* Through the aligned piece: the caller's buffer need not suit O_DIRECT. */
    r = timed_read(src, b * METADATA_BLOCK_SIZE, METADATA_BLOCK_SIZE);
    if (r < 0) {
        src->nr_unreadable++;
        return thin_fail_code(err, r, "read metadata block %" PRIu64, b);
    }
    src->nr_read++;
    memcpy(buf, src->piece, METADATA_BLOCK_SIZE);
    return 0;
}

/* How many of sorted[0..] go in one read of at most `most` blocks. */
static size_t
piece_length(const mblock_t *sorted, size_t nr, mblock_t most)
{
    size_t n = 1;

    while (n < nr && n < most && sorted[n] - sorted[0] < most &&
           sorted[n] - sorted[n - 1] <= SOURCE_GAP_BLOCKS)
        n++;
    return n;
}

/* One source_read_many. */
struct row {
    struct meta_source *src;
    const mblock_t *sorted;
    enum block_kind kind;
    source_seen_fn *seen;
    void *arg;
};

static int
see_block(const struct row *row, size_t i, const uint8_t *data)
{
    int code =
        row->kind == BLOCK_KINDS ? 0 : block_check(row->kind, data, row->sorted[i], NULL);

    return row->seen(row->arg, i, data, code);
}

/* A piece that failed as a whole: block by block, to find the bad ones. */
static int
read_singly(const struct row *row, size_t first, size_t nr)
{
    struct meta_source *src = row->src;

    for (size_t i = first; i < first + nr; i++) {
        int code = src->ops->read(src->arg, row->sorted[i] * METADATA_BLOCK_SIZE,
                                  src->piece, METADATA_BLOCK_SIZE);
        int r;

        if (code < 0) {
            src->nr_unreadable++;
            r = row->seen(row->arg, i, NULL, code);
        } else {
            src->nr_read++;
            r = see_block(row, i, src->piece);
        }
        if (r)
            return r;
    }
    return 0;
}

static int
read_here(const struct row *row, size_t first, size_t end)
{
    struct meta_source *src = row->src;
    const mblock_t *sorted = row->sorted;
    size_t n;

    for (size_t i = first; i < end; i += n) {
        uint64_t len;
        int r;

        n = piece_length(sorted + i, end - i, SOURCE_PIECE_BLOCKS);
        len = sorted[i + n - 1] - sorted[i] + 1;
        r = source_tick(src, NULL, 0, 0);
        if (r < 0)
            return r;
        r = timed_read(src, sorted[i] * METADATA_BLOCK_SIZE,
                       (size_t)len * METADATA_BLOCK_SIZE);
        if (r < 0) {
            r = read_singly(row, i, n);
            if (r)
                return r;
            continue;
        }
        src->nr_read += n;
        for (size_t j = i; j < i + n; j++) {
            r = see_block(row, j,
                          src->piece +
                              (size_t)(sorted[j] - sorted[i]) * METADATA_BLOCK_SIZE);
            if (r)
                return r;
        }
    }
    return 0;
}

static int
see_piece(const struct row *row, size_t first, const struct ahead_piece *p)
{
    int r = source_tick(row->src, NULL, 0, 0);

    if (r < 0)
        return r;
    if (p->code < 0)
        return read_singly(row, first, p->nr);
    row->src->nr_read += p->nr;
    for (size_t j = 0; j < p->nr && r == 0; j++)
        r = row->seen(row->arg, first + j,
                      p->bytes +
                          (size_t)(p->blocks[j] - p->blocks[0]) * METADATA_BLOCK_SIZE,
                      p->codes[j]);
    return r;
}

static int
read_ahead(const struct row *row, size_t first, size_t end)
{
    struct source_ahead *a = row->src->ahead;
    size_t asked = first;
    int r = 0;

    while (first < end && r == 0) {
        const struct ahead_piece *p;

        while (asked < end && ahead_has_room(a)) {
            size_t n = piece_length(row->sorted + asked, end - asked, AHEAD_PIECE_BLOCKS);

            ahead_ask(a, row->sorted + asked, n, row->kind);
            asked += n;
        }
        p = ahead_take(a);
        r = see_piece(row, first, p);
        first += p->nr;
        ahead_release(a);
    }
    ahead_drop(a);
    row->src->slow = ahead_was_slow(a);
    return r;
}

/* The blocks of the row from `first` to before `end`. */
static int
read_range(const struct row *row, size_t first, size_t end)
{
    struct meta_source *src = row->src;

    if (end - first > 1 && src->ops->any_thread && !src->ahead)
        (void)ahead_create(src->ops->read, src->arg, AHEAD_PIECES, AHEAD_PIECE_BLOCKS,
                           false, &src->ahead);
    return end - first > 1 && src->ahead ? read_ahead(row, first, end)
                                         : read_here(row, first, end);
}

/* What was kept aside is told of in its turn; all between is read. */
static int
read_row(const struct row *row, size_t nr)
{
    size_t first = 0;
    int r = 0;

    for (size_t i = 0; i < nr && r == 0; i++) {
        int code;
        const uint8_t *aside =
            aside_find(row->src->aside, row->sorted[i], row->kind, &code);

        if (!aside)
            continue;
        if (i > first)
            r = read_range(row, first, i);
        first = i + 1;
        row->src->nr_read++;
        if (r == 0)
            r = row->seen(row->arg, i, aside, code);
    }
    return r || first == nr ? r : read_range(row, first, nr);
}

int
source_read_many(struct meta_source *src, const mblock_t *sorted, size_t nr,
                 enum block_kind kind, source_seen_fn *seen, void *arg)
{
    const struct row row = {src, sorted, kind, seen, arg};
    size_t inside = nr;
    int r;

    while (inside && sorted[inside - 1] >= src->nr_blocks)
        inside--;
    r = src->aside ? read_row(&row, inside) : read_range(&row, 0, inside);
    for (size_t i = inside; i < nr && r == 0; i++)
        r = seen(arg, i, NULL, -THIN_E_RANGE);
    return r;
}

bool
source_is_slow(const struct meta_source *src)
{
    return src->slow;
}

int
source_write(struct meta_source *src, mblock_t b, const void *buf, size_t nr_blocks,
             struct thin_error *err)
{
    int r;

    if (!src->writable)
        return thin_fail(err, -THIN_E_READ_ONLY, "metadata is open for reading only");
    if (!range_inside(b, nr_blocks, src->nr_blocks))
        return thin_fail(err, -THIN_E_NO_METADATA_SPACE,
                         "metadata device is too small: block %" PRIu64
                         " is needed, it has %" PRIu64,
                         b + nr_blocks - 1, src->nr_blocks);
    /* O_DIRECT wants alignment; few and small are the writes that come without. */
    if ((uintptr_t)buf % METADATA_BLOCK_SIZE && nr_blocks <= SOURCE_PIECE_BLOCKS) {
        memcpy(src->piece, buf, nr_blocks * METADATA_BLOCK_SIZE);
        buf = src->piece;
    }
    r = src->ops->write(src->arg, b * METADATA_BLOCK_SIZE, buf,
                        nr_blocks * METADATA_BLOCK_SIZE);
    if (r < 0)
        return thin_fail_code(err, r, "write metadata block %" PRIu64, b);
    src->nr_written += nr_blocks;
    return 0;
}

int
source_flush(struct meta_source *src, struct thin_error *err)
{
    int r = src->ops->flush(src->arg);

    return r < 0 ? thin_fail_code(err, r, "flush the metadata device") : 0;
}

void
source_reads_for(struct meta_source *src, const char *what, uint64_t total)
{
    src->reading_for = what;
    src->reading_from = src->nr_read;
    src->reading_total = total;
}

int
source_tick(struct meta_source *src, const char *what, uint64_t done, uint64_t total)
{
    if (!src->progress.tick)
        return 0;
    if (!what && src->reading_for) {
        what = src->reading_for;
        done = src->nr_read - src->reading_from;
        total = src->reading_total;
        if (total && done > total) /* some are read twice */
            done = total;
    }
    return src->progress.tick(src->progress.arg, what, done, total) ? -THIN_E_CANCELLED
                                                                    : 0;
}
