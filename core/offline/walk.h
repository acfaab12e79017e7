/*
 * The damage-tolerant walk: any number of trees of one kind together, every distinct
 * node read and judged once, in block order, however many parents share it.
 *
 * Nodes are taken by height above the leaves, the highest first: a node that two
 * volumes share may stand at different depths below their roots, but it always has
 * the same height. So when a node is read, all its parents have been seen, and what
 * they say of its keys has been put together: the greatest lower and the least upper
 * bound. The same holds for who owns it.
 *
 *      walk_init -> walk_trees (once for each kind) -> walk_sum -> ... -> walk_fini
 *
 * Nothing on disk is trusted: pointers are held against the size, a node in two roles
 * or at two heights is a finding, the height is limited, and no node is entered twice,
 * so cycles end. Memory: 5 bytes for each metadata block, and sizeof(struct walk_node)
 * for each distinct node.
 */
#ifndef THIN_CORE_OFFLINE_WALK_H
#define THIN_CORE_OFFLINE_WALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/offline/counts.h"
#include "core/offline/report.h"
#include "core/offline/source.h"
#include "core/ondisk/node.h"

#define WALK_HEIGHT_MAX 12u /* more than any valid tree: 4161600 blocks, fan-out 84 */
#define WALK_NONE       UINT32_MAX

enum walk_tree {
    WALK_DETAILS,
    WALK_TOP,
    WALK_MAPPING,
    WALK_DATA_INDEX,
    WALK_DATA_COUNTS,
    WALK_METADATA_COUNTS,
    WALK_NR_TREES
};

/* Bytes of a leaf's value; where its findings belong. */
uint32_t walk_tree_value_size(enum walk_tree tree);
enum report_place walk_tree_place(enum walk_tree tree);

enum {
    WALK_MANY = 1,       /* more than one owner reaches it */
    WALK_CHILD = 2,      /* some internal node points to it: it must be well filled */
    WALK_DAMAGED = 4,    /* its own contents cannot be used, or some of its pointers */
    WALK_PARTIAL = 8,    /* something below it is damaged */
    WALK_MISPLACED = 16, /* reached in another role as well */
    WALK_MET = 32,       /* one of those known: it is not read */
};

struct walk_node {
    mblock_t block;
    uint64_t lo, last; /* keys below must lie in [lo, last] */
    uint64_t total;    /* entries of leaves below, after walk_sum */
    uint32_t parent;   /* the first that led here, or WALK_NONE for a root */
    uint32_t owner;    /* the least owner that reaches it */
    uint8_t height;    /* 0: a leaf */
    uint8_t tree;
    uint8_t flags;
};

struct walk_root {
    mblock_t block;
    uint32_t owner; /* the caller's number for the tree */
};

/*
 * Called with each good leaf, in no promised order of keys. `node` is valid during the
 * call. Not 0 ends the walk.
 */
typedef int walk_leaf_fn(void *arg, struct walk_node *node, const uint8_t *data);

/* A leaf of mappings whose contents were judged, and used, before the walk comes to it. */
struct walk_known {
    uint64_t first, last; /* keys */
    uint32_t block;
    uint32_t nr : 15;  /* entries, not 0 */
    uint32_t max : 15; /* entries */
    uint32_t
        met : 1; /* the walk came to it as a leaf of mappings, and its place is good */
};

struct walk {
    struct meta_source *src;
    struct report *rep; /* may be NULL: then damage is only marked */
    struct counts refs; /* pointers found to each metadata block */
    mblock_t nr_blocks; /* pointers must lie below */
    bool lax;           /* nodes may be less than a third full */
    struct walk_node *nodes;
    uint32_t nr_nodes, room;
    uint32_t *index_of; /* by block: record + 1, 0 for none */
    uint8_t *height_of; /* by block, while heights are looked for */
    /* In rising order of blocks; the caller's. They are not read, nor handed to `leaf`. */
    struct walk_known *known;
    size_t nr_known;
    uint64_t nr_damaged;
};

/* -ENOMEM. */
int walk_init(struct walk *w, struct meta_source *src, mblock_t nr_blocks,
              struct report *rep);
void walk_fini(struct walk *w);

/*
 * Walks the trees of one kind from all their roots. 0 also when there is damage;
 * negative: -ENOMEM, -THIN_E_CANCELLED, or what `leaf` said.
 */
int walk_trees(struct walk *w, enum walk_tree tree, const struct walk_root *roots,
               size_t nr_roots, walk_leaf_fn *leaf, void *arg);

/*
 * Fills `total` and WALK_PARTIAL of the internal nodes of `tree` from below. The
 * leaves' totals must have been set (walk_trees sets them to nr_entries).
 */
int walk_sum(struct walk *w, enum walk_tree tree);

/* Counts a pointer to a block that is no node (bitmaps, the held superblock). False
   and a finding if it lies outside. */
bool walk_count_block(struct walk *w, mblock_t b, enum report_place place,
                      const char *what);

/* The record of a block, or NULL. */
struct walk_node *walk_find(const struct walk *w, mblock_t b);

/* "(12 < 7 < 3)": the way from a node up to its root, for words. Returns `buf`. */
const char *walk_path(const struct walk *w, const struct walk_node *node, char *buf,
                      size_t len);

#endif
