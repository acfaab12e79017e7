/*
 * Remove: one pass down; a node with the least allowed number of entries is merged or
 * evened out with a sibling before it is entered. FORMAT.md 5.3, but siblings are
 * touched only when that is needed.
 */
#include <inttypes.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/persist/btree_private.h"

int
btree_collapse(const struct btree *t, struct bm_block *node, unsigned depth,
               struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *child = NULL;
    struct btree_span span = {.lo = node_key(bm_data(node), 0), .last = UINT64_MAX};
    mblock_t b = node_value64(bm_data(node), 0);
    uint32_t count;
    int r;

    r = tm_ref(t->tm, b, &count, err);
    if (r == 0)
        r = btree_get(t, b, depth + 1, &span, &child, err);
    if (r < 0)
        return r;
    if (count > 1) {
        /* The child lives on elsewhere: from now on two nodes point to what it has. */
        r = btree_inc_entries(t, bm_data(child), 0, node_nr_entries(bm_data(child)), err);
        if (r < 0)
            return r;
    }
    memcpy(bm_data_rw(node), bm_data(child), METADATA_BLOCK_SIZE);
    store_le64((uint8_t *)bm_data_rw(node) + 8, bm_location(node));
    return tm_dec(t->tm, b, err);
}

/* Moves all of `right` (not changed, perhaps shared) behind `left`'s entries. */
static int
merge(const struct btree *t, struct bm_block *node, uint32_t i_right,
      struct bm_block *left, struct bm_block *right, struct thin_error *err)
{
    uint32_t nr_left = node_nr_entries(bm_data(left));
    uint32_t nr_right = node_nr_entries(bm_data(right));
    uint32_t count;
    int r;

    r = tm_ref(t->tm, bm_location(right), &count, err);
    if (r == 0 && count > 1)
        r = btree_inc_entries(t, bm_data(right), 0, nr_right, err);
    if (r < 0)
        return r;
    btree_copy_entries(bm_data_rw(left), nr_left, bm_data(right), 0, nr_right);
    node_set_nr_entries(bm_data_rw(left), nr_left + nr_right);
    btree_delete_entries(bm_data_rw(node), i_right, 1);
    return tm_dec(t->tm, bm_location(right), err);
}

int
btree_rebalance(const struct btree *t, struct bm_block *node, uint32_t i, unsigned depth,
                const struct btree_span *span, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *left = NULL;
    BLOCK_LOCK struct bm_block *right = NULL;
    uint32_t l = i > 0 ? i - 1 : 0, total, min;
    struct btree_span right_span = btree_child_span(bm_data(node), l + 1, span);
    int r;

    r = btree_shadow_child(t, node, l, depth, span, &left, err);
    if (r == 0)
        r = btree_get(t, node_value64(bm_data(node), l + 1), depth + 1, &right_span,
                      &right, err);
    if (r == 0)
        r = btree_same_shape(left, right, err);
    if (r < 0)
        return r;
    min = btree_min_entries(bm_data(left));
    total = node_nr_entries(bm_data(left)) + node_nr_entries(bm_data(right));
    if (total < 2 * (min + 1))
        return merge(t, node, l + 1, left, right, err);

    bm_unlock(right);
    right = NULL;
    r = btree_shadow_child(t, node, l + 1, depth, span, &right, err);
    if (r < 0)
        return r;
    btree_even_out(bm_data_rw(left), bm_data_rw(right), total / 2);
    node_set_key(bm_data_rw(node), l + 1, node_key(bm_data(right), 0));
    return 0;
}

/* Child i of the node could not lose an entry, and has a sibling to get one from. */
static int
is_poor(const struct btree *t, struct bm_block *node, uint32_t i, unsigned depth,
        const struct btree_span *span, bool *ret_poor, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *child = NULL;
    struct btree_span child_span = btree_child_span(bm_data(node), i, span);
    int r;

    r = btree_get(t, node_value64(bm_data(node), i), depth + 1, &child_span, &child, err);
    if (r < 0)
        return r;
    *ret_poor = node_nr_entries(bm_data(node)) > 1 &&
                node_nr_entries(bm_data(child)) <= btree_min_entries(bm_data(child));
    return 0;
}

static int
remove_at_leaf(const struct btree *t, struct bm_block *leaf, uint64_t key,
               struct thin_error *err)
{
    int i = node_lower_bound(bm_data(leaf), key), r;

    THIN_ASSERT(i >= 0 && node_key(bm_data(leaf), (uint32_t)i) == key);
    r = btree_dec_values(t, bm_data(leaf), (uint32_t)i, (uint32_t)i + 1, err);
    if (r == 0)
        btree_delete_entries(bm_data_rw(leaf), (uint32_t)i, 1);
    return r;
}

int
btree_remove(const struct btree *t, mblock_t root, uint64_t key, mblock_t *ret_root,
             bool *ret_removed, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *node = NULL;
    struct btree_span span = BTREE_SPAN_ALL;
    uint8_t value[VALUE_SIZE_MAX];
    mblock_t new_root;
    unsigned depth = 0;
    bool found, poor;
    int r;

    r = btree_lookup(t, root, key, value, &found, err);
    if (r < 0)
        return r;
    if (!found) {
        *ret_root = root;
        *ret_removed = false;
        return 0;
    }
    r = btree_shadow(t, root, 0, &span, &node, err);
    if (r < 0)
        return r;
    new_root = bm_location(node);

    while (!node_is_leaf(bm_data(node))) {
        BLOCK_LOCK struct bm_block *child = NULL;
        uint32_t i;

        if (depth == 0 && node_nr_entries(bm_data(node)) == 1) {
            r = btree_collapse(t, node, depth, err);
            if (r < 0)
                return r;
            continue;
        }
        i = (uint32_t)node_lower_bound(bm_data(node), key);
        r = is_poor(t, node, i, depth, &span, &poor, err);
        if (r < 0)
            return r;
        if (poor) {
            r = btree_rebalance(t, node, i, depth, &span, err);
            if (r < 0)
                return r;
            continue;
        }
        r = btree_shadow_child(t, node, i, depth, &span, &child, err);
        if (r < 0)
            return r;
        span = btree_child_span(bm_data(node), i, &span);
        bm_unlock(node);
        node = child;
        child = NULL;
        depth++;
    }
    r = remove_at_leaf(t, node, key, err);
    if (r < 0)
        return r;
    *ret_root = new_root;
    *ret_removed = true;
    return 0;
}
