#include "core/offline/walk.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"

/* height_of: what is known of a block's height. */
enum { HEIGHT_UNKNOWN = 0, HEIGHT_SEARCHING = 254, HEIGHT_BAD = 255 };

#define PATH_TEXT_MAX 128
#define NODES_MAX     (UINT32_MAX - 2)

/* Numbers of records in the order in which they are read. */
struct worklist {
    uint32_t *records;
    size_t nr, room;
};

struct level_walk {
    struct walk *w;
    enum walk_tree tree;
    uint8_t height;
    struct worklist *list; /* one for each height */
    const uint32_t *order; /* records being read */
    walk_leaf_fn *leaf;
    void *arg;
};

uint32_t
walk_tree_value_size(enum walk_tree tree)
{
    static const uint32_t sizes[WALK_NR_TREES] = {
        [WALK_DETAILS] = VALUE_SIZE_DETAILS,   [WALK_TOP] = VALUE_SIZE_MAPPING,
        [WALK_MAPPING] = VALUE_SIZE_MAPPING,   [WALK_DATA_INDEX] = VALUE_SIZE_INDEX,
        [WALK_DATA_COUNTS] = VALUE_SIZE_COUNT, [WALK_METADATA_COUNTS] = VALUE_SIZE_COUNT,
    };

    return sizes[tree];
}

enum report_place
walk_tree_place(enum walk_tree tree)
{
    static const enum report_place places[WALK_NR_TREES] = {
        [WALK_DETAILS] = REPORT_AT_DETAILS,
        [WALK_TOP] = REPORT_AT_TOP,
        [WALK_MAPPING] = REPORT_AT_MAPPING,
        [WALK_DATA_INDEX] = REPORT_AT_DATA_SM,
        [WALK_DATA_COUNTS] = REPORT_AT_DATA_SM,
        [WALK_METADATA_COUNTS] = REPORT_AT_METADATA_SM,
    };

    return places[tree];
}

int
walk_init(struct walk *w, struct meta_source *src, mblock_t nr_blocks, struct report *rep)
{
    memset(w, 0, sizeof(*w));
    w->src = src;
    w->rep = rep;
    w->nr_blocks = nr_blocks;
    w->index_of = calloc(nr_blocks + 1, sizeof(*w->index_of));
    w->height_of = calloc(nr_blocks + 1, 1);
    if (!w->index_of || !w->height_of || counts_init(&w->refs, nr_blocks + 1) < 0) {
        walk_fini(w);
        return -ENOMEM;
    }
    return 0;
}

void
walk_fini(struct walk *w)
{
    counts_fini(&w->refs);
    free(w->index_of);
    free(w->height_of);
    free(w->nodes);
    memset(w, 0, sizeof(*w));
}

struct walk_node *
walk_find(const struct walk *w, mblock_t b)
{
    return b < w->nr_blocks && w->index_of[b] ? &w->nodes[w->index_of[b] - 1] : NULL;
}

