/* The check of both space maps: their own structure, then every count. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/offline/check.h"

/* One bitmap as the index names it. */
struct map_bitmap {
    uint64_t k; /* its number: entries k * 16320 and on */
    struct index_entry entry;
};

struct map_check {
    struct check *c;
    enum report_place place;
    const char *unit;            /* "data" or "metadata" */
    const struct counts *wanted; /* what the walk counted; NULL: only the structure */
    uint64_t nr_blocks;
    struct map_bitmap *bitmaps;
    size_t nr_bitmaps, room;
    uint8_t **overflow; /* by bitmap: one bit for each entry in the overflow tree */
    uint64_t nr_overflow_chunks;
    uint64_t nr_used; /* bit pairs that are not 0 */
    bool whole;       /* structure and walk are good: what is not reached is leaked */
    /* The run of too high counts that is being put together. */
    uint64_t run_begin, run_end, nr_leaked;
    uint8_t expand[256][4]; /* four counts of a bitmap byte */
    uint32_t bytes[16];     /* the bytes of a word for four bits */
    bool final;             /* `wanted` will not change any more */
};

static int
map_init(struct map_check *m)
{
    for (unsigned byte = 0; byte < 256; byte++)
        for (unsigned i = 0; i < 4; i++) {
            unsigned pair = byte >> (2 * i) & 3u;

            m->expand[byte][i] = (uint8_t)((pair & 1u) << 1 | pair >> 1);
        }
    for (unsigned bits = 0; bits < 16; bits++) {
        uint8_t four[4];

        for (unsigned i = 0; i < 4; i++)
            four[i] = bits >> i & 1u ? 0xff : 0;
        m->bytes[bits] = load_le32(four);
    }
    m->nr_overflow_chunks = m->nr_blocks / BITMAP_ENTRIES + 1;
    m->overflow = calloc(m->nr_overflow_chunks, sizeof(*m->overflow));
    return m->overflow ? 0 : -ENOMEM;
}

static void
map_fini(struct map_check *m)
{
    for (uint64_t k = 0; m->overflow && k < m->nr_overflow_chunks; k++)
        free(m->overflow[k]);
    free(m->overflow);
    free(m->bitmaps);
}

/* ---- counts ---------------------------------------------------------------------------- */

static void
end_run(struct map_check *m)
{
    uint64_t n = m->run_end - m->run_begin;

    if (n == 0)
        return;
    if (n == 1)
        report_add(m->c->rep, REPORT_LEAK, m->place, m->run_begin,
                   "%s block %" PRIu64 " is counted more often than it is used", m->unit,
                   m->run_begin);
    else
        report_add(m->c->rep, REPORT_LEAK, m->place, m->run_begin,
                   "%s blocks %" PRIu64 " to %" PRIu64
                   " are counted more often than they are used",
                   m->unit, m->run_begin, m->run_end - 1);
    m->run_begin = m->run_end = 0;
}

static void
judge_count(struct map_check *m, uint64_t b, uint64_t found, uint64_t wanted)
{
    if (found == wanted)
        return;
    if (found < wanted) {
        report_add(m->c->rep, REPORT_DAMAGE, m->place, b,
                   "%s block %" PRIu64 " has a count of %" PRIu64 ", %" PRIu64
                   " pointers to it were found",
                   m->unit, b, found, wanted);
        return;
    }
    m->nr_leaked++;
    if (!m->whole)
        return;
    if (m->run_end != b) {
        end_run(m);
        m->run_begin = b;
    }
    m->run_end = b + 1;
}

/* The bitmap that the entry before belonged to: keys of one leaf rise. */
struct overflow_place {
    uint64_t begin; /* of bitmap k */
    uint64_t k;
    uint8_t *bits;
    const struct count_chunk *chunk;
};

static int
overflow_move(struct map_check *m, struct overflow_place *at, uint64_t b)
{
    at->k = b / BITMAP_ENTRIES;
    at->begin = at->k * BITMAP_ENTRIES;
    if (!m->overflow[at->k])
        m->overflow[at->k] = calloc(BITMAP_ENTRIES / 8, 1);
    at->bits = m->overflow[at->k];
    at->chunk = m->final ? m->wanted->chunk[at->k] : NULL;
    return at->bits ? 0 : -ENOMEM;
}

