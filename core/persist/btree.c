#include "core/persist/btree.h"

#include <inttypes.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/persist/btree_private.h"

/* ---- nodes ---------------------------------------------------------------------------- */

static int
judge_node(const void *block, mblock_t location, uint32_t value_size,
           struct thin_error *err)
{
    int r = node_judge(block, value_size, err);

    if (r < 0 || node_is_leaf(block))
        return r;
    for (uint32_t i = 0; i < node_nr_entries(block); i++)
        if (node_value64(block, i) == 0 || node_value64(block, i) == location)
            return thin_fail(err, -THIN_E_BAD_BLOCK,
                             "node %" PRIu64 " points to block %" PRIu64, location,
                             node_value64(block, i));
    return 0;
}

void
btree_validator(const struct btree *t, struct bm_validator *ret_v)
{
    *ret_v = (struct bm_validator){
        .kind = BLOCK_NODE,
        .judge = judge_node,
        .arg = t->value.size,
    };
}

static unsigned
depth_max(const struct btree *t)
{
    return t->internal_max ? BTREE_DEPTH_MAX_SMALL : BTREE_DEPTH_MAX;
}

int
btree_check_depth(const struct btree *t, unsigned depth, struct thin_error *err)
{
    if (depth >= depth_max(t))
        return thin_fail(err, -THIN_E_BAD_BLOCK, "tree of more than %u levels",
                         depth_max(t));
    return 0;
}

static int
check_span(const struct bm_block *block, unsigned depth, const struct btree_span *span,
           struct thin_error *err)
{
    const void *node = bm_data(block);
    uint32_t nr = node_nr_entries(node);

    if (nr == 0 && depth > 0)
        return thin_fail(err, -THIN_E_BAD_BLOCK, "node %" PRIu64 " is empty",
                         bm_location(block));
    if (nr && (node_key(node, 0) < span->lo || node_key(node, nr - 1) > span->last))
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "node %" PRIu64 " has keys %" PRIu64 " to %" PRIu64
                         ", its place is for %" PRIu64 " to %" PRIu64,
                         bm_location(block), node_key(node, 0), node_key(node, nr - 1),
                         span->lo, span->last);
    return 0;
}

int
btree_get_at(const struct btree *t, mblock_t b, unsigned depth,
             const struct btree_span *span, struct bm_block **ret_block,
             const char *where, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    struct bm_validator v;
    int r;

    btree_validator(t, &v);
    r = btree_check_depth(t, depth, err);
    if (r == 0)
        r = tm_read_lock_at(t->tm, b, &v, &block, where, err);
    if (r == 0)
        r = check_span(block, depth, span, err);
    if (r < 0)
        return r;
    *ret_block = block;
    block = NULL;
    return 0;
}

int
btree_shadow_at(const struct btree *t, mblock_t b, unsigned depth,
                const struct btree_span *span, struct bm_block **ret_block,
                const char *where, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    struct bm_validator v;
    bool inc_children = false;
    int r;

    btree_validator(t, &v);
    r = btree_check_depth(t, depth, err);
    if (r == 0)
        r = tm_shadow_block_at(t->tm, b, &v, &block, &inc_children, where, err);
    if (r == 0)
        r = check_span(block, depth, span, err);
    if (r == 0 && inc_children)
        r = btree_inc_entries(t, bm_data(block), 0, node_nr_entries(bm_data(block)), err);
    if (r < 0)
        return r;
    *ret_block = block;
    block = NULL;
    return 0;
}

int
btree_shadow_child_at(const struct btree *t, struct bm_block *node, uint32_t i,
                      unsigned depth, const struct btree_span *span,
                      struct bm_block **ret_block, const char *where,
                      struct thin_error *err)
{
    struct btree_span child_span = btree_child_span(bm_data(node), i, span);
    int r;

    r = btree_shadow_at(t, node_value64(bm_data(node), i), depth + 1, &child_span,
                        ret_block, where, err);
    if (r == 0)
        store_le64(node_value_rw(bm_data_rw(node), i), bm_location(*ret_block));
    return r;
}

int
btree_inc_entries(const struct btree *t, const void *node, uint32_t begin, uint32_t end,
                  struct thin_error *err)
{
    if (begin == end)
        return 0;
    if (node_is_leaf(node))
        return t->value.inc ? t->value.inc(t->value.context, node_value(node, begin),
                                           end - begin, err)
                            : 0;
    for (uint32_t i = begin; i < end; i++) {
        int r = tm_inc(t->tm, node_value64(node, i), 1, err);

        if (r < 0)
            return r;
    }
    return 0;
}

int
btree_dec_values(const struct btree *t, const void *leaf, uint32_t begin, uint32_t end,
                 struct thin_error *err)
{
    if (begin == end || !t->value.dec)
        return 0;
    return t->value.dec(t->value.context, node_value(leaf, begin), end - begin, err);
}

int
btree_same_shape(const struct bm_block *a, const struct bm_block *b,
                 struct thin_error *err)
{
    const void *x = bm_data(a), *y = bm_data(b);

