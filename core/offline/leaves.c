#include "core/offline/leaves.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/ondisk/node.h"

#define DEPTH_MAX 12u
#define JUDGED    1 /* among the codes of a window */

void
leaf_list_fini(struct leaf_list *list)
{
    free(list->refs);
    memset(list, 0, sizeof(*list));
}

int
leaf_list_add(struct leaf_list *list, const struct leaf_ref *ref)
{
    if (list->nr == list->room) {
        size_t room = list->room ? list->room * 2 : 64;
        struct leaf_ref *bigger = realloc(list->refs, room * sizeof(*bigger));

        if (!bigger)
            return -ENOMEM;
        list->refs = bigger;
        list->room = room;
    }
    list->refs[list->nr++] = *ref;
    return 0;
}

/* Reads one node and judges all but its kind. */
static int
read_node(const struct tree_shape *tree, const struct leaf_ref *ref, uint8_t *data,
          struct thin_error *err)
{
    int r;

    if (ref->block == 0 || ref->block >= tree->nr_blocks)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "a pointer to block %" PRIu64 ", outside 1 to %" PRIu64,
                         ref->block, tree->nr_blocks - 1);
    r = source_read(tree->src, ref->block, data, err);
    if (r == 0)
        r = block_check(BLOCK_NODE, data, ref->block, err);
    if (r == 0)
        r = node_judge(data, tree->value_size, err);
    return r;
}

/* Keys against what the parents allow. */
static int
judge_range(const struct leaf_ref *ref, const uint8_t *data, struct thin_error *err)
{
    uint32_t nr = node_nr_entries(data);

    if (nr && (node_key(data, 0) < ref->lo || node_key(data, nr - 1) > ref->last))
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "node %" PRIu64 ": keys %" PRIu64 " to %" PRIu64
                         ", its place allows %" PRIu64 " to %" PRIu64,
                         ref->block, node_key(data, 0), node_key(data, nr - 1), ref->lo,
                         ref->last);
    return 0;
}

static struct leaf_ref
child_ref(const uint8_t *data, uint32_t i, uint64_t last)
{
    return (struct leaf_ref){
        .block = node_value64(data, i),
        .lo = node_key(data, i),
        .last = i + 1 < node_nr_entries(data) ? node_key(data, i + 1) - 1 : last,
    };
}

static int
skip_or_fail(const struct tree_shape *tree, const struct leaf_ref *ref, int r)
{
    if (!tree->lenient || r == -ENOMEM || r == -THIN_E_CANCELLED || r == -THIN_E_LIMIT)
        return r;
    if (tree->nr_skipped)
        (*tree->nr_skipped)++;
    if (tree->skipped)
        tree->skipped(tree->skipped_arg, ref);
    return 0;
}

/* One tree's list in the making. */
struct lister {
    const struct tree_shape *tree;
    struct leaf_list *list;
    uint64_t nr_visited;
    struct thin_error *err;
};

static int list_below(struct lister *l, const struct leaf_ref *ref, unsigned depth,
                      bool *leaves);

/* Children of one node have one height: after the first leaf no other is read here. */
static int
list_children(struct lister *l, const struct leaf_ref *ref, const uint8_t *data,
              unsigned depth)
{
    bool leaves = false;

    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        struct leaf_ref child = child_ref(data, i, ref->last);
        int r = list_below(l, &child, depth + 1, &leaves);

        if (r < 0)
            r = skip_or_fail(l->tree, &child, r);
        if (r < 0)
            return r;
    }
    return 0;
}

static int
list_below(struct lister *l, const struct leaf_ref *ref, unsigned depth, bool *leaves)
{
    AUTO_FREE uint8_t *data = NULL;
    int r;

    if (depth > DEPTH_MAX)
        return thin_fail(l->err, -THIN_E_BAD_BLOCK,
                         "node %" PRIu64 ": the tree is deeper than any valid one",
                         ref->block);
    /* A tree holds each of its nodes once; nodes that come back and back end here. */
    if (l->nr_visited++ > l->tree->nr_blocks)
        return thin_fail(l->err, -THIN_E_LIMIT,
                         "a tree has more nodes than there are metadata blocks");
    if (*leaves)
        return leaf_list_add(l->list, ref);
    data = malloc(METADATA_BLOCK_SIZE);
    if (!data)
        return thin_fail_code(l->err, -ENOMEM, "read node %" PRIu64, ref->block);
    r = read_node(l->tree, ref, data, l->err);
    if (r < 0)
        return r;
    if (node_is_leaf(data)) {
        *leaves = true;
        return leaf_list_add(l->list, ref);
    }
    r = judge_range(ref, data, l->err);
    return r < 0 ? r : list_children(l, ref, data, depth);
}

