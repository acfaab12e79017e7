/*
 * Reads that run ahead of who wants them, on a few threads: a row of pieces, asked for
 * and taken in the same order, or taken as they come. While the taker judges one piece, the next ones come from
 * the disk, or from the page cache through another core; their checksums are looked at
 * where they are still in that core's cache.
 *
 * One owner; the threads touch nothing but the pieces they read and the lock here, and
 * call nothing but ops->read. They are made with the first piece, take no signals, and
 * end with ahead_destroy. Where none can be made the owner reads, which is slower.
 */
#ifndef THIN_CORE_OFFLINE_SOURCE_AHEAD_H
#define THIN_CORE_OFFLINE_SOURCE_AHEAD_H

#include "core/offline/source.h"

/* Of what may come from memory: 256 KiB, little for a core's cache. */
#define AHEAD_PIECE_BLOCKS 64u
/* Of what comes from a disk: 512 KiB; a disk delivers a tenth more than with half of it. */
#define AHEAD_PIECE_BLOCKS_MAX 128u
#define AHEAD_PIECES           16u /* of a row at once: 4 MiB in all */
#define AHEAD_THREADS          8u

struct ahead_piece {
    const mblock_t *blocks; /* ascending, within piece_blocks; borrowed */
    size_t nr;
    enum block_kind kind;              /* BLOCK_KINDS: nothing is checked */
    int code;                          /* of the read as a whole */
    uint8_t *bytes;                    /* from the first block on */
    int codes[AHEAD_PIECE_BLOCKS_MAX]; /* of block_check, if the read was good */
};

struct source_ahead;

typedef int ahead_read_fn(void *arg, uint64_t offset, void *buf, size_t len_bytes);

/*
 * -ENOMEM. Room for `nr_pieces` of `piece_blocks` at once. `from_disk`: every read is known to wait for a
 * disk, so that all threads take part and the owner reads only if there are none; if not,
 * one thread reads until a read turns out to be slow.
 */
int ahead_create(ahead_read_fn *read, void *arg, unsigned nr_pieces,
                 unsigned piece_blocks, bool from_disk, struct source_ahead **ret);
/* NULL is fine. What is asked for and not begun is forgotten. */
void ahead_destroy(struct source_ahead *a);

bool ahead_has_room(const struct source_ahead *a);
bool ahead_is_empty(const struct source_ahead *a);

/* Asks for `nr` blocks as one piece. Only when there is room. */
void ahead_ask(struct source_ahead *a, const mblock_t *blocks, size_t nr,
               enum block_kind kind);

/* The oldest piece, read; it lives until ahead_release. Only when not empty. */
const struct ahead_piece *ahead_take(struct source_ahead *a);
/* The oldest that is read, if any is: one read that takes long keeps nobody waiting. */
const struct ahead_piece *ahead_take_any(struct source_ahead *a);
void ahead_release(struct source_ahead *a);

/* What a read took, in microseconds: that of one that waited for a disk? */
uint64_t ahead_now_us(void);
bool ahead_is_slow(uint64_t us, size_t nr_blocks);

/* The last read waited for a disk. Only when empty. */
bool ahead_was_slow(const struct source_ahead *a);

/* Forgets all that was asked for, once nobody reads it any more. */
void ahead_drop(struct source_ahead *a);

#endif
