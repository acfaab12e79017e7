/*
 * Trim: removes a range of keys from the highest down, leaf by leaf. A leaf that lies in
 * the range whole goes with one entry of its parent; nodes on the way are kept filled by
 * the rules of remove. So the tree is an ordinary one after every step.
 */
#include <inttypes.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/persist/btree_private.h"

#define TRIM_VALUES 64u /* given back one by one in one call: more is for the next */
#define TRIM_CACHE  4u  /* this part of the clean frames may be leaves of one call */

struct trim {
    const struct btree *t;
    mblock_t root;
    uint64_t begin, end; /* what is left to do; end falls */
    uint64_t above;      /* first key at or above the range, if has_above */
    bool has_above;
    uint32_t budget, used;
    uint32_t values; /* given back one by one */
    uint64_t removed;
};

/* ---- fetching ahead ------------------------------------------------------------------- */

/*
 * Reads up to `*left` leaves of [begin, end) from the right, so that those that are
 * missing are missed together. 0, or -THIN_E_WOULD_BLOCK if any is.
 * LOCKS: at most BTREE_DEPTH_MAX deep
 */
static int
fetch_ahead(const struct trim *trim, mblock_t b, unsigned depth,
            const struct btree_span *span, uint32_t *left, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    const void *node;
    int result = 0, r;

    r = btree_get(trim->t, b, depth, span, &block, err);
    if (r < 0) {
        *left -= *left > 0;
        return r;
    }
    node = bm_data(block);
    if (node_is_leaf(node)) {
        *left -= *left > 0;
        return 0;
    }
    for (uint32_t i = node_nr_entries(node); i-- > 0 && *left > 0;) {
        struct btree_span child_span = btree_child_span(node, i, span);

        if (child_span.lo >= trim->end)
            continue;
        if (child_span.last < trim->begin)
            break;
        r = fetch_ahead(trim, node_value64(node, i), depth + 1, &child_span, left, err);
        if (r < 0)
            result = r;
        if (r < 0 && r != -THIN_E_WOULD_BLOCK)
            break;
    }
    return result;
}

/* ---- counting a shared subtree --------------------------------------------------------- */

/*
 * Entries below a node, from its leaves' headers; false in *ret_all: more nodes than
 * the budget has left.
 * LOCKS: at most BTREE_DEPTH_MAX deep
 */