    if (node_is_leaf(x) != node_is_leaf(y) ||
        node_max_entries(x) != node_max_entries(y) ||
        node_value_size(x) != node_value_size(y))
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "neighbour nodes %" PRIu64 " and %" PRIu64
                         " are of different kinds",
                         bm_location(a), bm_location(b));
    return 0;
}

void
btree_copy_entries(void *to, uint32_t to_i, const void *from, uint32_t from_i,
                   uint32_t nr)
{
    THIN_ASSERT(to_i + nr <= node_max_entries(to));
    THIN_ASSERT(from_i + nr <= node_max_entries(from));
    memmove((uint8_t *)to + NODE_KEYS + 8 * (size_t)to_i,
            (const uint8_t *)from + NODE_KEYS + 8 * (size_t)from_i, 8 * (size_t)nr);
    memmove(node_value_rw(to, to_i), node_value(from, from_i),
            (size_t)node_value_size(to) * nr);
}

void
btree_open_gap(void *node, uint32_t i, uint32_t nr)
{
    uint32_t n = node_nr_entries(node);

    btree_copy_entries(node, i + nr, node, i, n - i);
    node_set_nr_entries(node, n + nr);
}

void
btree_delete_entries(void *node, uint32_t i, uint32_t nr)
{
    uint32_t n = node_nr_entries(node);

    btree_copy_entries(node, i, node, i + nr, n - i - nr);
    node_set_nr_entries(node, n - nr);
}

void
btree_even_out(void *left, void *right, uint32_t nr_left)
{
    uint32_t have = node_nr_entries(left);

    if (have < nr_left) {
        btree_copy_entries(left, have, right, 0, nr_left - have);
        btree_delete_entries(right, 0, nr_left - have);
    } else {
        btree_open_gap(right, 0, have - nr_left);
        btree_copy_entries(right, 0, left, nr_left, have - nr_left);
    }
    node_set_nr_entries(left, nr_left);
}

uint64_t
btree_change_need(const struct btree *t, uint64_t nr_entries, uint64_t nr_changes)
{
    uint64_t leaf_max = t->leaf_max ? t->leaf_max : node_max_entries_for(t->value.size);
    uint64_t internal_max =
        t->internal_max ? t->internal_max : node_max_entries_for(VALUE_SIZE_MAPPING);
    uint64_t nodes = nr_entries / (leaf_max / 3) + 1, need = 0;

    if (nr_changes == 0)
        return 0;
    /* A change touches a node, perhaps a sibling, and makes one more, on each level; but
       no level has more than its nodes before and after. One level for a new root. */
    for (;;) {
        need += min_u64(3 * nr_changes, 2 * nodes) + 1;
        if (nodes == 1)
            return need + 1;
        nodes = nodes == 2 ? 1 : nodes / (internal_max / 3) + 1;
    }
}

/* ---- create, clone, delete ---------------------------------------------------------------- */

int
btree_create(const struct btree *t, mblock_t *ret_root, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    struct bm_validator v;
    int r;

    btree_validator(t, &v);
    r = tm_new_block(t->tm, &v, &block, err);
    if (r < 0)
        return r;
    node_init(bm_data_rw(block), true,
              t->leaf_max ? t->leaf_max : node_max_entries_for(t->value.size),
              t->value.size);
    store_le64((uint8_t *)bm_data_rw(block) + 8, bm_location(block));
    *ret_root = bm_location(block);
    return 0;
}

int
btree_clone(const struct btree *t, mblock_t root, struct thin_error *err)
{
    return tm_inc(t->tm, root, 1, err);
}

/* LOCKS: at most BTREE_DEPTH_MAX deep */
static int
delete_node(const struct btree *t, mblock_t b, unsigned depth,
            const struct btree_span *span, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    const void *node;
    uint32_t count = 0;
    int r;

    r = btree_check_depth(t, depth, err);
    if (r == 0)
        r = tm_ref(t->tm, b, &count, err);
    if (r < 0)
        return r;
    if (count > 1)
        return tm_dec(t->tm, b, err);

    r = btree_get(t, b, depth, span, &block, err);
    if (r < 0)
        return r;
    node = bm_data(block);
    if (node_is_leaf(node)) {
        r = btree_dec_values(t, node, 0, node_nr_entries(node), err);
    } else {
        for (uint32_t i = 0; r == 0 && i < node_nr_entries(node); i++) {
            struct btree_span child_span = btree_child_span(node, i, span);

            r = delete_node(t, node_value64(node, i), depth + 1, &child_span, err);
        }
    }
    return r < 0 ? r : tm_dec(t->tm, b, err);
}

int
btree_delete(const struct btree *t, mblock_t root, struct thin_error *err)
{
    struct btree_span span = BTREE_SPAN_ALL;

    return delete_node(t, root, 0, &span, err);
}

/* ---- lookup --------------------------------------------------------------------------------- */

