#include "tests/lib/recount.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/ondisk/bitmap.h"
#include "core/ondisk/mapping.h"
#include "core/ondisk/node.h"

#define DEPTH_MAX 24u

/* Which tree, for value size and for what its values refer to. */
enum tree_kind { TREE_TOP, TREE_BOTTOM, TREE_DETAILS, TREE_INDEX, TREE_COUNTS };

static const uint32_t value_sizes[] = {
    [TREE_TOP] = VALUE_SIZE_MAPPING,     [TREE_BOTTOM] = VALUE_SIZE_MAPPING,
    [TREE_DETAILS] = VALUE_SIZE_DETAILS, [TREE_INDEX] = VALUE_SIZE_INDEX,
    [TREE_COUNTS] = VALUE_SIZE_COUNT,
};

/* One space map: what should be, and what is stored. */
struct map {
    uint64_t nr;
    uint32_t *wanted, *stored;
};

struct walk {
    const struct recount_source *source;
    struct recount *ret;
    struct map metadata, data;
};

/* One tree's walk. */
struct tree {
    struct walk *w;
    enum tree_kind kind;
    bool count; /* pointers are counted (and a node seen before is not entered again) */
    int leaf_depth;
    int (*entry)(void *arg, uint64_t key, const uint8_t *value);
    void *arg;
};

static int wrong(struct walk *w, const char *fmt, ...) PRINTF_LIKE(2, 3);

static int
wrong(struct walk *w, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(w->ret->why, sizeof(w->ret->why), fmt, ap);
    va_end(ap);
    return -1;
}

static void *
must_calloc(uint64_t nr, size_t size)
{
    void *p = calloc(nr ? nr : 1, size);

    if (!p)
        abort();
    return p;
}

static const uint8_t *
read_block(struct walk *w, enum block_kind kind, mblock_t b)
{
    struct thin_error err;
    const uint8_t *page;

    if (b >= w->source->size / METADATA_BLOCK_SIZE ||
        (w->metadata.nr && b >= w->metadata.nr)) {
        wrong(w, "pointer to block %" PRIu64 " beyond the end", b);
        return NULL;
    }
    page = w->source->page(w->source->arg, b);
    if (!page) {
        wrong(w, "block %" PRIu64 " was never written", b);
        return NULL;
    }
    thin_error_init(&err);
    if (block_check(kind, page, b, &err) < 0) {
        wrong(w, "%s", thin_error_text(&err, 0));
        return NULL;
    }
    return page;
}

static int
walk_node(struct tree *t, mblock_t b, unsigned depth, bool is_root, uint64_t low,
          uint64_t high)
{
    struct walk *w = t->w;
    const uint8_t *node = read_block(w, BLOCK_NODE, b);
    struct thin_error err;
    uint32_t nr;

    if (!node)
        return -1;
    if (t->count && w->metadata.wanted[b]++ > 0)
        return 0;
    thin_error_init(&err);
    if (node_judge(node, value_sizes[t->kind], &err) < 0)
        return wrong(w, "%s", thin_error_text(&err, 0));
    if (depth > DEPTH_MAX)
        return wrong(w, "tree deeper than %u at block %" PRIu64, DEPTH_MAX, b);
    nr = node_nr_entries(node);
    if (!is_root && nr < node_max_entries(node) / 3)
        return wrong(w, "I4: block %" PRIu64 " has %u of %u entries", b, nr,
                     node_max_entries(node));
    if (nr && (node_key(node, 0) < low || node_key(node, nr - 1) > high))
        return wrong(w, "I3: block %" PRIu64 " holds keys outside its parent's range", b);
    if (t->count)
        w->ret->nr_nodes++;

    if (node_is_leaf(node)) {
        if (t->leaf_depth < 0)
            t->leaf_depth = (int)depth;
        else if (t->leaf_depth != (int)depth)
            return wrong(w, "I5: leaf %" PRIu64 " is at depth %u, others at %d", b, depth,
                         t->leaf_depth);
        for (uint32_t i = 0; i < nr; i++)
            if (t->entry(t->arg, node_key(node, i), node_value(node, i)) < 0)
                return -1;
        return 0;
    }
    if (nr == 0)
        return wrong(w, "I6: internal node %" PRIu64 " is empty", b);
    for (uint32_t i = 0; i < nr; i++)
        if (walk_node(t, node_value64(node, i), depth + 1, false, node_key(node, i),
                      i + 1 < nr ? node_key(node, i + 1) - 1 : high) < 0)
            return -1;
    return 0;
}

static int
walk_tree(struct walk *w, enum tree_kind kind, bool count, mblock_t root,
          int (*entry)(void *arg, uint64_t key, const uint8_t *value), void *arg)
{
    struct tree t = {.w = w,
                     .kind = kind,
                     .count = count,
                     .leaf_depth = -1,
                     .entry = entry,
                     .arg = arg};

    return walk_node(&t, root, 0, true, 0, UINT64_MAX);
}