/* An entry of the overflow tree; keys come in any order of leaves. */
static int
overflow_entry(struct map_check *m, struct overflow_place *at, mblock_t node, uint64_t b,
               uint32_t count)
{
    uint32_t e;

    if (b >= m->nr_blocks) {
        report_add(m->c->rep, REPORT_DAMAGE, m->place, node,
                   "overflow node %" PRIu64 " counts %s block %" PRIu64
                   ", there are %" PRIu64,
                   node, m->unit, b, m->nr_blocks);
        return 0;
    }
    if (count < BITMAP_COUNT_OVERFLOW)
        report_add(m->c->rep, REPORT_DAMAGE, m->place, node,
                   "overflow node %" PRIu64 ": %s block %" PRIu64
                   " has a count of %" PRIu32 ", only 3 and more belong there",
                   node, m->unit, b, count);
    if ((!at->bits || b - at->begin >= BITMAP_ENTRIES) && overflow_move(m, at, b) < 0)
        return -ENOMEM;
    e = (uint32_t)(b - at->begin);
    at->bits[e / 8] |= (uint8_t)(1u << (e % 8));
    if (m->final)
        judge_count(m, b, count, count_chunk_get(at->chunk, e));
    return 0;
}

static int
overflow_leaf(void *arg, struct walk_node *node, const uint8_t *data)
{
    struct map_check *m = arg;
    struct overflow_place at = {0};
    uint32_t nr = node_nr_entries(data);

    for (uint32_t i = 0; i < nr; i++) {
        int r = overflow_entry(m, &at, node->block, node_key(data, i),
                               load_le32(node_value(data, i)));

        if (r < 0)
            return r;
    }
    return 0;
}

static int
overflow_again(void *arg, size_t index, const uint8_t *data, int code)
{
    struct map_check *m = arg;

    (void)index;
    /* What is damaged was told when it was read for the first time. */
    if (!data || code < 0 || node_judge(data, VALUE_SIZE_COUNT, NULL) < 0 ||
        !node_is_leaf(data))
        return 0;
    for (uint32_t e = 0, nr = node_nr_entries(data); e < nr; e++) {
        uint64_t b = node_key(data, e);

        if (b < m->nr_blocks)
            judge_count(m, b, load_le32(node_value(data, e)), counts_get(m->wanted, b));
    }
    return 0;
}

static int
compare_blocks(const void *pa, const void *pb)
{
    const mblock_t *a = pa, *b = pb;

    return (*a > *b) - (*a < *b);
}

/* The metadata's counts of 3 and more, once all trees have been walked, this one too. */
static int
overflow_compare(struct map_check *m)
{
    struct walk *w = &m->c->walk;
    AUTO_FREE mblock_t *blocks = malloc((w->nr_nodes + 1) * sizeof(*blocks));
    size_t nr = 0;
    int r;

    if (!blocks)
        return -ENOMEM;
    for (uint32_t i = 0; i < w->nr_nodes; i++) {
        const struct walk_node *node = &w->nodes[i];

        if (node->tree == WALK_METADATA_COUNTS && !node->height &&
            !(node->flags & WALK_DAMAGED))
            blocks[nr++] = node->block;
    }
    qsort(blocks, nr, sizeof(*blocks), compare_blocks);
    r = source_read_many(m->c->src, blocks, nr, BLOCK_NODE, overflow_again, m);
    end_run(m);
    return r;
}

/* ---- bitmaps ------------------------------------------------------------------------------ */

static bool
in_overflow(const struct map_check *m, uint64_t k, uint32_t e)
{
    return m->overflow[k] && (m->overflow[k][e / 8] >> (e % 8) & 1u);
}