int
leaves_list_below(const struct tree_shape *tree, const struct leaf_ref *ref,
                  struct leaf_list *list, struct thin_error *err)
{
    struct lister l = {.tree = tree, .list = list, .err = err};
    bool leaf = false;
    int r = list_below(&l, ref, 0, &leaf);

    return r < 0 ? skip_or_fail(tree, ref, r) : 0;
}

int
leaves_list(const struct tree_shape *tree, mblock_t root, struct leaf_list *list,
            struct thin_error *err)
{
    struct leaf_ref ref = {.block = root, .last = UINT64_MAX};

    return leaves_list_below(tree, &ref, list, err);
}

/* ---- one level at a time ------------------------------------------------------------ */

int
leaves_height(const struct tree_shape *tree, mblock_t root, unsigned *ret_height,
              struct thin_error *err)
{
    AUTO_FREE uint8_t *data = malloc(METADATA_BLOCK_SIZE);
    struct leaf_ref ref = {.block = root, .last = UINT64_MAX};

    if (!data)
        return thin_fail_code(err, -ENOMEM, "read a tree");
    for (unsigned height = 0; height <= DEPTH_MAX; height++) {
        int r = read_node(tree, &ref, data, err);

        if (r < 0)
            return r;
        if (node_is_leaf(data)) {
            *ret_height = height;
            return 0;
        }
        ref = child_ref(data, 0, ref.last);
    }
    return thin_fail(err, -THIN_E_BAD_BLOCK,
                     "node %" PRIu64 ": the tree is deeper than any valid one", root);
}

int
leaves_descend(const struct tree_shape *tree, struct leaf_list *level,
               struct thin_error *err)
{
    AUTO_FREE uint8_t *data = malloc(METADATA_BLOCK_SIZE);
    struct leaf_list below = {0};
    int r = data ? 0 : thin_fail_code(err, -ENOMEM, "read a tree");

    for (size_t i = 0; i < level->nr && r >= 0; i++) {
        const struct leaf_ref *ref = &level->refs[i];

        r = read_node(tree, ref, data, err);
        if (r == 0 && node_is_leaf(data))
            r = thin_fail(err, -THIN_E_BAD_BLOCK,
                          "node %" PRIu64 " is a leaf where an internal node should be",
                          ref->block);
        if (r == 0)
            r = judge_range(ref, data, err);
        for (uint32_t k = 0; r == 0 && k < node_nr_entries(data); k++) {
            struct leaf_ref child = child_ref(data, k, ref->last);

            /* A tree holds each of its nodes once. */
            if (below.nr >= tree->nr_blocks)
                r = thin_fail(err, -THIN_E_LIMIT,
                              "a tree has more nodes than there are metadata blocks");
            else if (leaf_list_add(&below, &child) < 0)
                r = thin_fail_code(err, -ENOMEM, "read a tree");
        }
    }
    if (r < 0) {
        leaf_list_fini(&below);
        return r;
    }
    leaf_list_fini(level);
    *level = below;
    return 0;
}

/* ---- reading ----------------------------------------------------------------------- */

struct leaf_slot {
    mblock_t block;
    uint32_t place; /* in the window */
};

static int
compare_slots(const void *pa, const void *pb)
{
    const struct leaf_slot *a = pa, *b = pb;

    return (a->block > b->block) - (a->block < b->block);
}

/* All that can be said of a leaf without its parents; `code` is that of its checksum. */
static int
judge_contents(const struct tree_shape *tree, mblock_t block, const uint8_t *data,
               int code, struct thin_error *err)
{
    int r = code < 0 ? block_check(BLOCK_NODE, data, block, err) : 0;

    if (r == 0)
        r = node_judge(data, tree->value_size, err);
    if (r == 0 && !node_is_leaf(data))
        r = thin_fail(err, -THIN_E_BAD_BLOCK,
                      "node %" PRIu64 " is internal where a leaf should be", block);
    return r;
}

/* Nothing is judged here but what enters the cache: faults are told in order of keys. */
static int
slot_seen(void *arg, size_t index, const uint8_t *data, int code)
{
    struct leaf_cursor *cur = arg;
    struct leaf_cache *cache = cur->tree->cache;
    mblock_t block = cur->slots[index].block;
    uint32_t place = cur->slots[index].place;

    cur->codes[place] = code;
    if (!data)
        return 0;
    cur->data[place] = cache && judge_contents(cur->tree, block, data, code, NULL) == 0
                           ? leaf_cache_put(cache, block, data)
                           : NULL;
    if (cur->data[place]) {
        cur->codes[place] = JUDGED;
        return 0;
    }
    cur->data[place] = memcpy(cur->bytes + (size_t)place * METADATA_BLOCK_SIZE, data,
                              METADATA_BLOCK_SIZE);
    return 0;
}

