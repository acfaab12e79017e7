#include "core/offline/scan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/ondisk/bitmap.h"
#include "core/ondisk/details.h"
#include "core/ondisk/mapping.h"
#include "core/ondisk/node.h"
#include "core/ondisk/superblock.h"

#define DEPTH_MAX  12u
#define BATCH      512u /* blocks asked for at once: 2 MiB */
#define TOTAL_BUSY (UINT64_MAX - 1)

/* Values of the top level name metadata blocks: shifted as a mapping's are, they are 0. */
static void
note_times(struct scan_block *s, const uint8_t *data)
{
    for (uint32_t i = 0; i < s->nr; i++) {
        uint64_t value = node_value64(data, i);
        uint32_t time = mapping_time(value);

        if (mapping_block(value) == 0 || time < s->time)
            continue;
        if (time > s->time)
            s->nr_at_time = 0;
        s->time = time;
        s->nr_at_time++;
    }
}

static void
note_node(struct scan_block *s, const uint8_t *data)
{
    bool details = node_value_size(data) == VALUE_SIZE_DETAILS;
    uint32_t nr = node_nr_entries(data);

    if (node_judge(data, details ? VALUE_SIZE_DETAILS : VALUE_SIZE_MAPPING, NULL) < 0)
        return;
    s->kind = !node_is_leaf(data) ? SCAN_INTERNAL : details ? SCAN_DETAILS : SCAN_LEAF;
    s->nr = (uint16_t)nr;
    if (nr) {
        s->first = node_key(data, 0);
        s->last = node_key(data, nr - 1);
    }
    if (s->kind == SCAN_LEAF) {
        s->total = nr;
        note_times(s, data);
    }
}

struct pass {
    struct scan *scan;
    const mblock_t *blocks;
};

static int
node_seen(void *arg, size_t index, const uint8_t *data, int code)
{
    struct pass *p = arg;
    mblock_t b = p->blocks[index];
    struct scan_block *s = &p->scan->blocks[b];
    enum block_kind kind;

    (void)code;
    s->total = SCAN_UNKNOWN;
    /* Blocks that were never used are most of them: a look saves the checksum. */
    if (!data || (load_le64(data) == 0 && load_le64(data + 8) == 0))
        return 0;
    if (superblock_is_thin(data) && block_guess_kind(data, &kind) &&
        kind == BLOCK_SUPERBLOCK)
        s->kind = SCAN_SUPERBLOCK;
    else if (block_check(BLOCK_NODE, data, b, NULL) == 0)
        note_node(s, data);
    else if (block_check(BLOCK_BITMAP, data, b, NULL) == 0)
        s->kind = SCAN_MAP;
    else if (block_check(BLOCK_INDEX, data, b, NULL) == 0) {
        s->kind = SCAN_MAP;
        if (p->scan->nr_indexes < SCAN_INDEXES_MAX)
            p->scan->indexes[p->scan->nr_indexes++] = b;
    }
    return 0;
}

static int
read_all(struct scan *scan)
{
    mblock_t blocks[BATCH];
    int r = 0;

    for (mblock_t b = 0; b < scan->nr_blocks && r >= 0; b += BATCH) {
        struct pass p = {scan, blocks};
        size_t n = 0;

        while (n < BATCH && b + n < scan->nr_blocks) {
            blocks[n] = b + n;
            n++;
        }
        r = source_tick(scan->src, "metadata blocks scanned", b, scan->nr_blocks);
        if (r >= 0)
            r = source_read_many(scan->src, blocks, n, BLOCK_KINDS, node_seen, &p);
    }
    return r;
}

/* ---- who points to whom --------------------------------------------------------------- */

/* A leaf whose values all name nodes is one of the top level, or looks just like it. */
static bool
looks_like_top(const struct scan *scan, const uint8_t *data)
{
    uint32_t nr = node_nr_entries(data);

    if (!nr || node_key(data, nr - 1) > DEV_ID_MAX)
        return false;
    for (uint32_t i = 0; i < nr; i++) {
        uint64_t v = node_value64(data, i);

        if (v == 0 || v >= scan->nr_blocks)
            return false;
    }
    /* Some of the roots may be what is damaged, but not all. */
    for (uint32_t i = 0; i < nr; i++) {
        uint8_t kind = scan->blocks[node_value64(data, i)].kind;

        if (kind == SCAN_INTERNAL || kind == SCAN_LEAF)
            return true;
    }
    return false;
}