static void
judge_entry(struct map_check *m, uint64_t k, uint32_t e, unsigned pair)
{
    const struct count_chunk *chunk =
        m->wanted && k < m->wanted->nr_chunks ? m->wanted->chunk[k] : NULL;
    uint64_t b = k * BITMAP_ENTRIES + e;
    bool over = in_overflow(m, k, e);

    if (pair == BITMAP_COUNT_OVERFLOW) {
        /* With an entry its count has been compared already. */
        if (!over) {
            report_add(m->c->rep, REPORT_DAMAGE, m->place, b,
                       "%s block %" PRIu64
                       " has a count over 2 by its bitmap, and no entry in the "
                       "overflow tree",
                       m->unit, b);
        }
        return;
    }
    if (over) {
        report_add(m->c->rep, REPORT_DAMAGE, m->place, b,
                   "%s block %" PRIu64
                   " has a count of %u by its bitmap, and an entry in the overflow tree",
                   m->unit, b, pair);
        return;
    }
    if (m->wanted)
        judge_count(m, b, pair, count_chunk_get(chunk, e));
}

static const uint8_t no_counts[4];

/* The four entries of one byte are as they should be: equal, or in the overflow tree, where
   they were compared. */
static bool
four_agree(const struct map_check *m, const struct count_chunk *chunk, uint64_t k,
           uint32_t i, unsigned byte)
{
    const uint8_t *low = chunk ? chunk->low + 4 * (size_t)i : no_counts;
    unsigned threes = byte & byte >> 1 & 0x55u;
    unsigned over = m->overflow[k] ? m->overflow[k][i / 2] >> 4 * (i % 2) & 15u : 0;

    threes = (threes | threes >> 1) & 0x33u;
    threes = (threes | threes >> 2) & 0x0fu;
    if (threes != over ||
        ((load_le32(m->expand[byte]) ^ load_le32(low)) & ~m->bytes[threes]))
        return false;
    if (chunk && chunk->carry)
        for (unsigned j = 0; j < 4; j++)
            if (chunk->carry[4 * i + j] && !(threes >> j & 1u))
                return false;
    return true;
}

#define EVERY_PAIR 0x5555555555555555u

/*
 * How many entries from the first on, in 32s, are as the counts say, with counts of 0 to 2
 * only: nearly always all. Eight bytes of the bitmap are spread over 32 counts.
 */
static uint32_t
plain_entries(const uint8_t *body, const struct count_chunk *chunk, uint32_t end)
{
    uint32_t e = 0;

    for (; e + 32 <= end; e += 32) {
        uint64_t pairs = load_le64(body + e / 4), differ = 0;

        if (pairs & pairs >> 1 & EVERY_PAIR)
            break;
        if (!chunk && pairs)
            break;
        if (!chunk)
            continue;
        /* The higher bit of a pair comes first. */
        pairs = (pairs >> 1 & EVERY_PAIR) | (pairs & EVERY_PAIR) << 1;
        for (unsigned i = 0; i < 4; i++) {
            uint64_t x = pairs >> 16 * i & 0xffffu;

            x = (x | x << 24) & 0x000000ff000000ffu;
            x = (x | x << 12) & 0x000f000f000f000fu;
            x = (x | x << 6) & 0x0303030303030303u;
            differ |= x ^ load_le64(chunk->low + e + 8 * (size_t)i);
        }
        if (differ)
            break;
    }
    return e;
}

/* All entries of bitmap k below `end`. */
static void
compare_entries(struct map_check *m, const uint8_t *body, uint64_t k, uint32_t end)
{
    const struct count_chunk *chunk =
        m->wanted && k < m->wanted->nr_chunks ? m->wanted->chunk[k] : NULL;

    bool plain = m->wanted && !m->overflow[k] && !(chunk && chunk->carry);

    for (uint32_t i = plain ? plain_entries(body, chunk, end) / 4 : 0; i < (end + 3) / 4;
         i++) {
        const uint8_t *low = chunk ? chunk->low + 4 * (size_t)i : no_counts;
        unsigned byte = body[i];

        /* Most bitmaps have counts of 0 to 2 only: four at once. */
        if (plain && load_le32(m->expand[byte]) == load_le32(low) &&
            !(byte & byte >> 1 & 0x55u))
            continue;
        if (m->wanted && four_agree(m, chunk, k, i, byte))
            continue;
        for (uint32_t e = 4 * i; e < 4 * i + 4 && e < end; e++)
            judge_entry(m, k, e, m->expand[byte][e % 4]);
    }
}

