/*
 * Insert: one pass down; a full node gets room before it is entered, so that its parent
 * always has place for one child more. FORMAT.md 5.2.
 */
#include <inttypes.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/persist/btree_private.h"

/* Free entries that make it worthwhile to share with a sibling instead of splitting. */
#define SHARE_FREE_MIN   8u
#define SHARE_SMALL_MAX  24u /* nodes of tests are smaller than all this */
#define SHARE_SMALL_FREE 2u

static bool
is_full(const void *node)
{
    return node_nr_entries(node) == node_max_entries(node);
}

/* A new node like `like`, empty. */
static int
new_node(const struct btree *t, const void *like, struct bm_block **ret_block,
         struct thin_error *err)
{
    struct bm_validator v;
    int r;

    btree_validator(t, &v);
    r = tm_new_block(t->tm, &v, ret_block, err);
    if (r < 0)
        return r;
    node_init(bm_data_rw(*ret_block), node_is_leaf(like), node_max_entries(like),
              node_value_size(like));
    store_le64((uint8_t *)bm_data_rw(*ret_block) + 8, bm_location(*ret_block));
    return 0;
}

static void
set_child(void *node, uint32_t i, uint64_t key, mblock_t child)
{
    node_set_key(node, i, key);
    store_le64(node_value_rw(node, i), child);
}

/* The root keeps its block and becomes the parent of two new halves. */
static int
split_root(const struct btree *t, struct bm_block *root, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *left = NULL;
    BLOCK_LOCK struct bm_block *right = NULL;
    uint8_t *node = bm_data_rw(root);
    uint32_t nr = node_nr_entries(node), nr_left = nr / 2;
    int r;

    r = new_node(t, node, &left, err);
    if (r == 0)
        r = new_node(t, node, &right, err);
    if (r < 0)
        return r;
    btree_copy_entries(bm_data_rw(left), 0, node, 0, nr_left);
    node_set_nr_entries(bm_data_rw(left), nr_left);
    btree_copy_entries(bm_data_rw(right), 0, node, nr_left, nr - nr_left);
    node_set_nr_entries(bm_data_rw(right), nr - nr_left);

    node_init(node, false,
              t->internal_max ? t->internal_max
                              : node_max_entries_for(VALUE_SIZE_MAPPING),
              VALUE_SIZE_MAPPING);
    store_le64(node + 8, bm_location(root));
    set_child(node, 0, node_key(bm_data(left), 0), bm_location(left));
    set_child(node, 1, node_key(bm_data(right), 0), bm_location(right));
    node_set_nr_entries(node, 2);
    return 0;
}

/* Puts a new node behind `node` (child i) and gives it the upper half. */
static int
split_in_two(const struct btree *t, struct bm_block *parent, uint32_t i,
             struct bm_block *node, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *right = NULL;
    uint8_t *p = bm_data_rw(parent);
    int r;

    r = new_node(t, bm_data(node), &right, err);
    if (r < 0)
        return r;
    btree_even_out(bm_data_rw(node), bm_data_rw(right),
                   node_nr_entries(bm_data(node)) / 2);
    btree_open_gap(p, i + 1, 1);
    set_child(p, i + 1, node_key(bm_data(right), 0), bm_location(right));
    return 0;
}

/* `left` is child i - 1, `node` child i; a third goes in between. */
static int
split_in_three(const struct btree *t, struct bm_block *parent, uint32_t i,
               struct bm_block *left, struct bm_block *node, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *centre = NULL;
    uint8_t *l = bm_data_rw(left), *n = bm_data_rw(node), *p = bm_data_rw(parent), *c;
    uint32_t total = node_nr_entries(l) + node_nr_entries(n);
    uint32_t nr_left = total / 3, nr_centre = (total - nr_left) / 2;
    uint32_t from_left = node_nr_entries(l) - nr_left, from_node;
    int r;

    r = new_node(t, n, &centre, err);
    if (r < 0)
        return r;
    c = bm_data_rw(centre);
    /* Both are nearly full, so both give. */
    THIN_ASSERT(nr_centre >= from_left);
    from_node = nr_centre - from_left;
    btree_copy_entries(c, 0, l, nr_left, from_left);
    btree_copy_entries(c, from_left, n, 0, from_node);
    node_set_nr_entries(c, nr_centre);
    node_set_nr_entries(l, nr_left);
    btree_delete_entries(n, 0, from_node);

    btree_open_gap(p, i, 1);
    set_child(p, i, node_key(c, 0), bm_location(centre));
    node_set_key(p, i + 1, node_key(n, 0));
    return 0;
}

enum sibling { SIBLING_SHARED, SIBLING_FULL, SIBLING_HAS_ROOM };

static int
look_at_sibling(const struct btree *t, struct bm_block *parent, uint32_t i,
                unsigned depth, const struct btree_span *span, enum sibling *ret_how,
                struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    struct btree_span sibling_span = btree_child_span(bm_data(parent), i, span);
    mblock_t b = node_value64(bm_data(parent), i);
    uint32_t count, max, nr;
    int r;

    r = tm_ref(t->tm, b, &count, err);
    if (r < 0)
        return r;
    if (count > 1) {
        *ret_how = SIBLING_SHARED;
        return 0;
    }
    r = btree_get(t, b, depth + 1, &sibling_span, &block, err);
    if (r < 0)
        return r;
    max = node_max_entries(bm_data(block));
    nr = node_nr_entries(bm_data(block));
    *ret_how = max - nr >= (max < SHARE_SMALL_MAX ? SHARE_SMALL_FREE : SHARE_FREE_MIN)
                   ? SIBLING_HAS_ROOM
                   : SIBLING_FULL;
    return 0;
}