/* ---- counting pointers -------------------------------------------------------------- */

static int
count_mapping(void *arg, uint64_t key, const uint8_t *value)
{
    struct walk *w = arg;
    uint64_t v = load_le64(value);

    if (mapping_block(v) >= w->data.nr)
        return wrong(
            w, "block %" PRIu64 " is mapped to data block %" PRIu64 " beyond the end",
            key, mapping_block(v));
    w->data.wanted[mapping_block(v)]++;
    return 0;
}

/* Entries of a top-level leaf are only reached once for each distinct leaf. */
static int
count_device(void *arg, uint64_t key, const uint8_t *value)
{
    (void)key;
    return walk_tree(arg, TREE_BOTTOM, true, load_le64(value), count_mapping, arg);
}

static int
count_nothing(void *arg, uint64_t key, const uint8_t *value)
{
    (void)arg;
    (void)key;
    (void)value;
    return 0;
}

/* ---- ids and mapped blocks ---------------------------------------------------------- */

struct devices {
    struct walk *w;
    const struct recount_visitor *visitor;
    bool held;
    uint32_t pool_time;
    mblock_t mapping_root;
    uint64_t nr_details, nr_roots;
    /* of the device being looked at */
    uint64_t id, root, mapped;
    bool found;
};

static int
find_root(void *arg, uint64_t key, const uint8_t *value)
{
    struct devices *d = arg;

    d->nr_roots++;
    if (key == d->id) {
        d->root = load_le64(value);
        d->found = true;
    }
    return 0;
}

static int
see_mapping(void *arg, uint64_t key, const uint8_t *value)
{
    struct devices *d = arg;

    d->mapped++;
    if (!d->held)
        d->w->ret->nr_mappings++;
    if (mapping_time(load_le64(value)) > d->pool_time)
        return wrong(d->w, "device %" PRIu64 ": mapping younger than the pool", d->id);
    if (d->visitor && d->visitor->mapping)
        d->visitor->mapping(d->visitor->arg, d->held, (uint32_t)d->id, key,
                            load_le64(value));
    return 0;
}

static int
see_device(void *arg, uint64_t key, const uint8_t *value)
{
    struct devices *d = arg;
    struct device_details details;

    device_details_decode(&details, value);
    d->nr_details++;
    d->id = key;
    d->found = false;
    d->nr_roots = 0;
    d->mapped = 0;
    if (walk_tree(d->w, TREE_TOP, false, d->mapping_root, find_root, d) < 0)
        return -1;
    if (!d->found)
        return wrong(d->w, "device %" PRIu64 " has details but no tree", key);
    if (details.creation_time > d->pool_time || details.snapshotted_time > d->pool_time)
        return wrong(d->w, "device %" PRIu64 " is younger than the pool", key);
    if (!d->held)
        d->w->ret->nr_devices++;
    if (d->visitor && d->visitor->device)
        d->visitor->device(d->visitor->arg, d->held, (uint32_t)key, &details);
    if (walk_tree(d->w, TREE_BOTTOM, false, d->root, see_mapping, d) < 0)
        return -1;
    if (d->mapped != details.mapped_blocks)
        return wrong(d->w,
                     "%sdevice %" PRIu64 " maps %" PRIu64
                     " blocks, its details say %" PRIu64,
                     d->held ? "held " : "", key, d->mapped, details.mapped_blocks);
    return 0;
}

/* One superblock's trees: pointers, then ids and mapped blocks. */
static int
walk_roots(struct walk *w, const struct superblock *sb, bool held,
           const struct recount_visitor *visitor)
{
    struct devices d = {.w = w,
                        .visitor = visitor,
                        .held = held,
                        .pool_time = sb->time,
                        .mapping_root = sb->data_mapping_root,
                        .id = UINT64_MAX};

    if (walk_tree(w, TREE_TOP, true, sb->data_mapping_root, count_device, w) < 0 ||
        walk_tree(w, TREE_DETAILS, true, sb->device_details_root, count_nothing, w) < 0)
        return -1;
    if (walk_tree(w, TREE_DETAILS, false, sb->device_details_root, see_device, &d) < 0)
        return -1;
    d.id = UINT64_MAX;
    d.nr_roots = 0;
    if (walk_tree(w, TREE_TOP, false, sb->data_mapping_root, find_root, &d) < 0)
        return -1;
    if (d.nr_roots != d.nr_details)
        return wrong(w, "%" PRIu64 " device trees, %" PRIu64 " details", d.nr_roots,
                     d.nr_details);
    return 0;
}

/* ---- what the space maps say ---------------------------------------------------------- */

struct stored {
    struct walk *w;
    struct map *map;
    const char *name;
    uint64_t nr_bitmaps, nr_overflow;
};