/* nr_free and none_free_before; both conventions for the last bitmap are right. */
static void
judge_hints(struct map_check *m, const struct map_bitmap *bm, const uint8_t *data,
            uint32_t end, uint32_t free_all, uint32_t free_below)
{
    uint32_t first = bitmap_find_free(data, 0, end);
    const struct index_entry *e = &bm->entry;
    /* thin_restore 0.9 leaves one block too many counted as used in this map. */
    bool tools_quirk = m->place == REPORT_AT_METADATA_SM &&
                       (e->nr_free + 1 == free_all || e->nr_free + 1 == free_below);

    if (e->nr_free != free_all && e->nr_free != free_below) {
        report_add(m->c->rep, tools_quirk ? REPORT_NOTE : REPORT_DAMAGE, m->place,
                   e->blocknr,
                   "bitmap %" PRIu64 " (block %" PRIu64 "): %" PRIu32
                   " free entries are recorded, it has %" PRIu32,
                   bm->k, e->blocknr, e->nr_free, free_all);
    }
    if (e->none_free_before > first && first < end) {
        report_add(m->c->rep, tools_quirk ? REPORT_NOTE : REPORT_DAMAGE, m->place,
                   e->blocknr,
                   "bitmap %" PRIu64 " (block %" PRIu64 "): entry %" PRIu32
                   " is free, none is said to be before %" PRIu32,
                   bm->k, e->blocknr, first, e->none_free_before);
    }
}

static int
bitmap_seen(void *arg, size_t index, const uint8_t *data, int code)
{
    struct map_check *m = arg;
    const struct map_bitmap *bm = &m->bitmaps[index];
    uint64_t first = bm->k * BITMAP_ENTRIES;
    uint32_t end = (uint32_t)min_u64(m->nr_blocks - first, BITMAP_ENTRIES);
    uint32_t free_all, free_below;
    struct thin_error err;
    int r = code;

    thin_error_init(&err);
    if (data && code < 0) /* once more, for the words */
        r = block_check(BLOCK_BITMAP, data, bm->entry.blocknr, &err);
    if (r < 0 || !data) {
        report_add(m->c->rep, REPORT_DAMAGE, m->place, bm->entry.blocknr,
                   "bitmap of %s blocks %" PRIu64 " to %" PRIu64 ": %s", m->unit, first,
                   first + end - 1, thin_error_text(&err, r));
        m->whole = false;
        return 0;
    }
    free_all = bitmap_count_free(data, BITMAP_ENTRIES);
    free_below = end == BITMAP_ENTRIES ? free_all : bitmap_count_free(data, end);
    m->nr_used += BITMAP_ENTRIES - free_all;
    compare_entries(m, data + BITMAP_HEADER_BYTES, bm->k, end);
    if (free_all - free_below != BITMAP_ENTRIES - end) {
        report_add(m->c->rep, REPORT_DAMAGE, m->place, bm->entry.blocknr,
                   "bitmap %" PRIu64 " (block %" PRIu64
                   ") has counts beyond the last of %" PRIu64 " blocks",
                   bm->k, bm->entry.blocknr, m->nr_blocks);
    }
    judge_hints(m, bm, data, end, free_all, free_below);
    return 0;
}

static int
compare_bitmap_blocks(const void *pa, const void *pb)
{
    const struct map_bitmap *a = pa, *b = pb;

    if (a->entry.blocknr != b->entry.blocknr)
        return (a->entry.blocknr > b->entry.blocknr) -
               (a->entry.blocknr < b->entry.blocknr);
    return (a->k > b->k) - (a->k < b->k);
}

