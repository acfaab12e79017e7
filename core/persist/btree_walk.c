/* Reading whole ranges and whole trees. */
#include <inttypes.h>

#include "core/base/assert.h"
#include "core/persist/btree_private.h"

struct walk {
    const struct btree *t;
    uint64_t begin, end;
    int (*visit)(void *arg, uint64_t key, const uint8_t *value);
    void *arg;
};

static int
walk_leaf(const struct walk *walk, const void *node)
{
    int below = walk->begin ? node_lower_bound(node, walk->begin - 1) : -1;

    for (uint32_t i = (uint32_t)(below + 1); i < node_nr_entries(node); i++) {
        int r;

        if (node_key(node, i) >= walk->end)
            break;
        r = walk->visit(walk->arg, node_key(node, i), node_value(node, i));
        if (r)
            return r;
    }
    return 0;
}

/* LOCKS: at most BTREE_DEPTH_MAX deep */
static int
walk_node(const struct walk *walk, mblock_t b, unsigned depth,
          const struct btree_span *span, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    const void *node;
    int r;

    r = btree_get(walk->t, b, depth, span, &block, err);
    if (r < 0)
        return r;
    node = bm_data(block);
    if (node_is_leaf(node))
        return walk_leaf(walk, node);
    for (uint32_t i = 0; i < node_nr_entries(node); i++) {
        struct btree_span child_span = btree_child_span(node, i, span);

        if (child_span.last < walk->begin)
            continue;
        if (child_span.lo >= walk->end)
            break;
        r = walk_node(walk, node_value64(node, i), depth + 1, &child_span, err);
        if (r)
            return r;
    }
    return 0;
}

int
btree_walk(const struct btree *t, mblock_t root, uint64_t begin, uint64_t end,
           int (*visit)(void *arg, uint64_t key, const uint8_t *value), void *arg,
           struct thin_error *err)
{
    struct walk walk = {.t = t, .begin = begin, .end = end, .visit = visit, .arg = arg};
    struct btree_span span = BTREE_SPAN_ALL;

    return begin < end ? walk_node(&walk, root, 0, &span, err) : 0;
}

/* LOCKS: at most BTREE_DEPTH_MAX deep */
static int
measure_node(const struct btree *t, mblock_t b, unsigned depth,
             const struct btree_span *span, struct btree_shape *shape,
             struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    const void *node;
    int r;

    r = btree_get(t, b, depth, span, &block, err);
    if (r < 0)
        return r;
    node = bm_data(block);
    if (node_is_leaf(node)) {
        if (shape->nr_leaves && shape->depth != depth + 1)
            return thin_fail(err, -THIN_E_BAD_BLOCK,
                             "leaf %" PRIu64 " lies on level %u, another on %" PRIu32, b,
                             depth + 1, shape->depth);
        shape->depth = depth + 1;
        shape->nr_leaves++;
        shape->nr_entries += node_nr_entries(node);
        return 0;
    }
    shape->nr_internal++;
    for (uint32_t i = 0; i < node_nr_entries(node); i++) {
        struct btree_span child_span = btree_child_span(node, i, span);

        r = measure_node(t, node_value64(node, i), depth + 1, &child_span, shape, err);
        if (r < 0)
            return r;
    }
    return 0;
}

int
btree_measure(const struct btree *t, mblock_t root, struct btree_shape *ret_shape,
              struct thin_error *err)
{
    struct btree_shape shape = {0};
    struct btree_span span = BTREE_SPAN_ALL;
    int r = measure_node(t, root, 0, &span, &shape, err);

    if (r < 0)
        return r;
    *ret_shape = shape;
    return 0;
}