/* 32 counts that begin at `e`, a multiple of 32. */
static bool
bitmap_word_is_zero(const uint8_t *bitmap, uint32_t e)
{
    return load_le64(bitmap + BITMAP_HEADER_BYTES + e / 4) == 0;
}

static int
read_bitmap(struct stored *s, uint64_t index, const struct index_entry *entry)
{
    const uint8_t *bitmap = read_block(s->w, BLOCK_BITMAP, entry->blocknr);
    uint64_t base = index * BITMAP_ENTRIES;
    uint32_t nr_free = 0, first_free = BITMAP_ENTRIES;

    if (!bitmap)
        return -1;
    if (index != s->nr_bitmaps++)
        return wrong(s->w, "%s bitmaps are not numbered in a row", s->name);
    s->w->metadata.wanted[entry->blocknr]++;
    for (uint32_t i = 0; i < BITMAP_ENTRIES; i++) {
        unsigned count;

        /* Eight bytes of zeros are 32 free blocks, most of a small pool's bitmap. */
        if (i % 32 == 0 && base + i >= s->map->nr && i + 32 <= BITMAP_ENTRIES &&
            bitmap_word_is_zero(bitmap, i)) {
            nr_free += 32;
            if (first_free == BITMAP_ENTRIES)
                first_free = i;
            i += 31;
            continue;
        }
        count = bitmap_get(bitmap, i);
        if (count == 0) {
            nr_free++;
            if (first_free == BITMAP_ENTRIES)
                first_free = i;
        }
        if (base + i < s->map->nr)
            s->map->stored[base + i] = count;
        else if (count)
            return wrong(s->w, "%s bitmap %" PRIu64 " counts beyond the end", s->name,
                         index);
    }
    if (entry->nr_free != nr_free)
        return wrong(s->w, "%s bitmap %" PRIu64 ": nr_free %u, counted %u", s->name,
                     index, entry->nr_free, nr_free);
    if (entry->none_free_before > first_free)
        return wrong(s->w, "%s bitmap %" PRIu64 ": none_free_before %u, first free %u",
                     s->name, index, entry->none_free_before, first_free);
    return 0;
}

static int
see_index(void *arg, uint64_t key, const uint8_t *value)
{
    struct index_entry entry;

    index_entry_decode(&entry, value);
    return read_bitmap(arg, key, &entry);
}

static bool
are_looked_at(const struct stored *s)
{
    return s->map != &s->w->data || !s->w->source->no_data_counts;
}

static int
see_overflow(void *arg, uint64_t key, const uint8_t *value)
{
    struct stored *s = arg;
    uint32_t count = load_le32(value);

    if (key < s->map->nr && !are_looked_at(s))
        return 0;
    if (key >= s->map->nr || s->map->stored[key] != BITMAP_COUNT_OVERFLOW)
        return wrong(s->w, "%s overflow entry for block %" PRIu64 " that is not 3",
                     s->name, key);
    if (count < BITMAP_COUNT_OVERFLOW)
        return wrong(s->w, "%s overflow entry of block %" PRIu64 " is %" PRIu32, s->name,
                     key, count);
    s->map->stored[key] = count;
    s->nr_overflow++;
    return 0;
}

static int
read_overflow(struct stored *s, mblock_t root)
{
    uint64_t nr_threes = 0;

    for (uint64_t i = 0; i < s->map->nr; i++)
        nr_threes += s->map->stored[i] == BITMAP_COUNT_OVERFLOW;
    if (walk_tree(s->w, TREE_COUNTS, true, root, see_overflow, s) < 0)
        return -1;
    if (s->nr_overflow != nr_threes && are_looked_at(s))
        return wrong(s->w, "%s: %" PRIu64 " counts of 3, %" PRIu64 " overflow entries",
                     s->name, nr_threes, s->nr_overflow);
    if (s->nr_bitmaps != div_up_u64(s->map->nr, BITMAP_ENTRIES))
        return wrong(s->w, "%s: %" PRIu64 " bitmaps for %" PRIu64 " blocks", s->name,
                     s->nr_bitmaps, s->map->nr);
    return 0;
}

static int
read_data_map(struct walk *w, const struct space_map_root *root)
{
    struct stored s = {.w = w, .map = &w->data, .name = "data"};

    if (walk_tree(w, TREE_INDEX, true, root->bitmap_root, see_index, &s) < 0)
        return -1;
    return read_overflow(&s, root->ref_count_root);
}