/* Reads all bitmaps in block order; one that is named twice is read twice. */
static int
read_bitmaps(struct map_check *m)
{
    AUTO_FREE mblock_t *blocks = NULL;
    int r = 0;

    if (!m->nr_bitmaps)
        return 0;
    blocks = malloc(m->nr_bitmaps * sizeof(*blocks));
    if (!blocks)
        return -ENOMEM;
    qsort(m->bitmaps, m->nr_bitmaps, sizeof(*m->bitmaps), compare_bitmap_blocks);
    for (size_t i = 0; i < m->nr_bitmaps; i++)
        blocks[i] = m->bitmaps[i].entry.blocknr;
    r = source_read_many(m->c->src, blocks, m->nr_bitmaps, BLOCK_BITMAP, bitmap_seen, m);
    end_run(m);
    return r;
}

static int
add_bitmap(struct map_check *m, uint64_t k, const struct index_entry *entry)
{
    if (m->nr_bitmaps == m->room) {
        size_t room = m->room ? m->room * 2 : 64;
        struct map_bitmap *bigger = realloc(m->bitmaps, room * sizeof(*bigger));

        if (!bigger)
            return -ENOMEM;
        m->bitmaps = bigger;
        m->room = room;
    }
    m->bitmaps[m->nr_bitmaps++] = (struct map_bitmap){k, *entry};
    return 0;
}

static void
judge_root(struct map_check *m, const struct space_map_root *root)
{
    struct check *c = m->c;

    if (root->nr_allocated == m->nr_used)
        return;
    if (m->place == REPORT_AT_METADATA_SM && root->nr_allocated == m->nr_used + 1) {
        report_add(c->rep, REPORT_NOTE, m->place, 0,
                   "%s space map: %" PRIu64 " blocks are recorded as allocated, %" PRIu64
                   " are (thin_restore leaves it so)",
                   m->unit, root->nr_allocated, m->nr_used);
        return;
    }
    report_add(c->rep, REPORT_DAMAGE, m->place, 0,
               "%s space map: %" PRIu64 " blocks are recorded as allocated, %" PRIu64
               " are",
               m->unit, root->nr_allocated, m->nr_used);
}

/* ---- the data space map -------------------------------------------------------------------- */

static int
index_leaf(void *arg, struct walk_node *node, const uint8_t *data)
{
    struct map_check *m = arg;
    uint64_t nr_wanted = div_up_u64(m->nr_blocks, BITMAP_ENTRIES);

    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        struct index_entry entry;
        uint64_t k = node_key(data, i);
        int r;

        index_entry_decode(&entry, node_value(data, i));
        if (k >= nr_wanted) {
            report_add(m->c->rep, REPORT_DAMAGE, m->place, node->block,
                       "index node %" PRIu64 ": bitmap %" PRIu64
                       ", there should be %" PRIu64,
                       node->block, k, nr_wanted);
            continue;
        }
        if (!walk_count_block(&m->c->walk, entry.blocknr, m->place, "bitmap"))
            continue;
        r = add_bitmap(m, k, &entry);
        if (r < 0)
            return r;
    }
    return 0;
}

static void
judge_bitmap_number(struct map_check *m, bool index_whole)
{
    uint64_t nr_wanted = div_up_u64(m->nr_blocks, BITMAP_ENTRIES);

    if (m->nr_bitmaps == nr_wanted)
        return;
    m->whole = false;
    if (index_whole)
        report_add(m->c->rep, REPORT_DAMAGE, m->place, 0,
                   "%s space map has %zu bitmaps, %" PRIu64 " blocks need %" PRIu64,
                   m->unit, m->nr_bitmaps, m->nr_blocks, nr_wanted);
}

