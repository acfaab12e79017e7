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
    /* The latest of the mappings, and how many have it: of a leaf its own (at most 252), of
       an internal node those below, with its total, and at most UINT16_MAX. */
    uint32_t time;
    uint16_t nr_at_time;
    uint16_t nr;
    uint8_t kind;
    uint8_t flags;
};

#define SCAN_UNKNOWN UINT64_MAX
/* Index blocks that are weighed when none is named; and blocks looked at for all of them. */
#define SCAN_INDEXES_MAX 1024u
#define SCAN_WEIGHED_MAX (1ull << 28)

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
    mblock_t *indexes; /* index blocks of any age, in rising order */
    unsigned nr_indexes;
};

/*
 * `index_block`: of the metadata space map, or 0; if it cannot be used, that one of those
 * found is taken at which the rising order of allocation ends; where that is not told, which
 * knows the latest details, the latest mappings and the most good nodes.
 * -ENOMEM, -THIN_E_CANCELLED.
 */
int scan_run(struct scan *scan, struct meta_source *src, mblock_t nr_blocks,
             mblock_t index_block);
void scan_fini(struct scan *scan);

/* Entries of all leaves below b, as far as they can be reached. */
uint64_t scan_total(struct scan *scan, mblock_t b);

/*
 * Which of two states of a pool, or of a part of it, is the later one: all that is known
 * of a state without a transaction that leads to it. What is not known, or not
 * comparable, is 0 in both.
 */
struct scan_age {
    uint64_t time, trans_id; /* by the details */
    /* The clock never goes back: who has mappings of a later time, or more of them, is the
       later one. */
    uint64_t mapping_time, nr_at_time;
    uint64_t mapped; /* by the details: pools grow more often than they shrink */
    int64_t nodes;   /* live blocks that are nodes, less those that are nothing known */
};
bool scan_is_later(const struct scan_age *a, const struct scan_age *b);

/* What the mappings below a root tell of its age; the rest is 0. */
struct scan_age scan_age_of_root(struct scan *scan, mblock_t root);

#endif