static int
read_metadata_map(struct walk *w, const struct space_map_root *root)
{
    struct stored s = {.w = w, .map = &w->metadata, .name = "metadata"};
    const uint8_t *index = read_block(w, BLOCK_INDEX, root->bitmap_root);

    if (!index)
        return -1;
    w->metadata.wanted[root->bitmap_root]++;
    for (uint32_t i = 0; i < INDEX_BLOCK_ENTRIES; i++) {
        struct index_entry entry;

        index_entry_decode(&entry, index_block_entry_ro(index, i));
        if (i >= div_up_u64(w->metadata.nr, BITMAP_ENTRIES)) {
            if (entry.blocknr || entry.nr_free || entry.none_free_before)
                return wrong(w, "index entry %" PRIu32 " is not zero", i);
        } else if (read_bitmap(&s, i, &entry) < 0) {
            return -1;
        }
    }
    return read_overflow(&s, root->ref_count_root);
}

static int
compare(struct walk *w, const struct map *map, const char *name, uint64_t nr_allocated,
        uint64_t *ret_used)
{
    uint64_t used = 0;

    for (uint64_t i = 0; i < map->nr; i++) {
        if (w->source->leaks && map->wanted[i] < map->stored[i]) {
            used++;
            continue;
        }
        if (map->wanted[i] != map->stored[i])
            return wrong(
                w, "%s block %" PRIu64 " has %" PRIu32 " pointers, its count is %" PRIu32,
                name, i, map->wanted[i], map->stored[i]);
        used += map->wanted[i] != 0;
    }
    if (used != nr_allocated)
        return wrong(w, "%s: %" PRIu64 " blocks in use, nr_allocated is %" PRIu64, name,
                     used, nr_allocated);
    *ret_used = used;
    return 0;
}

/* ---- all of it ------------------------------------------------------------------------ */

static int
walk_held(struct walk *w, mblock_t location, const struct recount_visitor *visitor)
{
    const uint8_t *block = read_block(w, BLOCK_SUPERBLOCK, location);
    struct superblock sb;

    if (!block)
        return -1;
    superblock_decode(&sb, block);
    if (sb.held_root || sb.data_sm.nr_blocks || sb.data_sm.bitmap_root ||
        sb.metadata_sm.nr_blocks || sb.metadata_sm.bitmap_root)
        return wrong(w, "the held superblock has space map roots or a held root");
    w->metadata.wanted[location]++;
    return walk_roots(w, &sb, true, visitor);
}

static int
walk_image(struct walk *w, const struct recount_visitor *visitor)
{
    struct superblock *sb = &w->ret->sb;
    const uint8_t *block = read_block(w, BLOCK_SUPERBLOCK, SUPERBLOCK_LOCATION);

    if (!block)
        return -1;
    if (!superblock_is_thin(block))
        return wrong(w, "no magic in block 0");
    superblock_decode(sb, block);
    if (sb->metadata_sm.nr_blocks > w->source->size / METADATA_BLOCK_SIZE)
        return wrong(w, "the metadata map is larger than the device");
    if (sb->data_sm.nr_blocks > 1ull << 28)
        return wrong(w, "too many data blocks for a recount in memory");

    w->metadata.nr = sb->metadata_sm.nr_blocks;
    w->data.nr = sb->data_sm.nr_blocks;
    w->metadata.wanted = must_calloc(w->metadata.nr, sizeof(uint32_t));
    w->metadata.stored = must_calloc(w->metadata.nr, sizeof(uint32_t));
    w->data.wanted = must_calloc(w->data.nr, sizeof(uint32_t));
    w->data.stored = must_calloc(w->data.nr, sizeof(uint32_t));

    w->metadata.wanted[SUPERBLOCK_LOCATION]++;
    if (walk_roots(w, sb, false, visitor) < 0)
        return -1;
    if (sb->held_root && walk_held(w, sb->held_root, visitor) < 0)
        return -1;
    if (read_metadata_map(w, &sb->metadata_sm) < 0 ||
        read_data_map(w, &sb->data_sm) < 0 ||
        compare(w, &w->metadata, "metadata", sb->metadata_sm.nr_allocated,
                &w->ret->metadata_used) < 0)
        return -1;
    if (w->source->no_data_counts)
        return 0;
    return compare(w, &w->data, "data", sb->data_sm.nr_allocated, &w->ret->data_used);
}

int
recount_pages(const struct recount_source *source, const struct recount_visitor *visitor,
              struct recount *ret)
{
    struct walk w = {.source = source, .ret = ret};
    int r;

    memset(ret, 0, sizeof(*ret));
    r = walk_image(&w, visitor);
    free(w.metadata.wanted);
    free(w.metadata.stored);
    free(w.data.wanted);
    free(w.data.stored);
    return r;
}

static const void *
device_page(void *arg, uint64_t index)
{
    return device_mem_page(arg, index);
}

int
recount_image(struct device *mem, const struct recount_visitor *visitor,
              struct recount *ret)
{
    const struct recount_source source = {
        .page = device_page, .arg = mem, .size = mem->size};

    return recount_pages(&source, visitor, ret);
}