/* Evens out `node` (child i) with child `s` beside it. */
static int
share_with(const struct btree *t, struct bm_block *parent, uint32_t i, uint32_t s,
           struct bm_block *node, unsigned depth, const struct btree_span *span,
           struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *sibling = NULL;
    struct bm_block *left, *right;
    uint32_t total;
    int r;

    r = btree_shadow_child(t, parent, s, depth, span, &sibling, err);
    if (r == 0)
        r = btree_same_shape(sibling, node, err);
    if (r < 0)
        return r;
    left = s < i ? sibling : node;
    right = s < i ? node : sibling;
    total = node_nr_entries(bm_data(left)) + node_nr_entries(bm_data(right));
    btree_even_out(bm_data_rw(left), bm_data_rw(right), total / 2);
    node_set_key(bm_data_rw(parent), s < i ? i : s, node_key(bm_data(right), 0));
    return 0;
}

/* `node` is child i of `parent` (at `depth`) and full; the parent is not. */
static int
make_room(const struct btree *t, struct bm_block *parent, uint32_t i,
          struct bm_block *node, unsigned depth, const struct btree_span *span,
          struct thin_error *err)
{
    uint32_t nr = node_nr_entries(bm_data(parent));
    bool shared = false;
    enum sibling how = SIBLING_SHARED;
    int r;

    for (int step = -1; step <= 1; step += 2) {
        if ((step < 0 && i == 0) || (step > 0 && i + 1 == nr))
            continue;
        r = look_at_sibling(t, parent, i + step, depth, span, &how, err);
        if (r < 0)
            return r;
        if (how == SIBLING_HAS_ROOM)
            return share_with(t, parent, i, i + step, node, depth, span, err);
        shared |= how == SIBLING_SHARED;
    }
    if (!shared && nr > 2 && i > 0 && i + 1 < nr) {
        BLOCK_LOCK struct bm_block *left = NULL;

        r = btree_shadow_child(t, parent, i - 1, depth, span, &left, err);
        if (r == 0)
            r = btree_same_shape(left, node, err);
        return r < 0 ? r : split_in_three(t, parent, i, left, node, err);
    }
    return split_in_two(t, parent, i, node, err);
}

static bool
leaf_has(const void *node, uint64_t key)
{
    int i = node_is_leaf(node) ? node_lower_bound(node, key) : -1;

    return i >= 0 && node_key(node, (uint32_t)i) == key;
}

static int
put_in_leaf(const struct btree *t, struct bm_block *leaf, uint64_t key, const void *value,
            bool *ret_inserted, struct thin_error *err)
{
    uint8_t *node = bm_data_rw(leaf);
    int i = node_lower_bound(node, key);
    uint32_t at;

    if (i >= 0 && node_key(node, (uint32_t)i) == key) {
        uint8_t *old = node_value_rw(node, (uint32_t)i);
        bool equal = t->value.equal ? t->value.equal(t->value.context, old, value)
                                    : memcmp(old, value, t->value.size) == 0;
        int r = equal ? 0 : btree_dec_values(t, node, (uint32_t)i, (uint32_t)i + 1, err);

        if (r < 0)
            return r;
        memcpy(old, value, t->value.size);
        *ret_inserted = false;
        return 0;
    }
    at = (uint32_t)(i + 1);
    btree_open_gap(node, at, 1);
    node_set_key(node, at, key);
    memcpy(node_value_rw(node, at), value, t->value.size);
    *ret_inserted = true;
    return 0;
}

/* The child of a locked internal node that is to hold `key`. */
static uint32_t
child_for_insert(struct bm_block *node, uint64_t key)
{
    int i = node_lower_bound(bm_data(node), key);

    if (i >= 0)
        return (uint32_t)i;
    node_set_key(bm_data_rw(node), 0, key); /* keeps I3 */
    return 0;
}

int
btree_insert(const struct btree *t, mblock_t root, uint64_t key, const void *value,
             mblock_t *ret_root, bool *ret_inserted, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *parent = NULL;
    struct btree_span span = BTREE_SPAN_ALL; /* the parent's */
    mblock_t new_root = root;
    uint32_t i = 0; /* which child of the parent */
    unsigned depth = 0;
    int r;

    for (;;) {
        BLOCK_LOCK struct bm_block *node = NULL;

        if (parent)
            r = btree_shadow_child(t, parent, i, depth - 1, &span, &node, err);
        else
            r = btree_shadow(t, root, 0, &span, &node, err);
        if (r < 0)
            return r;
        if (!parent)
            new_root = bm_location(node);

        if (is_full(bm_data(node)) && !leaf_has(bm_data(node), key)) {
            if (parent) {
                r = make_room(t, parent, i, node, depth - 1, &span, err);
                if (r < 0)
                    return r;
                i = child_for_insert(parent, key);
                continue;
            }
            r = split_root(t, node, err);
            if (r < 0)
                return r;
        }
        if (node_is_leaf(bm_data(node))) {
            r = put_in_leaf(t, node, key, value, ret_inserted, err);
            if (r == 0)
                *ret_root = new_root;
            return r;
        }
        if (parent) {
            span = btree_child_span(bm_data(parent), i, &span);
            bm_unlock(parent);
        }
        i = child_for_insert(node, key);
        parent = node;
        node = NULL;
        depth++;
    }
}