static int
count_entries(const struct trim *trim, mblock_t b, unsigned depth,
              const struct btree_span *span, uint32_t *nodes_left, uint64_t *count,
              bool *ret_all, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    const void *node;
    int r;

    if (*nodes_left == 0) {
        *ret_all = false;
        return 0;
    }
    (*nodes_left)--;
    r = btree_get(trim->t, b, depth, span, &block, err);
    if (r < 0)
        return r;
    node = bm_data(block);
    if (node_is_leaf(node)) {
        *count += node_nr_entries(node);
        return 0;
    }
    /* The header tells already that it cannot fit. */
    if (node_nr_entries(node) > *nodes_left) {
        *ret_all = false;
        return 0;
    }
    for (uint32_t i = 0; *ret_all && i < node_nr_entries(node); i++) {
        struct btree_span child_span = btree_child_span(node, i, span);

        r = count_entries(trim, node_value64(node, i), depth + 1, &child_span, nodes_left,
                          count, ret_all, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- one step ------------------------------------------------------------------------------- */

/* The highest key of the range, if any is left. */
static int
find_highest(const struct trim *trim, uint64_t *ret_key, bool *ret_found,
             struct thin_error *err)
{
    uint64_t last = trim->end - 1;
    mblock_t b = trim->root;
    struct btree_span span = BTREE_SPAN_ALL;

    for (unsigned depth = 0;; depth++) {
        BLOCK_LOCK struct bm_block *block = NULL;
        const void *node;
        int r, i;

        r = btree_get(trim->t, b, depth, &span, &block, err);
        if (r < 0)
            return r;
        node = bm_data(block);
        i = node_lower_bound(node, last);
        if (i < 0) {
            /* Nothing so low below here; what lies left of it ends at span.lo - 1. */
            if (depth == 0 || span.lo == 0 || span.lo - 1 < trim->begin) {
                *ret_found = false;
                return 0;
            }
            last = span.lo - 1;
            b = trim->root;
            span = BTREE_SPAN_ALL;
            depth = UINT32_MAX; /* from the root again */
            continue;
        }
        if (node_is_leaf(node)) {
            *ret_key = node_key(node, (uint32_t)i);
            *ret_found = *ret_key >= trim->begin;
            return 0;
        }
        span = btree_child_span(node, (uint32_t)i, &span);
        b = node_value64(node, (uint32_t)i);
    }
}

/* The leaf's entries in the range, as many as may go without leaving it poor. */
static int
trim_leaf(struct trim *trim, struct bm_block *leaf, unsigned depth,
          struct thin_error *err)
{
    const void *node = bm_data(leaf);
    uint32_t nr = node_nr_entries(node), min = btree_min_entries(node);
    int below = trim->begin ? node_lower_bound(node, trim->begin - 1) : -1;
    uint32_t from = (uint32_t)(below + 1);
    uint32_t to = (uint32_t)(node_lower_bound(node, trim->end - 1) + 1);
    int r;

    THIN_ASSERT(from < to);
    if (depth > 0) {
        /* At least one goes: it was made rich enough before it was entered. */
        uint32_t spare = nr > min + 1 ? nr - min : 1;

        if (nr == 1)
            return thin_fail(err, -THIN_E_BAD_BLOCK,
                             "leaf %" PRIu64 " has one entry and no siblings",
                             bm_location(leaf));
        if (to - from > spare)
            from = to - spare;
    }
    r = btree_dec_values(trim->t, node, from, to, err);
    if (r < 0)
        return r;
    trim->values += to - from;
    trim->end = node_key(node, from);
    trim->removed += to - from;
    btree_delete_entries(bm_data_rw(leaf), from, to - from);
    return 0;
}

/*
 * Drops child i of `node` whole if it lies in the range and is a leaf, or a shared
 * subtree that can be counted. *ret_poor: the child must be made richer before it is
 * entered.
 */
static int
try_drop(struct trim *trim, struct bm_block *node, uint32_t i, unsigned depth,
         const struct btree_span *span, bool *ret_dropped, bool *ret_poor,
         struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    struct btree_span child_span = btree_child_span(bm_data(node), i, span);
    mblock_t b = node_value64(bm_data(node), i);
    const void *child;
    uint32_t nr = node_nr_entries(bm_data(node)), count;
    uint64_t entries = 0, first;
    bool inside, all = true;
    int r;

    *ret_dropped = false;
    r = tm_ref(trim->t->tm, b, &count, err);
    if (r == 0)
        r = btree_get(trim->t, b, depth + 1, &child_span, &block, err);
    if (r < 0)
        return r;
    child = bm_data(block);
    first = node_key(child, 0);
    *ret_poor = nr > 1 && node_nr_entries(child) <= btree_min_entries(child);
    inside = first >= trim->begin && (!trim->has_above || trim->above > child_span.last);
    if (!inside || nr <= (depth ? btree_min_entries(bm_data(node)) : 1))
        return 0;

    if (node_is_leaf(child)) {
        entries = node_nr_entries(child);
        trim->used++;
        if (count == 1) {
            trim->values += node_nr_entries(child);
            r = btree_dec_values(trim->t, child, 0, node_nr_entries(child), err);
        }
    } else if (count > 1) {
        uint32_t nodes_left = trim->budget > trim->used ? trim->budget - trim->used : 0;
        uint32_t before = nodes_left;

        bm_unlock(block);
        block = NULL;
        r = count_entries(trim, b, depth + 1, &child_span, &nodes_left, &entries, &all,
                          err);
        trim->used += before - nodes_left;
    } else {
        return 0;
    }
    if (r < 0 || !all)
        return r;
    r = tm_dec(trim->t->tm, b, err);
    if (r < 0)
        return r;
    btree_delete_entries(bm_data_rw(node), i, 1);
    trim->end = first;
    trim->removed += entries;
    *ret_dropped = true;
    return 0;
}

/* Removes what it can around `key`, the highest of the range. */
static int
trim_once(struct trim *trim, uint64_t key, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *node = NULL;
    struct btree_span span = BTREE_SPAN_ALL;
    unsigned depth = 0;
    int r;

    r = btree_shadow(trim->t, trim->root, 0, &span, &node, err);
    if (r < 0)
        return r;
    trim->root = bm_location(node);

    while (!node_is_leaf(bm_data(node))) {
        BLOCK_LOCK struct bm_block *child = NULL;
        bool dropped, poor;
        uint32_t i;

        if (depth == 0 && node_nr_entries(bm_data(node)) == 1) {
            r = btree_collapse(trim->t, node, depth, err);
            if (r < 0)
                return r;
            trim->used++;
            continue;
        }
        i = (uint32_t)node_lower_bound(bm_data(node), key);
        r = try_drop(trim, node, i, depth, &span, &dropped, &poor, err);
        if (r < 0 || dropped)
            return r;
        if (poor) {
            r = btree_rebalance(trim->t, node, i, depth, &span, err);
            if (r < 0)
                return r;
            trim->used += 2;
            continue;
        }
        r = btree_shadow_child(trim->t, node, i, depth, &span, &child, err);
        if (r < 0)
            return r;
        span = btree_child_span(bm_data(node), i, &span);
        bm_unlock(node);
        node = child;
        child = NULL;
        depth++;
    }
    trim->used++;
    return trim_leaf(trim, node, depth, err);
}

int
btree_trim(const struct btree *t, mblock_t root, uint64_t begin, uint64_t end,
           uint32_t budget, mblock_t *ret_root, uint64_t *ret_removed, uint64_t *ret_end,
           struct thin_error *err)
{
    /* All that one call reads must fit into the cache at the same time. */
    uint32_t room = bm_clean_max(tm_bm(t->tm)) / TRIM_CACHE;
    struct trim trim = {.t = t,
                        .root = root,
                        .begin = begin,
                        .end = end,
                        .budget = budget < room ? budget : room};
    struct btree_span span = BTREE_SPAN_ALL;
    uint32_t leaves = trim.budget;
    uint64_t key = 0;
    bool found;
    int r = 0;

    if (begin < end) {
        r = fetch_ahead(&trim, root, 0, &span, &leaves, err);
        if (r == 0)
            r = btree_lookup_next(t, root, end, &trim.above, NULL, &trim.has_above, err);
    }
    while (r == 0 && trim.end > begin) {
        r = find_highest(&trim, &key, &found, err);
        if (r == 0 && !found)
            trim.end = begin;
        if (r < 0 || !found)
            break;
        if ((trim.used >= trim.budget || trim.values >= TRIM_VALUES) && trim.removed)
            break;
        r = trim_once(&trim, key, err);
    }
    if (r < 0)
        return r;
    *ret_root = trim.root;
    *ret_removed = trim.removed;
    *ret_end = begin < end ? trim.end : begin;
    return 0;
}
