/* One pass in the order of the disk over all that is in use, ahead of the walk. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/offline/check.h"
#include "core/ondisk/bitmap.h"
#include "core/ondisk/mapping.h"

/* ---- what is in use -------------------------------------------------------------------- */

struct named {
    mblock_t block;
    uint64_t k;
};

struct used {
    const struct named *named; /* by place in the row */
    uint8_t *bits;
    mblock_t nr_blocks;
};

static int
bitmap_seen(void *arg, size_t index, const uint8_t *data, int code)
{
    struct used *u = arg;
    mblock_t first = u->named[index].k * BITMAP_ENTRIES;
    mblock_t end = min_u64(first + BITMAP_ENTRIES, u->nr_blocks);

    if (!data || code < 0)
        return 0;
    /* Two bits of a count become one: four in a byte, and eight begin with each bitmap. */
    for (mblock_t b = first; b < end; b += 4) {
        unsigned v = data[BITMAP_HEADER_BYTES + (b - first) / 4];

        v = (v | v >> 1) & 0x55u;
        v = (v | v >> 1) & 0x33u;
        v = (v | v >> 2) & 0x0fu;
        u->bits[b / 8] |= (uint8_t)(v << (b % 8));
    }
    return 0;
}

static int
compare_named(const void *pa, const void *pb)
{
    const struct named *a = pa, *b = pb;

    return (a->block > b->block) - (a->block < b->block);
}

/* Sets a bit for each block in use. 1: and they have to come from the disk. */
static int
find_used(struct meta_source *src, mblock_t index_block, uint8_t *bits,
          mblock_t nr_blocks)
{
    AUTO_FREE uint8_t *index = malloc(METADATA_BLOCK_SIZE);
    struct named named[INDEX_BLOCK_ENTRIES];
    mblock_t blocks[INDEX_BLOCK_ENTRIES];
    struct used used = {named, bits, nr_blocks};
    size_t nr = 0;
    bool slow;
    int r;

    if (!index)
        return -ENOMEM;
    if (source_read(src, index_block, index, NULL) < 0 ||
        block_check(BLOCK_INDEX, index, index_block, NULL) < 0)
        return 0;
    /* Two reads are asked how long they took: one may have waited for a core. */
    slow = source_is_slow(src);
    for (uint32_t k = 0; k < div_up_u64(nr_blocks, BITMAP_ENTRIES); k++) {
        struct index_entry e;

        if (k >= INDEX_BLOCK_ENTRIES)
            break;
        index_entry_decode(&e, index_block_entry_ro(index, k));
        if (e.blocknr < nr_blocks)
            named[nr++] = (struct named){e.blocknr, k};
    }
    qsort(named, nr, sizeof(*named), compare_named);
    for (size_t i = 0; i < nr; i++)
        blocks[i] = named[i].block;
    r = source_read_many(src, blocks, nr, BLOCK_BITMAP, bitmap_seen, &used);
    return r < 0 ? r : slow && source_is_slow(src);
}

/* ---- the leaves of the mappings -------------------------------------------------------- */

static int
count(struct check *c, const uint8_t *values, uint32_t nr)
{
    struct counts_near near = {0};

    for (uint32_t i = 0; i < nr; i++) {
        dblock_t b = mapping_block(load_le64(values + 8 * (size_t)i));

        if (counts_inc_near(&c->res->data, &near, b) < 0)
            return -ENOMEM;
    }
    return 0;
}

/* What has any fault is left to the walk, which has the words for it. */
static bool
is_good_leaf(const struct check *c, const uint8_t *data)
{
    const uint8_t *values = node_value(data, 0);
    uint64_t nr_data = c->nr_data;
    uint32_t nr, time = c->res->sb.time;
    unsigned bad = 0;

    if (node_judge(data, VALUE_SIZE_MAPPING, NULL) < 0 || !node_is_leaf(data))
        return false;
    nr = node_nr_entries(data);
    /* To the end without a branch: nearly all are good. */
    for (uint32_t i = 0; i < nr; i++) {
        uint64_t value = load_le64(values + 8 * (size_t)i);

        bad |= (unsigned)(mapping_time(value) > time) |
               (unsigned)(mapping_block(value) >= nr_data);
    }
    return nr > 0 && !bad;
}

static int
swept(void *arg, mblock_t b, const uint8_t *data, int code)
{
    struct check *c = arg;
    struct walk *w = &c->walk;
    uint32_t nr;
    int r;

    /* A tree of few volumes is one leaf that looks like mappings to low blocks. */
    if (code < 0 || b == c->res->sb.data_mapping_root || !is_good_leaf(c, data))
        return 0;
    if (w->nr_known == c->room_known) {
        size_t room = c->room_known ? c->room_known * 2 : 1024;
        struct walk_known *bigger = realloc(w->known, room * sizeof(*bigger));

        if (!bigger)
            return -ENOMEM;
        w->known = bigger;
        c->room_known = room;
    }
    nr = node_nr_entries(data);
    r = count(c, node_value(data, 0), nr);
    if (r < 0)
        return r;
    w->known[w->nr_known++] = (struct walk_known){.first = node_key(data, 0),
                                                  .last = node_key(data, nr - 1),
                                                  .block = (uint32_t)b,
                                                  .nr = nr & 0x7fff,
                                                  .max = node_max_entries(data) & 0x7fff};
    return 1;
}