static int
pointers_seen(void *arg, size_t index, const uint8_t *data, int code)
{
    struct pass *p = arg;
    struct scan *scan = p->scan;
    struct scan_block *s = &scan->blocks[p->blocks[index]];

    (void)code;
    if (!data)
        return 0;
    if (s->kind == SCAN_LEAF && s->last <= DEV_ID_MAX && looks_like_top(scan, data))
        s->flags |= SCAN_TOP;
    if (s->kind != SCAN_INTERNAL && !(s->flags & SCAN_TOP))
        return 0;
    /* What is not in use any more does not count as a parent. */
    if (scan->counts_known && !(s->flags & SCAN_LIVE))
        return 0;
    for (uint32_t i = 0; i < s->nr; i++) {
        uint64_t v = node_value64(data, i);

        if (v < scan->nr_blocks)
            scan->blocks[v].flags |= SCAN_REFERENCED;
    }
    return 0;
}

static int
read_pointers(struct scan *scan)
{
    mblock_t blocks[BATCH];
    struct pass p = {scan, blocks};
    size_t n = 0;
    int r = 0;

    for (mblock_t b = 0; b < scan->nr_blocks && r >= 0; b++) {
        const struct scan_block *s = &scan->blocks[b];

        if (s->kind == SCAN_INTERNAL || (s->kind == SCAN_LEAF && s->nr))
            blocks[n++] = b;
        if (n == BATCH || (n && b + 1 == scan->nr_blocks)) {
            r = source_read_many(scan->src, blocks, n, BLOCK_KINDS, pointers_seen, &p);
            n = 0;
        }
    }
    return r;
}

/* ---- what is in use -------------------------------------------------------------------- */

/*
 * Sets SCAN_LIVE by one index block; *ret_good if that names itself, and one of its
 * bitmaps at least could be read. Where a bitmap is lost every block may be in use: it
 * counts as such with `unknown_live`.
 */
static int
read_counts(struct scan *scan, mblock_t index_block, bool unknown_live, bool *ret_good)
{
    AUTO_FREE uint8_t *index = malloc(METADATA_BLOCK_SIZE);
    AUTO_FREE uint8_t *bitmap = malloc(METADATA_BLOCK_SIZE);
    bool known = false, own_known = false;
    unsigned nr_known = 0;

    *ret_good = false;
    if (!index || !bitmap)
        return -ENOMEM;
    for (mblock_t b = 0; b < scan->nr_blocks; b++)
        scan->blocks[b].flags &= (uint8_t)~SCAN_LIVE;
    if (!index_block || index_block >= scan->nr_blocks ||
        source_read(scan->src, index_block, index, NULL) < 0 ||
        block_check(BLOCK_INDEX, index, index_block, NULL) < 0)
        return 0;
    for (mblock_t b = 0; b < scan->nr_blocks; b++) {
        uint32_t k = (uint32_t)(b / BITMAP_ENTRIES);
        struct index_entry e;

        if (k >= INDEX_BLOCK_ENTRIES)
            break;
        if (b % BITMAP_ENTRIES == 0) {
            index_entry_decode(&e, index_block_entry_ro(index, k));
            /* The device may be larger than the map: the rest was never used. */
            if (e.blocknr == 0 && k > 0)
                break;
            known = source_read(scan->src, e.blocknr, bitmap, NULL) == 0 &&
                    block_check(BLOCK_BITMAP, bitmap, e.blocknr, NULL) == 0;
            nr_known += known;
        }
        if (known ? bitmap_get(bitmap, (uint32_t)(b % BITMAP_ENTRIES)) != 0
                  : unknown_live)
            scan->blocks[b].flags |= SCAN_LIVE;
        if (b == index_block)
            own_known = known;
    }
    *ret_good = nr_known && (!own_known || (scan->blocks[index_block].flags & SCAN_LIVE));
    return 0;
}

bool
scan_is_later(const struct scan_age *a, const struct scan_age *b)
{
    if (a->time != b->time)
        return a->time > b->time;
    if (a->trans_id != b->trans_id)
        return a->trans_id > b->trans_id;
    if (a->mapping_time != b->mapping_time)
        return a->mapping_time > b->mapping_time;
    if (a->nr_at_time != b->nr_at_time)
        return a->nr_at_time > b->nr_at_time;
    return a->mapped != b->mapped ? a->mapped > b->mapped : a->nodes > b->nodes;
}