static int
fill_window(struct leaf_cursor *cur)
{
    const struct leaf_ref *refs = cur->list->refs + cur->at;
    struct leaf_cache *cache = cur->tree->cache;
    size_t left = cur->list->nr - cur->at;
    size_t nr = left < LEAVES_WINDOW ? left : LEAVES_WINDOW;
    size_t missing = 0;
    bool sorted = true;

    if (cache)
        leaf_cache_next_window(cache);
    for (size_t i = 0; i < nr; i++) {
        cur->data[i] = cache ? leaf_cache_find(cache, refs[i].block) : NULL;
        cur->codes[i] = JUDGED;
        if (cur->data[i])
            continue;
        if (missing && refs[i].block < cur->slots[missing - 1].block)
            sorted = false;
        cur->slots[missing++] = (struct leaf_slot){refs[i].block, (uint32_t)i};
    }
    if (!sorted)
        qsort(cur->slots, missing, sizeof(*cur->slots), compare_slots);
    for (size_t i = 0; i < missing; i++)
        cur->blocks[i] = cur->slots[i].block;
    cur->begin = cur->at;
    cur->end = cur->at + nr;
    return source_read_many(cur->tree->src, cur->blocks, missing, BLOCK_NODE, slot_seen,
                            cur);
}

static int
judge_leaf(const struct tree_shape *tree, const struct leaf_ref *ref, const uint8_t *data,
           int code, struct thin_error *err)
{
    int r;

    if (!data)
        return thin_fail_code(err, code, "read metadata block %" PRIu64, ref->block);
    if (ref->block == 0 || ref->block >= tree->nr_blocks)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "a pointer to block %" PRIu64 ", outside 1 to %" PRIu64,
                         ref->block, tree->nr_blocks - 1);
    r = code == JUDGED ? 0 : judge_contents(tree, ref->block, data, code, err);
    return r < 0 ? r : judge_range(ref, data, err);
}

int
leaf_cursor_init(struct leaf_cursor *cur, const struct tree_shape *tree,
                 const struct leaf_list *list, struct thin_error *err)
{
    size_t n = list->nr < LEAVES_WINDOW ? list->nr : LEAVES_WINDOW;

    memset(cur, 0, sizeof(*cur));
    cur->tree = tree;
    cur->list = list;
    if (n == 0)
        return 0;
    cur->bytes = malloc(n * METADATA_BLOCK_SIZE);
    cur->data = calloc(n, sizeof(*cur->data));
    cur->codes = calloc(n, sizeof(*cur->codes));
    cur->slots = malloc(n * sizeof(*cur->slots));
    cur->blocks = malloc(n * sizeof(*cur->blocks));
    if (!cur->bytes || !cur->data || !cur->codes || !cur->slots || !cur->blocks)
        return thin_fail_code(err, -ENOMEM, "read a tree");
    return 0;
}

void
leaf_cursor_fini(struct leaf_cursor *cur)
{
    free(cur->bytes);
    free(cur->data);
    free(cur->codes);
    free(cur->slots);
    free(cur->blocks);
    memset(cur, 0, sizeof(*cur));
}

int
leaf_cursor_next(struct leaf_cursor *cur, const struct leaf_ref **ret_ref,
                 const uint8_t **ret_data, struct thin_error *err)
{
    while (cur->at < cur->list->nr) {
        const struct leaf_ref *ref = &cur->list->refs[cur->at];
        const uint8_t *data;
        int r = 0;

        if (cur->at >= cur->end)
            r = fill_window(cur);
        if (r < 0)
            return r;
        data = cur->data[cur->at - cur->begin];
        r = judge_leaf(cur->tree, ref, data, cur->codes[cur->at - cur->begin], err);
        cur->at++;
        if (r == 0) {
            *ret_ref = ref;
            *ret_data = data;
            return 0;
        }
        r = skip_or_fail(cur->tree, ref, r);
        if (r < 0)
            return r;
    }
    *ret_data = NULL;
    return 0;
}

int
leaves_read(const struct tree_shape *tree, const struct leaf_list *list,
            leaf_seen_fn *seen, void *arg, struct thin_error *err)
{
    struct leaf_cursor cur;
    int r = leaf_cursor_init(&cur, tree, list, err);

    while (r >= 0) {
        const struct leaf_ref *ref;
        const uint8_t *data;

        r = leaf_cursor_next(&cur, &ref, &data, err);
        if (r < 0 || !data)
            break;
        r = seen(arg, ref, data);
    }
    leaf_cursor_fini(&cur);
    return r;
}

int
leaves_each(const struct tree_shape *tree, mblock_t root, leaf_seen_fn *seen, void *arg,
            struct thin_error *err)
{
    struct leaf_list list = {0};
    int r = leaves_list(tree, root, &list, err);

    if (r >= 0)
        r = leaves_read(tree, &list, seen, arg, err);
    leaf_list_fini(&list);
    return r;
}