static bool
is_known_leaf(const struct walk *w, mblock_t b, uint32_t value_size)
{
    size_t low = 0, high = value_size == VALUE_SIZE_MAPPING ? w->nr_known : 0;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (w->known[middle].block == b)
            return true;
        if (w->known[middle].block < b)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

const char *
walk_path(const struct walk *w, const struct walk_node *node, char *buf, size_t len)
{
    size_t used = (size_t)snprintf(buf, len, "%" PRIu64, node->block);
    uint32_t up = node->parent;

    for (unsigned i = 0; up != WALK_NONE && i < WALK_HEIGHT_MAX && used < len; i++) {
        used +=
            (size_t)snprintf(buf + used, len - used, " < %" PRIu64, w->nodes[up].block);
        up = w->nodes[up].parent;
    }
    return buf;
}

static void
mark_damaged(struct walk *w, struct walk_node *node)
{
    if (!(node->flags & WALK_DAMAGED))
        w->nr_damaged++;
    node->flags |= WALK_DAMAGED;
}

static void PRINTF_LIKE(3, 4)
    node_damage(struct walk *w, struct walk_node *node, const char *fmt, ...)
{
    char words[THIN_ERROR_TEXT_MAX], path[PATH_TEXT_MAX];
    va_list ap;

    mark_damaged(w, node);
    if (!w->rep)
        return;
    va_start(ap, fmt);
    vsnprintf(words, sizeof(words), fmt, ap);
    va_end(ap);
    report_add(w->rep, REPORT_DAMAGE, walk_tree_place(node->tree), node->block,
               "%s (path %s)", words, walk_path(w, node, path, sizeof(path)));
}

bool
walk_count_block(struct walk *w, mblock_t b, enum report_place place, const char *what)
{
    if (b == 0 || b >= w->nr_blocks) {
        if (w->rep)
            report_add(w->rep, REPORT_DAMAGE, place, b,
                       "%s: block %" PRIu64 " is outside 1 to %" PRIu64, what, b,
                       w->nr_blocks - 1);
        return false;
    }
    if (counts_inc(&w->refs, b) < 0 && w->rep)
        w->rep->no_memory = true;
    return true;
}

struct block_record {
    mblock_t block;
    uint32_t record;
};

static int
compare_block_record(const void *pa, const void *pb)
{
    const struct block_record *a = pa, *b = pb;

    return (a->block > b->block) - (a->block < b->block);
}

/* ---- heights ------------------------------------------------------------------------ */

/*
 * The height of a node, found by going down the first child that can be read; every
 * block is looked at once. HEIGHT_BAD if the node cannot be read itself.
 */
static uint8_t
find_height(struct walk *w, mblock_t b, uint32_t value_size, unsigned depth)
{
    AUTO_FREE uint8_t *data = NULL;
    uint8_t found = HEIGHT_UNKNOWN;
    uint32_t nr;

    if (b == 0 || b >= w->nr_blocks || depth > WALK_HEIGHT_MAX)
        return HEIGHT_BAD;
    if (w->height_of[b] == HEIGHT_SEARCHING)
        return HEIGHT_BAD; /* a cycle */
    if (w->height_of[b] != HEIGHT_UNKNOWN)
        return w->height_of[b];
    if (is_known_leaf(w, b, value_size)) {
        w->height_of[b] = 1; /* heights are kept plus one */
        return 1;
    }
    data = malloc(METADATA_BLOCK_SIZE);
    if (!data || source_read(w->src, b, data, NULL) < 0 ||
        block_check(BLOCK_NODE, data, b, NULL) < 0 ||
        node_judge(data, value_size, NULL) < 0) {
        w->height_of[b] = HEIGHT_BAD;
        return HEIGHT_BAD;
    }
    if (node_is_leaf(data)) {
        w->height_of[b] = 1;
        return 1;
    }
    w->height_of[b] = HEIGHT_SEARCHING;
    nr = node_nr_entries(data);
    for (uint32_t i = 0; i < nr && found == HEIGHT_UNKNOWN; i++) {
        uint8_t below = find_height(w, node_value64(data, i), value_size, depth + 1);

        if (below != HEIGHT_BAD)
            found = (uint8_t)(below + 1);
    }
    /* Nothing below can be read: its children are taken for leaves and reported. */
    w->height_of[b] = found == HEIGHT_UNKNOWN ? 2 : found;
    return w->height_of[b];
}

static uint8_t
root_height(struct walk *w, mblock_t b, uint32_t value_size)
{
    uint8_t h = find_height(w, b, value_size, 0);

    if (h == HEIGHT_BAD || h == HEIGHT_UNKNOWN)
        return 0; /* reading it as a leaf will say what is wrong */
    return h - 1 > (int)WALK_HEIGHT_MAX ? WALK_HEIGHT_MAX : (uint8_t)(h - 1);
}

/*
 * The heights of many roots at once, a level in one row of reads: down their first
 * children, as find_height would go. Where that meets damage it leaves the rest to
 * find_height; it only saves waiting for one block after the other.
 */
#define NO_STEP UINT32_MAX

struct step {
    mblock_t block;
    uint32_t up; /* the step that led here, or NO_STEP */
};

struct prober {
    struct walk *w;
    uint32_t value_size;
    struct step *steps; /* room for one for each root and level */
    uint32_t nr;
    struct block_record *order;
};

static void
probe_reached(struct prober *p, uint32_t at)
{
    for (uint8_t h = 1; at != NO_STEP; h++, at = p->steps[at].up)
        if (p->w->height_of[p->steps[at].block] == HEIGHT_UNKNOWN)
            p->w->height_of[p->steps[at].block] = h;
}

static int
probe_seen(void *arg, size_t index, const uint8_t *data, int code)
{
    struct prober *p = arg;
    struct walk *w = p->w;
    uint32_t at = p->order[index].record;

    if (!data || code < 0 || node_judge(data, p->value_size, NULL) < 0)
        return 0;
    if (!node_is_leaf(data)) {
        mblock_t below = node_value64(data, 0);

        if (below > 0 && below < w->nr_blocks)
            p->steps[p->nr++] = (struct step){below, at};
        return 0;
    }
    probe_reached(p, at);
    return 0;
}

static int
probe_heights(struct walk *w, uint32_t value_size, const struct walk_root *roots,
              size_t nr_roots)
{
    struct prober p = {.w = w, .value_size = value_size};
    AUTO_FREE struct step *steps =
        calloc(nr_roots + 1, (WALK_HEIGHT_MAX + 2) * sizeof(*steps));
    AUTO_FREE struct block_record *order = calloc(nr_roots + 1, sizeof(*order));
    AUTO_FREE mblock_t *blocks = calloc(nr_roots + 1, sizeof(*blocks));
    uint32_t begin = 0;

    if (!steps || !order || !blocks)
        return -ENOMEM;
    p.steps = steps;
    p.order = order;
    for (size_t i = 0; i < nr_roots; i++)
        if (roots[i].block > 0 && roots[i].block < w->nr_blocks)
            steps[p.nr++] = (struct step){roots[i].block, NO_STEP};
    for (unsigned depth = 0; depth <= WALK_HEIGHT_MAX && begin < p.nr; depth++) {
        uint32_t nr = 0;
        int r;

        for (uint32_t i = begin; i < p.nr; i++) {
            if (is_known_leaf(w, steps[i].block, value_size))
                probe_reached(&p, i);
            else
                order[nr++] = (struct block_record){steps[i].block, i};
        }
        qsort(order, nr, sizeof(*order), compare_block_record);
        for (uint32_t i = 0; i < nr; i++)
            blocks[i] = order[i].block;
        begin = p.nr;
        r = source_read_many(w->src, blocks, nr, BLOCK_NODE, probe_seen, &p);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- references ------------------------------------------------------------------ */

static int
worklist_add(struct worklist *list, uint32_t record)
{
    if (list->nr == list->room) {
        size_t room = list->room ? list->room * 2 : 64;
        uint32_t *bigger = realloc(list->records, room * sizeof(*bigger));

        if (!bigger)
            return -ENOMEM;
        list->records = bigger;
        list->room = room;
    }
    list->records[list->nr++] = record;
    return 0;
}

static int
add_node(struct walk *w, const struct walk_node *node, uint32_t *ret_record)
{
    if (w->nr_nodes == w->room) {
        uint32_t room = w->room ? w->room * 2 : 256;
        struct walk_node *bigger;

        if (w->nr_nodes >= NODES_MAX / 2)
            return -ENOMEM;
        bigger = realloc(w->nodes, (size_t)room * sizeof(*bigger));
        if (!bigger)
            return -ENOMEM;
        w->nodes = bigger;
        w->room = room;
    }
    w->nodes[w->nr_nodes] = *node;
    *ret_record = w->nr_nodes++;
    return 0;
}

/* One more pointer to a node that has a record. */
static void
meet_again(struct walk *w, struct walk_node *node, const struct walk_node *ref)
{
    if (node->tree != ref->tree || node->height != ref->height) {
        if (!(node->flags & WALK_MISPLACED))
            node_damage(w, node,
                        "node %" PRIu64 " is used as height %u of the %s and as height "
                        "%u of the %s",
                        node->block, node->height,
                        report_place_name(walk_tree_place(node->tree)), ref->height,
                        report_place_name(walk_tree_place(ref->tree)));
        node->flags |= WALK_MISPLACED;
        return;
    }
    if (ref->lo > node->lo)
        node->lo = ref->lo;
    if (ref->last < node->last)
        node->last = ref->last;
    if (ref->owner != node->owner || (ref->flags & WALK_MANY))
        node->flags |= WALK_MANY;
    if (ref->owner < node->owner)
        node->owner = ref->owner;
    node->flags |= ref->flags & WALK_CHILD;
}

/* Follows one pointer: counts it, and puts its node on the list the first time. */
static int
refer(struct level_walk *lw, const struct walk_node *ref)
{
    struct walk *w = lw->w;
    struct walk_node *node;
    uint32_t record;
    int r;

    if (counts_inc(&w->refs, ref->block) < 0)
        return -ENOMEM;
    node = walk_find(w, ref->block);
    if (node) {
        meet_again(w, node, ref);
        return 0;
    }
    r = add_node(w, ref, &record);
    if (r < 0)
        return r;
    w->index_of[ref->block] = record + 1;
    return worklist_add(&lw->list[ref->height], record);
}

/* ---- reading one level ------------------------------------------------------------- */

/* What judge_place has to know of a node. */
struct outline {
    uint64_t first, last; /* keys, if there are any */
    uint32_t nr, max;     /* entries */
    bool leaf;
};

static struct outline
outline_of(const uint8_t *data)
{
    uint32_t nr = node_nr_entries(data);

    return (struct outline){.first = nr ? node_key(data, 0) : 0,
                            .last = nr ? node_key(data, nr - 1) : 0,
                            .nr = nr,
                            .max = node_max_entries(data),
                            .leaf = node_is_leaf(data)};
}

/* Keys against what all parents said; occupancy. True if the node can be used. */
static bool
judge_place(struct walk *w, struct walk_node *node, const struct outline *o)
{
    uint32_t least = o->max / 3;

    if (o->leaf != (node->height == 0)) {
        node_damage(w, node, "node %" PRIu64 " is %s, at height %u of its tree",
                    node->block, o->leaf ? "a leaf" : "internal", node->height);
        return false;
    }
    if (o->nr && (o->first < node->lo || o->last > node->last)) {
        node_damage(w, node,
                    "node %" PRIu64 " holds keys %" PRIu64 " to %" PRIu64
                    ", its place allows %" PRIu64 " to %" PRIu64,
                    node->block, o->first, o->last, node->lo, node->last);
        return false;
    }
    if ((node->flags & WALK_CHILD) && o->nr < least && !w->lax && w->rep) {
        char path[PATH_TEXT_MAX];

        /* Its contents are good: reported, and used. */
        report_add(w->rep, REPORT_DAMAGE, walk_tree_place(node->tree), node->block,
                   "node %" PRIu64 " has %" PRIu32
                   " entries, a node that is no root needs %" PRIu32 " (path %s)",
                   node->block, o->nr, least, walk_path(w, node, path, sizeof(path)));
    }
    return true;
}

/* All children of an internal node. */
static int
enter_children(struct level_walk *lw, uint32_t record, const uint8_t *data)
{
    struct walk *w = lw->w;
    const struct walk_node parent = w->nodes[record];
    uint32_t nr = node_nr_entries(data);
    /* One for all: there are many, and most are met for the second time. */
    struct walk_node ref = {
        .parent = record,
        .owner = parent.owner,
        .height = (uint8_t)(parent.height - 1),
        .tree = (uint8_t)lw->tree,
        .flags = (uint8_t)(WALK_CHILD | (parent.flags & WALK_MANY)),
    };

    for (uint32_t i = 0; i < nr; i++) {
        int r;

        ref.block = node_value64(data, i);
        ref.lo = node_key(data, i);
        ref.last = i + 1 < nr ? node_key(data, i + 1) - 1 : parent.last;
        if (ref.block == 0 || ref.block >= w->nr_blocks) {
            node_damage(w, &w->nodes[record],
                        "node %" PRIu64 ": entry %" PRIu32 " points to block %" PRIu64
                        ", outside 1 to %" PRIu64,
                        parent.block, i, ref.block, w->nr_blocks - 1);
            continue;
        }
        r = refer(lw, &ref);
        if (r < 0)
            return r;
    }
    return 0;
}

static int
node_seen(void *arg, size_t index, const uint8_t *data, int code)
{
    struct level_walk *lw = arg;
    struct walk *w = lw->w;
    uint32_t record = lw->order[index];
    struct walk_node *node = &w->nodes[record];
    struct outline outline;
    struct thin_error err;
    int r;

    thin_error_init(&err);
    if (!data) {
        node_damage(w, node, "node %" PRIu64 " cannot be read: %s", node->block,
                    thin_strerror(code));
        return 0;
    }
    /* A bad checksum is looked at once more, for the words. */
    r = code < 0 ? block_check(BLOCK_NODE, data, node->block, &err) : 0;
    if (r == 0)
        r = node_judge(data, walk_tree_value_size(lw->tree), &err);
    if (r < 0) {
        node_damage(w, node, "%s", thin_error_text(&err, r));
        return 0;
    }
    outline = outline_of(data);
    if (!judge_place(w, node, &outline))
        return 0;
    if (node->height)
        return enter_children(lw, record, data);
    node->total = node_nr_entries(data);
    return lw->leaf ? lw->leaf(lw->arg, node, data) : 0;
}

/* The nodes of the list that have to be read, in block order. NULL: no memory. */
static struct block_record *
sort_list(const struct walk *w, const struct worklist *list, size_t *ret_nr)
{
    struct block_record *sort = malloc(list->nr * sizeof(*sort));
    bool sorted = true;
    size_t nr = 0;

    for (size_t i = 0; sort && i < list->nr; i++) {
        const struct walk_node *node = &w->nodes[list->records[i]];

        if (node->flags & WALK_MET)
            continue;
        sort[nr] = (struct block_record){node->block, list->records[i]};
        sorted = sorted && (nr == 0 || sort[nr - 1].block < node->block);
        nr++;
    }
    if (sort && !sorted)
        qsort(sort, nr, sizeof(*sort), compare_block_record);
    *ret_nr = nr;
    return sort;
}

/* The leaves of mappings that are known: only their places are judged. */
static void
meet_known(struct walk *w)
{
    for (size_t i = 0; i < w->nr_known; i++) {
        struct walk_known *k = &w->known[i];
        struct walk_node *node = walk_find(w, k->block);

        if (!node || node->tree != WALK_MAPPING || node->height)
            continue;
        node->flags |= WALK_MET;
        if (!judge_place(w, node,
                         &(const struct outline){k->first, k->last, k->nr, k->max, true}))
            continue;
        node->total = k->nr;
        k->met = 1;
    }
}

/* Calls `seen` with the list's nodes in block order; lw->order tells which. */
static int
read_level(struct level_walk *lw, const struct worklist *list, source_seen_fn *seen)
{
    AUTO_FREE struct block_record *sort = NULL;
    AUTO_FREE mblock_t *blocks = NULL;
    AUTO_FREE uint32_t *order = NULL;
    size_t nr = 0;
    int r;

    if (!list->nr)
        return 0;
    if (lw->tree == WALK_MAPPING && lw->height == 0)
        meet_known(lw->w);
    sort = sort_list(lw->w, list, &nr);
    if (!sort)
        return -ENOMEM;
    if (!nr)
        return 0;
    blocks = malloc(nr * sizeof(*blocks));
    order = malloc(nr * sizeof(*order));
    if (!blocks || !order)
        return -ENOMEM;
    for (size_t i = 0; i < nr; i++) {
        blocks[i] = sort[i].block;
        order[i] = sort[i].record;
    }
    lw->order = order;
    r = source_read_many(lw->w->src, blocks, nr, BLOCK_NODE, seen, lw);
    lw->order = NULL;
    return r;
}

static int
start_roots(struct level_walk *lw, const struct walk_root *roots, size_t nr_roots)
{
    struct walk *w = lw->w;
    uint32_t value_size = walk_tree_value_size(lw->tree);
    int rc = nr_roots > 1 ? probe_heights(w, value_size, roots, nr_roots) : 0;

    if (rc < 0)
        return rc;
    for (size_t i = 0; i < nr_roots; i++) {
        struct walk_node ref = {
            .block = roots[i].block,
            .last = UINT64_MAX,
            .parent = WALK_NONE,
            .owner = roots[i].owner,
            .tree = (uint8_t)lw->tree,
        };
        int r;

        if (ref.block == 0 || ref.block >= w->nr_blocks) {
            w->nr_damaged++;
            if (w->rep)
                report_add(w->rep, REPORT_DAMAGE, walk_tree_place(lw->tree), ref.block,
                           "root of the %s: block %" PRIu64 " is outside 1 to %" PRIu64,
                           report_place_name(walk_tree_place(lw->tree)), ref.block,
                           w->nr_blocks - 1);
            continue;
        }
        ref.height = root_height(w, ref.block, value_size);
        r = refer(lw, &ref);
        if (r < 0)
            return r;
    }
    return 0;
}

int
walk_trees(struct walk *w, enum walk_tree tree, const struct walk_root *roots,
           size_t nr_roots, walk_leaf_fn *leaf, void *arg)
{
    struct worklist list[WALK_HEIGHT_MAX + 1] = {0};
    struct level_walk lw = {.w = w, .tree = tree, .list = list, .leaf = leaf, .arg = arg};
    int r = start_roots(&lw, roots, nr_roots);

    for (int h = WALK_HEIGHT_MAX; h >= 0 && r >= 0; h--) {
        lw.height = (uint8_t)h;
        r = read_level(&lw, &list[h], node_seen);
    }
    for (unsigned h = 0; h <= WALK_HEIGHT_MAX; h++)
        free(list[h].records);
    return r;
}

/* ---- sums ---------------------------------------------------------------------------- */

static int
sum_seen(void *arg, size_t index, const uint8_t *data, int code)
{
    struct level_walk *lw = arg;
    struct walk *w = lw->w;
    struct walk_node *node = &w->nodes[lw->order[index]];
    uint32_t nr;

    if (node->flags & WALK_DAMAGED)
        node->flags |= WALK_PARTIAL;
    if (!data || code < 0 || node_judge(data, walk_tree_value_size(lw->tree), NULL) < 0 ||
        node_is_leaf(data)) {
        node->flags |= WALK_PARTIAL;
        return 0;
    }
    /* A node with some bad pointers still leads to the rest. */
    nr = node_nr_entries(data);
    node->total = 0;
    for (uint32_t i = 0; i < nr; i++) {
        const struct walk_node *child = walk_find(w, node_value64(data, i));

        if (!child || child->height + 1 != node->height || child->tree != node->tree) {
            node->flags |= WALK_PARTIAL;
            continue;
        }
        if (child->flags & (WALK_DAMAGED | WALK_PARTIAL))
            node->flags |= WALK_PARTIAL;
        node->total += child->total;
    }
    return 0;
}

int
walk_sum(struct walk *w, enum walk_tree tree)
{
    struct level_walk lw = {.w = w, .tree = tree};

    for (uint8_t h = 1; h <= WALK_HEIGHT_MAX; h++) {
        struct worklist list = {0};
        int r = 0;

        lw.height = h;
        for (uint32_t i = 0; i < w->nr_nodes && r >= 0; i++)
            if (w->nodes[i].tree == tree && w->nodes[i].height == h)
                r = worklist_add(&list, i);
        if (r >= 0)
            r = read_level(&lw, &list, sum_seen);
        free(list.records);
        if (r < 0)
            return r;
    }
    return 0;
}