/*
 * Goes down to the leaf that covers `key`. *ret_span: the keys that the way leaves to
 * it; *ret_cover: the lowest key that would be looked for there (lower than span.lo on
 * the leftmost way, where lower keys are in no leaf).
 */
static int
find_leaf(const struct btree *t, mblock_t root, uint64_t key, struct bm_block **ret_leaf,
          struct btree_span *ret_span, uint64_t *ret_cover, struct thin_error *err)
{
    struct btree_span span = BTREE_SPAN_ALL;
    uint64_t cover = 0;
    mblock_t b = root;

    for (unsigned depth = 0;; depth++) {
        BLOCK_LOCK struct bm_block *block = NULL;
        const void *node;
        int r, i;

        r = btree_get(t, b, depth, &span, &block, err);
        if (r < 0)
            return r;
        node = bm_data(block);
        if (node_is_leaf(node)) {
            *ret_leaf = block;
            block = NULL;
            *ret_span = span;
            *ret_cover = cover;
            return 0;
        }
        i = node_lower_bound(node, key);
        if (i > 0)
            cover = node_key(node, (uint32_t)i);
        span = btree_child_span(node, i < 0 ? 0 : (uint32_t)i, &span);
        b = node_value64(node, i < 0 ? 0 : (uint32_t)i);
    }
}

int
btree_lookup(const struct btree *t, mblock_t root, uint64_t key, void *value,
             bool *ret_found, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *leaf = NULL;
    struct btree_span span;
    uint64_t cover;
    int r, i;

    r = find_leaf(t, root, key, &leaf, &span, &cover, err);
    if (r < 0)
        return r;
    i = node_lower_bound(bm_data(leaf), key);
    *ret_found = i >= 0 && node_key(bm_data(leaf), (uint32_t)i) == key;
    if (*ret_found)
        memcpy(value, node_value(bm_data(leaf), (uint32_t)i), t->value.size);
    return 0;
}

int
btree_lookup_next(const struct btree *t, mblock_t root, uint64_t key, uint64_t *ret_key,
                  void *value, bool *ret_found, struct thin_error *err)
{
    for (;;) {
        BLOCK_LOCK struct bm_block *leaf = NULL;
        struct btree_span span;
        const void *node;
        uint64_t cover;
        uint32_t i;
        int r;

        r = find_leaf(t, root, key, &leaf, &span, &cover, err);
        if (r < 0)
            return r;
        node = bm_data(leaf);
        r = node_lower_bound(node, key);
        i = r >= 0 && node_key(node, (uint32_t)r) == key ? (uint32_t)r
                                                         : (uint32_t)(r + 1);
        if (i < node_nr_entries(node)) {
            *ret_key = node_key(node, i);
            if (value)
                memcpy(value, node_value(node, i), t->value.size);
            *ret_found = true;
            return 0;
        }
        if (span.last == UINT64_MAX) {
            *ret_found = false;
            return 0;
        }
        key = span.last + 1; /* the next leaf's */
    }
}

int
btree_lowest(const struct btree *t, mblock_t root, uint64_t *ret_key, bool *ret_found,
             struct thin_error *err)
{
    return btree_lookup_next(t, root, 0, ret_key, NULL, ret_found, err);
}

int
btree_highest(const struct btree *t, mblock_t root, uint64_t *ret_key, bool *ret_found,
              struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *leaf = NULL;
    struct btree_span span;
    uint64_t cover;
    uint32_t nr;
    int r;

    r = find_leaf(t, root, UINT64_MAX, &leaf, &span, &cover, err);
    if (r < 0)
        return r;
    nr = node_nr_entries(bm_data(leaf));
    *ret_found = nr > 0;
    if (nr)
        *ret_key = node_key(bm_data(leaf), nr - 1);
    return 0;
}

int
btree_read_leaf(const struct btree *t, mblock_t root, uint64_t key,
                struct btree_entry64 *entries, uint32_t max_entries, uint32_t *ret_nr,
                uint64_t *ret_begin, uint64_t *ret_end, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *leaf = NULL;
    struct btree_span span;
    uint64_t cover;
    uint32_t nr;
    int r;

    THIN_ASSERT(t->value.size == 8);
    r = find_leaf(t, root, key, &leaf, &span, &cover, err);
    if (r < 0)
        return r;
    nr = node_nr_entries(bm_data(leaf));
    if (nr > max_entries)
        return thin_fail(err, -THIN_E_LIMIT,
                         "leaf %" PRIu64 " has %" PRIu32 " entries, room is for %" PRIu32,
                         bm_location(leaf), nr, max_entries);
    for (uint32_t i = 0; i < nr; i++)
        entries[i] = (struct btree_entry64){
            .key = node_key(bm_data(leaf), i),
            .value = node_value64(bm_data(leaf), i),
        };
    *ret_nr = nr;
    *ret_begin = cover;
    *ret_end = span.last == UINT64_MAX ? UINT64_MAX : span.last + 1;
    return 0;
}
