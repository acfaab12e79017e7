/*
 * Every block of a metadata device looked at once, whoever points to it: what repair
 * knows when the roots are lost. 32 bytes of memory for each block.
 */
#ifndef THIN_CORE_OFFLINE_SCAN_H
#define THIN_CORE_OFFLINE_SCAN_H

#include <stdbool.h>
#include <stdint.h>

#include "core/offline/source.h"

enum scan_kind {
    SCAN_NOTHING, /* not readable, no good checksum, or not a node of these trees */
    SCAN_INTERNAL,
    SCAN_LEAF,    /* 8-byte values: mappings, or the top level */
    SCAN_DETAILS, /* a leaf of details */
    SCAN_SUPERBLOCK,
    SCAN_MAP, /* a bitmap or index block */
};

struct scan_block {
    uint64_t first, last; /* keys, if nr > 0 */
    uint64_t total;       /* entries of leaves below; SCAN_UNKNOWN until asked */
    uint32_t time;        /* of a leaf: the latest of its mappings */
    uint16_t nr_at_time;  /* so many have it */
    uint16_t nr;
    uint8_t kind;
    uint8_t flags;
};

#define SCAN_UNKNOWN     UINT64_MAX
#define SCAN_INDEXES_MAX 64u /* index blocks that are weighed when none is named */

enum {
    SCAN_LIVE = 1,       /* the metadata space map says that it is in use */
    SCAN_REFERENCED = 2, /* a good internal node points to it */
    SCAN_TOP = 4,        /* a leaf that can be one of the top level */
    SCAN_REACHED = 8,    /* for the caller */
};

struct scan {
    struct meta_source *src;
    mblock_t nr_blocks;
    struct scan_block *blocks;
    bool counts_known; /* SCAN_LIVE means something: all bitmaps could be read */
    mblock_t indexes[SCAN_INDEXES_MAX]; /* index blocks of any age */
    unsigned nr_indexes;
};

/*
 * `index_block`: of the metadata space map, or 0; if it cannot be used, that one of those
 * found is taken which knows the latest details, the latest mappings and the most good
 * nodes.
 * -ENOMEM, -THIN_E_CANCELLED.
 */
int scan_run(struct scan *scan, struct meta_source *src, mblock_t nr_blocks,
             mblock_t index_block);
void scan_fini(struct scan *scan);

/* Entries of all leaves below b, as far as they can be reached. */
uint64_t scan_total(struct scan *scan, mblock_t b);

#endif