static void
score_details(struct scan *scan, mblock_t b, uint8_t *data, struct scan_age *score)
{
    if (source_read(scan->src, b, data, NULL) < 0 ||
        block_check(BLOCK_NODE, data, b, NULL) < 0 ||
        node_judge(data, VALUE_SIZE_DETAILS, NULL) < 0)
        return;
    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        struct device_details d;

        device_details_decode(&d, node_value(data, i));
        score->time = max_u64(score->time, d.snapshotted_time);
        score->trans_id = max_u64(score->trans_id, d.transaction_id);
        score->mapped += d.mapped_blocks;
    }
}

static int
score_index(struct scan *scan, struct scan_age *score)
{
    AUTO_FREE uint8_t *data = malloc(METADATA_BLOCK_SIZE);

    if (!data)
        return -ENOMEM;
    memset(score, 0, sizeof(*score));
    for (mblock_t b = 0; b < scan->nr_blocks; b++) {
        const struct scan_block *s = &scan->blocks[b];

        if (!(s->flags & SCAN_LIVE))
            continue;
        score->nodes += s->kind == SCAN_NOTHING ? -1 : 1;
        if (s->kind == SCAN_LEAF && s->time > score->mapping_time) {
            score->mapping_time = s->time;
            score->nr_at_time = 0;
        }
        if (s->kind == SCAN_LEAF && s->time == score->mapping_time)
            score->nr_at_time += s->nr_at_time;
        if (s->kind == SCAN_DETAILS)
            score_details(scan, b, data, score);
    }
    return 0;
}

/*
 * Blocks are handed out in rising order, round the device, and the index block last in each
 * commit, but for the bitmaps. So of two states that follow one another, with index blocks
 * A and B, all that is in use in the second only lies after A, up to B and few more. Where the next index block, in rising
 * order and round the end, does not follow in this sense, it is of a lap before: the state
 * it was compared with is the last one.
 */
struct lap {
    struct scan *scan;
    uint8_t *first, *before, *now; /* what is in use: a bit for each block */
    mblock_t first_index, before_index, chosen;
    struct scan_age before_age, best;
    unsigned nr_ends;
    bool any;
};

static void
note_live(const struct scan *scan, uint8_t *bits)
{
    memset(bits, 0, scan->nr_blocks / 8 + 1);
    for (mblock_t b = 0; b < scan->nr_blocks; b++)
        bits[b / 8] |= (uint8_t)((scan->blocks[b].flags & SCAN_LIVE ? 1u : 0) << (b % 8));
}

static bool
follows(const struct scan *scan, const uint8_t *before, mblock_t a, const uint8_t *now,
        mblock_t b)
{
    uint64_t nr = scan->nr_blocks;
    uint64_t reach = (b + nr - a) % nr + div_up_u64(nr, BITMAP_ENTRIES);

    for (mblock_t byte = 0; byte <= nr / 8; byte++) {
        unsigned fresh = now[byte] & ~(unsigned)before[byte];

        for (mblock_t i = 8 * byte; fresh; i++, fresh >>= 1)
            if ((fresh & 1u) && (i + nr - a) % nr > reach)
                return false;
    }
    return true;
}

/* The state before is one after which the order breaks off. */
static void
note_end(struct lap *lap)
{
    if (!lap->nr_ends++ || scan_is_later(&lap->before_age, &lap->best)) {
        lap->chosen = lap->before_index;
        lap->best = lap->before_age;
    }
}

/* With SCAN_LIVE of `index`, in rising order of these. */
static int
weigh_index(struct lap *lap, mblock_t index)
{
    struct scan_age age = {0};
    uint8_t *swap;
    int r = score_index(lap->scan, &age);

    if (r < 0)
        return r;
    note_live(lap->scan, lap->now);
    if (!lap->any) {
        memcpy(lap->first, lap->now, lap->scan->nr_blocks / 8 + 1);
        lap->first_index = index;
    } else if (!follows(lap->scan, lap->before, lap->before_index, lap->now, index)) {
        note_end(lap);
    }
    swap = lap->before;
    lap->before = lap->now;
    lap->now = swap;
    lap->before_index = index;
    lap->before_age = age;
    lap->any = true;
    return 0;
}

