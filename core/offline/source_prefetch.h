/*
 * Brings blocks that will all be read, nobody knows in which order, into the page cache
 * in the order of the disk, a few pieces ahead of itself: a walk then finds what it comes
 * to already there, or on its way. One thread; it reads no contents, so that what it is
 * told may be wrong.
 */
#ifndef THIN_CORE_OFFLINE_SOURCE_PREFETCH_H
#define THIN_CORE_OFFLINE_SOURCE_PREFETCH_H

#include "core/offline/source.h"

#define PREFETCH_PIECE_BLOCKS 64u
/* Pieces on their way at once: few, as who needs one block now waits behind them. */
#define PREFETCH_DEPTH      2u
#define PREFETCH_BLOCKS_MAX (512u << 10) /* 2 GiB: what a page cache can keep */

struct source_prefetch;

/*
 * NULL where the source cannot prefetch, there is no memory or no thread: nothing is
 * lost but time. `wanted` has one bit for each block below `nr_blocks`, the lowest bit of
 * a byte first; it is not needed any more afterwards.
 */
struct source_prefetch *prefetch_start(struct meta_source *src, const uint8_t *wanted,
                                       mblock_t nr_blocks);
/* Ends it at its next piece. NULL is fine. */
void prefetch_end(struct source_prefetch *p);

#endif
