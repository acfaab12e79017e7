/*
 * A fragment that reads: holes are zeros, runs of contiguous blocks are one request, a
 * part of a sector goes through the fragment's own sector.
 */
#include "core/pool/origin.h"

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

/* Holes in a row, as far as the origin reaches; not empty. */
static uint64_t
origin_end(struct volume_frag *frag, vblock_t v)
{
    uint64_t bs = frag->pool->block_size, end = (v + 1) * bs;

    while (end < frag->end && mapcache_get(frag->core, ++v) == MAP_HOLE)
        end += bs;
    return min_u64(end, min_u64(frag->end, frag->core->origin_size));
}

static void
read_submit(struct volume_frag *frag, bool from_origin, uint64_t place, uint64_t len,
            struct iovec *iov, unsigned nr_iov)
{
    if (from_origin)
        origin_read(frag, place, len, iov, nr_iov, read_done);
    else
        frag_submit(frag, DEVICE_READ, 0, place, len, iov, nr_iov, false, read_done);
}

void
read_step(struct volume_frag *frag)
{
    struct pool *pool = frag->pool;
    struct volume_core *core = frag->core;
    vblock_t v = pool_vblock(pool, frag->begin);
    uint64_t slot = mapcache_get(core, v), block_end = (v + 1) * pool->block_size;
    uint64_t in_block, place, len, run_end;
    bool from_origin;

    if (slot == MAP_UNKNOWN) {
        frag_lookup(frag, v);
        return;
    }
    from_origin = !slot_mapped(slot) && origin_backs(core, frag->begin);
    if (!slot_mapped(slot) && !from_origin) {
        frag->step_end = min_u64(block_end, frag->end);
        io_zero_fill(frag->io, frag->begin - frag->io->offset,
                     frag->step_end - frag->begin);
        frag_step_done(frag);
        return;
    }
    in_block = pool_block_offset(pool, frag->begin);
    place = from_origin ? frag->begin : mapping_block(slot) * pool->block_size + in_block;
    run_end = from_origin ? origin_end(frag, v) : min_u64(block_end, frag->end);
    len = 0;
    if (frag->begin % SECTOR_SIZE == 0) {
        len = run_end - frag->begin;
        for (uint64_t i = 1; !from_origin && frag->begin + len < frag->end; i++) {
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
        read_submit(frag, from_origin, place, len, frag->iov + 1, frag->nr_iov);
        return;
    }
    /* A part of a sector, or a whole one scattered over many pieces. */
    frag->partial = true;
    frag->part_begin = (unsigned)(frag->begin % SECTOR_SIZE);
    frag->step_begin = frag->begin - frag->part_begin;
    frag->part_end = (unsigned)min_u64(SECTOR_SIZE, frag->end - frag->step_begin);
    frag->iov[0].iov_base = frag->sector;
    frag->iov[0].iov_len = SECTOR_SIZE;
    read_submit(frag, from_origin, place - frag->part_begin, SECTOR_SIZE, frag->iov, 1);
}
