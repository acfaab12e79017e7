/* The B-tree's inside, for its files. */
#ifndef THIN_CORE_PERSIST_BTREE_PRIVATE_H
#define THIN_CORE_PERSIST_BTREE_PRIVATE_H

#include "core/persist/btree.h"

/*
 * What the way down from the root says of a node: its keys lie in [lo, last]. Each node
 * is held against it, so keys of different children never mix, no node can be found
 * twice in one tree, and a tree whose pointers run in a circle ends in an error.
 */
struct btree_span {
    uint64_t lo, last;
};
#define BTREE_SPAN_ALL ((struct btree_span){.lo = 0, .last = UINT64_MAX})

static inline struct btree_span
btree_child_span(const void *node, uint32_t i, const struct btree_span *span)
{
    return (struct btree_span){
        .lo = node_key(node, i),
        .last = i + 1 < node_nr_entries(node) ? node_key(node, i + 1) - 1 : span->last,
    };
}

/* There may be a node at `depth` (root: 0). */
int btree_check_depth(const struct btree *t, unsigned depth, struct thin_error *err);

/* Read-locks a node and holds it against its span. */
int btree_get_at(const struct btree *t, mblock_t b, unsigned depth,
                 const struct btree_span *span, struct bm_block **ret_block,
                 const char *where, struct thin_error *err);
#define btree_get(t, b, depth, span, ret, err) \
    btree_get_at(t, b, depth, span, ret, BM_HERE, err)

/* The same for changing: shadows, and counts what a copy of a shared node points to. */
int btree_shadow_at(const struct btree *t, mblock_t b, unsigned depth,
                    const struct btree_span *span, struct bm_block **ret_block,
                    const char *where, struct thin_error *err);
#define btree_shadow(t, b, depth, span, ret, err) \
    btree_shadow_at(t, b, depth, span, ret, BM_HERE, err)

/* As btree_shadow for child i of a locked node, whose pointer follows. */
int btree_shadow_child_at(const struct btree *t, struct bm_block *node, uint32_t i,
                          unsigned depth, const struct btree_span *span,
                          struct bm_block **ret_block, const char *where,
                          struct thin_error *err);
#define btree_shadow_child(t, node, i, depth, span, ret, err) \
    btree_shadow_child_at(t, node, i, depth, span, ret, BM_HERE, err)

/* One pointer more, or less, to what entries [begin, end) of the node point to. */
int btree_inc_entries(const struct btree *t, const void *node, uint32_t begin,
                      uint32_t end, struct thin_error *err);
int btree_dec_values(const struct btree *t, const void *leaf, uint32_t begin,
                     uint32_t end, struct thin_error *err);

/* Two nodes that may exchange entries: same kind, room and value size. */
int btree_same_shape(const struct bm_block *a, const struct bm_block *b,
                     struct thin_error *err);

/* Entries within nodes; the caller knows that there is room. */
void btree_copy_entries(void *to, uint32_t to_i, const void *from, uint32_t from_i,
                        uint32_t nr);
void btree_open_gap(void *node, uint32_t i, uint32_t nr);
void btree_delete_entries(void *node, uint32_t i, uint32_t nr);
/* Moves entries between two neighbours until the left one has `nr_left`. */
void btree_even_out(void *left, void *right, uint32_t nr_left);

/* ---- btree_remove.c, shared with trim ---------------------------------------------------- */

/* Copies a one-entry root's only child over it. */
int btree_collapse(const struct btree *t, struct bm_block *node, unsigned depth,
                   struct thin_error *err);
/* Merges child i with a sibling, or evens the two out; `node` has two entries or more. */
int btree_rebalance(const struct btree *t, struct bm_block *node, uint32_t i,
                    unsigned depth, const struct btree_span *span,
                    struct thin_error *err);

/* Non-root nodes have at least so many entries. */
static inline uint32_t
btree_min_entries(const void *node)
{
    return node_max_entries(node) / 3;
}

/*
 * An upper bound of the blocks that `nr_changes` inserts and removes may allocate in
 * one transaction, in a tree of at most `nr_entries` before and after.
 */
uint64_t btree_change_need(const struct btree *t, uint64_t nr_entries,
                           uint64_t nr_changes);

#endif