/* ---- their order ------------------------------------------------------------------------- */

struct known_run {
    size_t begin, end;
    uint32_t first;
};

static int
compare_runs(const void *pa, const void *pb)
{
    const struct known_run *a = pa, *b = pb;

    return (a->first > b->first) - (a->first < b->first);
}

static size_t
find_runs(const struct walk *w, struct known_run *runs)
{
    size_t nr = 0;

    for (size_t i = 0; i < w->nr_known; i++) {
        if (i && w->known[i - 1].block < w->known[i].block)
            continue;
        if (runs && nr)
            runs[nr - 1].end = i;
        if (runs)
            runs[nr] = (struct known_run){i, w->nr_known, w->known[i].block};
        nr++;
    }
    return nr;
}

/* Rows of blocks that the disk delivered out of turn are put where they belong: whole
   rows, as no two overlap. */
static int
order_known(struct check *c)
{
    struct walk *w = &c->walk;
    size_t nr = find_runs(w, NULL), at = 0;
    AUTO_FREE struct known_run *runs = NULL;
    struct walk_known *ordered;

    if (nr < 2)
        return 0;
    runs = malloc(nr * sizeof(*runs));
    ordered = malloc(w->nr_known * sizeof(*ordered));
    if (!runs || !ordered) {
        free(ordered);
        return -ENOMEM;
    }
    find_runs(w, runs);
    qsort(runs, nr, sizeof(*runs), compare_runs);
    for (size_t i = 0; i < nr; i++) {
        size_t len = runs[i].end - runs[i].begin;

        memcpy(ordered + at, w->known + runs[i].begin, len * sizeof(*ordered));
        at += len;
    }
    free(w->known);
    w->known = ordered;
    c->room_known = w->nr_known;
    return 0;
}

int
check_sweep(struct check *c, mblock_t index_block, struct thin_error *err)
{
    mblock_t nr_blocks = c->res->metadata_blocks;
    AUTO_FREE uint8_t *bits = NULL;
    int r;

    if (!c->src->ops->read_from_disk)
        return 0;
    bits = calloc(nr_blocks / 8 + 1, 1); /* what lies beyond is never looked at */
    r = bits ? find_used(c->src, index_block, bits, nr_blocks) : -ENOMEM;
    if (r > 0)
        r = source_sweep(c->src, bits, nr_blocks, BLOCK_NODE, swept, c);
    if (r == 0)
        r = order_known(c);
    return r < 0 ? thin_fail_code(err, r, "read the metadata") : 0;
}

/* ---- what the walk did not come to ------------------------------------------------------- */

static int
unmet_seen(void *arg, size_t index, const uint8_t *data, int code)
{
    struct check *c = arg;
    struct counts *counts = &c->res->data;

    (void)index;
    if (!data || code < 0 || !is_good_leaf(c, data))
        return -EIO;
    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        dblock_t b = mapping_block(node_value64(data, i));

        if (!counts_get(counts, b))
            return -EIO;
        counts_dec(counts, b);
    }
    return 0;
}

int
check_sweep_settle(struct check *c, struct thin_error *err)
{
    AUTO_FREE mblock_t *blocks = NULL;
    size_t nr = 0;
    int r;

    for (size_t i = 0; i < c->walk.nr_known; i++) {
        const struct walk_known *k = &c->walk.known[i];

        if (k->met)
            c->res->nr_mappings += k->nr;
        else
            nr++;
    }
    if (!nr)
        return 0;
    blocks = malloc(nr * sizeof(*blocks));
    if (!blocks)
        return thin_fail_code(err, -ENOMEM, "check");
    nr = 0;
    for (size_t i = 0; i < c->walk.nr_known; i++)
        if (!c->walk.known[i].met)
            blocks[nr++] = c->walk.known[i].block;
    r = source_read_many(c->src, blocks, nr, BLOCK_NODE, unmet_seen, c);
    if (r == -EIO)
        return thin_fail(err, r,
                         "metadata blocks changed, or could not be read any more, while "
                         "they were checked");
    return r < 0 ? thin_fail_code(err, r, "check") : 0;
}

void
check_sweep_fini(struct check *c)
{
    source_forget(c->src);
    free(c->walk.known);
    c->walk.known = NULL;
    c->walk.nr_known = c->room_known = 0;
}