static int
weigh_indexes(struct lap *lap)
{
    struct scan *scan = lap->scan;
    uint64_t most = SCAN_WEIGHED_MAX / (scan->nr_blocks + 1);
    int r = 0;

    for (unsigned i = 0; i < scan->nr_indexes && i <= most && r >= 0; i++) {
        bool good = false;

        r = source_tick(scan->src, NULL, 0, 0);
        if (r >= 0)
            r = read_counts(scan, scan->indexes[i], false, &good);
        if (r >= 0 && good)
            r = weigh_index(lap, scan->indexes[i]);
    }
    if (r < 0 || !lap->any)
        return r;
    /* And round the end; an order that never breaks off has not come so far. */
    if (!follows(scan, lap->before, lap->before_index, lap->first, lap->first_index) ||
        !lap->nr_ends)
        note_end(lap);
    return 0;
}

static int
choose_counts(struct scan *scan, mblock_t named)
{
    size_t len = scan->nr_blocks / 8 + 1;
    struct lap lap = {.scan = scan};
    uint8_t *bits;
    int r = read_counts(scan, named, true, &scan->counts_known);

    if (r < 0 || scan->counts_known)
        return r;
    bits = malloc(3 * len);
    if (!bits)
        return -ENOMEM;
    lap.first = bits;
    lap.before = bits + len;
    lap.now = bits + 2 * len;
    r = weigh_indexes(&lap);
    free(bits);
    return r < 0 ? r : read_counts(scan, lap.chosen, true, &scan->counts_known);
}

int
scan_run(struct scan *scan, struct meta_source *src, mblock_t nr_blocks,
         mblock_t index_block)
{
    int r;

    memset(scan, 0, sizeof(*scan));
    scan->src = src;
    scan->nr_blocks = nr_blocks;
    scan->blocks = calloc(nr_blocks + 1, sizeof(*scan->blocks));
    scan->indexes = calloc(SCAN_INDEXES_MAX, sizeof(*scan->indexes));
    if (!scan->blocks || !scan->indexes)
        return -ENOMEM;
    r = read_all(scan);
    if (r >= 0)
        r = choose_counts(scan, index_block);
    return r < 0 ? r : read_pointers(scan);
}

void
scan_fini(struct scan *scan)
{
    free(scan->blocks);
    free(scan->indexes);
    memset(scan, 0, sizeof(*scan));
}

/* ---- totals ------------------------------------------------------------------------------- */

static void
add_times(struct scan_block *s, const struct scan_block *below)
{
    if (below->time < s->time || !below->nr_at_time)
        return;
    if (below->time > s->time)
        s->nr_at_time = 0;
    s->time = below->time;
    s->nr_at_time = (uint16_t)min_u64(s->nr_at_time + below->nr_at_time, UINT16_MAX);
}

static uint64_t
total_below(struct scan *scan, mblock_t b, unsigned depth)
{
    AUTO_FREE uint8_t *data = NULL;
    struct scan_block *s;
    uint64_t total = 0;

    if (b >= scan->nr_blocks || depth > DEPTH_MAX)
        return 0;
    s = &scan->blocks[b];
    if (s->kind != SCAN_INTERNAL)
        return s->kind == SCAN_LEAF ? s->total : 0;
    if (s->total == TOTAL_BUSY)
        return 0; /* a cycle */
    if (s->total != SCAN_UNKNOWN)
        return s->total;
    data = malloc(METADATA_BLOCK_SIZE);
    if (!data || source_read(scan->src, b, data, NULL) < 0 ||
        block_check(BLOCK_NODE, data, b, NULL) < 0 ||
        node_judge(data, VALUE_SIZE_MAPPING, NULL) < 0)
        return 0;
    s->total = TOTAL_BUSY;
    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        mblock_t below = node_value64(data, i);

        total += total_below(scan, below, depth + 1);
        if (below < scan->nr_blocks)
            add_times(s, &scan->blocks[below]);
    }
    s->total = total;
    return total;
}

uint64_t
scan_total(struct scan *scan, mblock_t b)
{
    return total_below(scan, b, 0);
}

struct scan_age
scan_age_of_root(struct scan *scan, mblock_t root)
{
    const struct scan_block *s = &scan->blocks[root];

    (void)scan_total(scan, root);
    return (struct scan_age){.mapping_time = s->time, .nr_at_time = s->nr_at_time};
}
