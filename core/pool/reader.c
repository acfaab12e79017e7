/*
 * A fragment that reads: holes are zeros, runs of contiguous blocks are one request, a
 * part of a sector goes through the fragment's own sector.
 */
#include "core/pool/io_private.h"

static void
read_done(struct volume_frag *frag, int result)
{
    if (result < 0) {
        frag_end(frag, result);
        return;
    }
    if (frag->partial)
        io_copy_out(frag->io, frag->begin - frag->io->offset,
                    frag->sector + frag->part_begin, frag->part_end - frag->part_begin);
    frag_step_done(frag);
}

void
read_step(struct volume_frag *frag)
{
    struct pool *pool = frag->pool;
    struct volume_core *core = frag->core;
    vblock_t v = pool_vblock(pool, frag->begin);
    uint64_t slot = mapcache_get(core, v), block_end = (v + 1) * pool->block_size;
    uint64_t in_block, place, len;

    if (slot == MAP_UNKNOWN) {
        frag_lookup(frag, v);
        return;
    }
    if (!slot_mapped(slot)) {
        frag->step_end = min_u64(block_end, frag->end);
        io_zero_fill(frag->io, frag->begin - frag->io->offset,
                     frag->step_end - frag->begin);
        frag_step_done(frag);
        return;
    }
    in_block = pool_block_offset(pool, frag->begin);
    place = mapping_block(slot) * pool->block_size + in_block;
    len = 0;
    if (frag->begin % SECTOR_SIZE == 0) {
        len = min_u64(block_end, frag->end) - frag->begin;
        for (uint64_t i = 1; frag->begin + len < frag->end; i++) {
            uint64_t next = mapcache_get(core, v + i);

            if (!slot_mapped(next) || mapping_block(next) != mapping_block(slot) + i)
                break;
            len = min_u64(len + pool->block_size, frag->end - frag->begin);
        }
        len = round_down_u64(len, SECTOR_SIZE);
        if (len > 0)
            len = frag_slice(frag, frag->begin, len);
    }
    if (len > 0) {
        frag->step_begin = frag->begin;
        frag->step_end = frag->begin + len;
        frag_submit(frag, DEVICE_READ, 0, place, len, frag->iov + 1, frag->nr_iov, false,
                    read_done);
        return;
    }
    /* A part of a sector, or a whole one scattered over many pieces. */
    frag->partial = true;
    frag->part_begin = (unsigned)(frag->begin % SECTOR_SIZE);
    frag->step_begin = frag->begin - frag->part_begin;
    frag->part_end = (unsigned)min_u64(SECTOR_SIZE, frag->end - frag->step_begin);
    frag->iov[0].iov_base = frag->sector;
    frag->iov[0].iov_len = SECTOR_SIZE;
    frag_submit(frag, DEVICE_READ, 0, place - frag->part_begin, SECTOR_SIZE, frag->iov, 1,
                false, read_done);
}
