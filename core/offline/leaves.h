/*
 * One tree in the order of its keys: first the list of its leaves, from the internal
 * nodes alone, then the leaves themselves, read in windows whose blocks are sorted.
 */
#ifndef THIN_CORE_OFFLINE_LEAVES_H
#define THIN_CORE_OFFLINE_LEAVES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/offline/leaf_cache.h"
#include "core/offline/source.h"

#define LEAVES_WINDOW 1024u /* leaves read ahead at once: 4 MiB */

struct leaf_ref {
    mblock_t block;
    uint64_t lo, last; /* what its parents allow */
};

/* Adds one; -ENOMEM. */
struct leaf_list;
int leaf_list_add(struct leaf_list *list, const struct leaf_ref *ref);

struct leaf_list {
    struct leaf_ref *refs;
    size_t nr, room;
};

struct tree_shape {
    struct meta_source *src;
    mblock_t nr_blocks;   /* pointers lie below */
    uint32_t value_size;  /* of its leaves */
    bool lenient;         /* what is damaged is left out; otherwise it is an error */
    uint64_t *nr_skipped; /* lenient: counts nodes left out; may be NULL */
    /* Lenient: told of each node left out, in order of keys within a call; may be NULL. */
    void (*skipped)(void *arg, const struct leaf_ref *ref);
    void *skipped_arg;
    struct leaf_cache *cache; /* for one cursor at a time; may be NULL */
};

/*
 * Appends the leaves below `root`. -ENOMEM, -THIN_E_CHECKSUM, -THIN_E_BAD_BLOCK or the
 * device's code. A hostile tree that reaches the same nodes over and over ends in
 * -THIN_E_LIMIT when there are more leaves than metadata blocks.
 */
int leaves_list(const struct tree_shape *tree, mblock_t root, struct leaf_list *list,
                struct thin_error *err);
/* The same for a subtree whose keys must lie in ref->lo to ref->last. */
int leaves_list_below(const struct tree_shape *tree, const struct leaf_ref *ref,
                      struct leaf_list *list, struct thin_error *err);
void leaf_list_fini(struct leaf_list *list);

/* How many levels stand above the leaves of a tree: down its first children. */
int leaves_height(const struct tree_shape *tree, mblock_t root, unsigned *ret_height,
                  struct thin_error *err);
/* Takes the nodes of one level, all internal, and puts their children in their place. */
int leaves_descend(const struct tree_shape *tree, struct leaf_list *level,
                   struct thin_error *err);

/*
 * Calls `seen` with every leaf of the list in its order, judged and held against its
 * range; not 0 ends the row.
 */
typedef int leaf_seen_fn(void *arg, const struct leaf_ref *ref, const uint8_t *data);
int leaves_read(const struct tree_shape *tree, const struct leaf_list *list,
                leaf_seen_fn *seen, void *arg, struct thin_error *err);

/* The same one leaf at a time: init, next until *ret_data is NULL, fini in any case. */
struct leaf_cursor {
    const struct tree_shape *tree;
    const struct leaf_list *list;
    size_t at;         /* next leaf of the list */
    size_t begin, end; /* what the window holds */
    uint8_t *bytes;
    const uint8_t **data; /* into `bytes`, or the cache */
    int *codes;           /* of reading and checksum; 1: judged already */
    struct leaf_slot *slots;
    mblock_t *blocks;
};
int leaf_cursor_init(struct leaf_cursor *cur, const struct tree_shape *tree,
                     const struct leaf_list *list, struct thin_error *err);
void leaf_cursor_fini(struct leaf_cursor *cur);
/* The data lives until the next call. Lenient: damaged leaves are passed over. */
int leaf_cursor_next(struct leaf_cursor *cur, const struct leaf_ref **ret_ref,
                     const uint8_t **ret_data, struct thin_error *err);

/* Both in one. */
int leaves_each(const struct tree_shape *tree, mblock_t root, leaf_seen_fn *seen,
                void *arg, struct thin_error *err);

#endif
