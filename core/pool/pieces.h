/*
 * Pieces of blocks that were discarded or zeroed one after another: when a block has
 * nothing left it is unmapped. Remembered in memory only, for volumes that are open, of
 * PIECES_MAX blocks of a pool; the ones not touched for longest are forgotten.
 *
 * A piece is noted when its request has ended, and forgotten when a write over it is
 * handed out; the unmapping looks once more in the step that makes it. So it never takes
 * what was written after the discard. A block is cut into 256 units; what covers a unit
 * in part is not noted. One thread: the pool's.
 */
#ifndef THIN_CORE_POOL_PIECES_H
#define THIN_CORE_POOL_PIECES_H

#include "core/pool/io_private.h"

#define PIECES_MAX 4096u

int pieces_create(struct pool *pool); /* -ENOMEM */
void pieces_destroy(struct pool *pool);
/* The volume closes. */
void pieces_drop_core(struct volume_core *core);

/* A discard or write-zeroes has ended: notes its pieces. True: it made blocks empty, and
   goes on with fragments that unmap them. Once for each request. */
bool pieces_note(struct volume_io *io);
/* In the step that unmaps `v`: nothing was written there since. */
bool pieces_whole(struct volume_core *core, vblock_t v);
void pieces_forget(struct volume_core *core, vblock_t v);

void pieces_written_slow(struct volume_core *core, uint64_t offset, uint64_t len);
/* A write of [offset, offset + len) is handed out. */
static inline void
pieces_written(struct volume_core *core, uint64_t offset, uint64_t len)
{
    if (core->nr_pieces)
        pieces_written_slow(core, offset, len);
}

#endif