int
check_data_space_map(struct check *c)
{
    const struct space_map_root *root = &c->res->sb.data_sm;
    struct map_check m = {.c = c,
                          .place = REPORT_AT_DATA_SM,
                          .unit = "data",
                          .wanted = c->opts->skip_mappings ? NULL : &c->res->data,
                          .nr_blocks = c->nr_data,
                          .final = !c->opts->skip_mappings,
                          .whole = !c->walk.nr_damaged};
    struct walk_root index_root = {root->bitmap_root, 0};
    struct walk_root count_root = {root->ref_count_root, 0};
    uint64_t damaged = c->walk.nr_damaged;
    int r = map_init(&m);

    if (r >= 0)
        r = walk_trees(&c->walk, WALK_DATA_INDEX, &index_root, 1, index_leaf, &m);
    judge_bitmap_number(&m, c->walk.nr_damaged == damaged);
    damaged = c->walk.nr_damaged;
    if (r >= 0)
        r = walk_trees(&c->walk, WALK_DATA_COUNTS, &count_root, 1, overflow_leaf, &m);
    if (c->walk.nr_damaged != damaged)
        m.whole = false;
    end_run(&m);
    if (r >= 0)
        r = read_bitmaps(&m);
    if (r >= 0 && m.nr_bitmaps == div_up_u64(m.nr_blocks, BITMAP_ENTRIES) && m.whole)
        judge_root(&m, root);
    c->res->data_used = m.nr_used;
    *(m.whole ? &c->res->leaked_data : &c->res->unreached_data) = m.nr_leaked;
    map_fini(&m);
    return r;
}

/* ---- the metadata space map ------------------------------------------------------------------- */

static int
read_index_block(struct map_check *m, mblock_t where)
{
    AUTO_FREE uint8_t *data = malloc(METADATA_BLOCK_SIZE);
    uint64_t nr_wanted = div_up_u64(m->nr_blocks, BITMAP_ENTRIES);
    struct thin_error err;
    int r;

    if (!data)
        return -ENOMEM;
    if (!walk_count_block(&m->c->walk, where, m->place, "index block"))
        return 0;
    thin_error_init(&err);
    r = source_read(m->c->src, where, data, &err);
    if (r == 0)
        r = block_check(BLOCK_INDEX, data, where, &err);
    if (r < 0) {
        report_add(m->c->rep, REPORT_DAMAGE, m->place, where,
                   "index block of the metadata space map: %s", thin_error_text(&err, r));
        m->whole = false;
        return 0;
    }
    for (uint32_t k = 0; k < INDEX_BLOCK_ENTRIES; k++) {
        struct index_entry entry;

        index_entry_decode(&entry, index_block_entry_ro(data, k));
        if (k >= nr_wanted) {
            if (entry.blocknr)
                report_add(m->c->rep, REPORT_DAMAGE, m->place, where,
                           "index block %" PRIu64 ": bitmap %" PRIu32
                           ", there should be %" PRIu64,
                           where, k, nr_wanted);
            continue;
        }
        if (!walk_count_block(&m->c->walk, entry.blocknr, m->place, "bitmap"))
            continue;
        r = add_bitmap(m, k, &entry);
        if (r < 0)
            return r;
    }
    return 0;
}

int
check_metadata_space_map(struct check *c)
{
    const struct space_map_root *root = &c->res->sb.metadata_sm;
    struct map_check m = {.c = c,
                          .place = REPORT_AT_METADATA_SM,
                          .unit = "metadata",
                          .wanted = c->opts->skip_mappings ? NULL : &c->walk.refs,
                          .nr_blocks = c->res->metadata_blocks,
                          .whole = true};
    struct walk_root count_root = {root->ref_count_root, 0};
    int r = map_init(&m);

    if (r >= 0)
        r = read_index_block(&m, root->bitmap_root);
    judge_bitmap_number(&m, m.whole);
    if (r >= 0)
        r = walk_trees(&c->walk, WALK_METADATA_COUNTS, &count_root, 1, overflow_leaf, &m);
    /* Whatever could not be read may hold pointers to what is counted. */
    if (c->walk.nr_damaged)
        m.whole = false;
    if (r >= 0 && m.wanted)
        r = overflow_compare(&m);
    if (r >= 0)
        r = read_bitmaps(&m);
    if (r >= 0 && m.nr_bitmaps == div_up_u64(m.nr_blocks, BITMAP_ENTRIES) && m.whole)
        judge_root(&m, root);
    c->res->metadata_used = m.nr_used;
    *(m.whole ? &c->res->leaked_metadata : &c->res->unreached_metadata) = m.nr_leaked;
    map_fini(&m);
    return r;
}
