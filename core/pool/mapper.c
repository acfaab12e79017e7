/*
 * A fragment that writes (or zeroes): in place where the block is mapped and not shared,
 * else into new blocks; data first, then the mapping, then the answer.
 *
 *   write_step ─ part of a sector ─► patch_begin ─ read ─► patch_read ─┐
 *        └───────────────────────────────────────────────────► place ◄─┘
 *   place ─ mapped, unshared ─► device ─► in_place_done
 *         ─ a hole of FRAG_ZEROES ─► done already
 *         ─ else cell, claim ─► provision | copier_start ─► mapper_insert ─► insert_done
 */
#include "core/base/seeded_bug.h"
#include "core/pool/origin.h"

#define ZERO_PIECE (32u << 20) /* bytes of one write-zeroes at the device */

static void place(struct volume_frag *frag);

/* ---- inserting ---------------------------------------------------------------------------- */

static void provision(struct volume_frag *frag);

static int
insert_run(struct metaop *op, struct thin_error *err)
{
    struct volume_frag *frag = container_of(op, struct volume_frag, op);
    struct metadata *md = frag->pool->md;
    vblock_t v = pool_vblock(frag->pool, frag->step_begin);
    int r;

    for (unsigned i = 0; i < frag->claim.nr; i++) {
        uint64_t value;

        r = metadata_take_data(md, frag->claim.dblock + i, err);
        if (r < 0)
            return r;
        r = metadata_insert(md, frag->core->dev_id, v + i, frag->claim.dblock + i, &value,
                            err);
        if (r < 0)
            return r;
        if (i == 0)
            frag->new_value = value;
    }
    return 0;
}

static void
insert_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct volume_frag *frag = container_of(op, struct volume_frag, op);
    struct pool *pool = frag->pool;
    vblock_t v = pool_vblock(pool, frag->step_begin);

    if (result == -THIN_E_NO_METADATA_SPACE && space_extend_metadata(pool)) {
        frag_no_space(frag);
        return;
    }
    if (result < 0) {
        pool_write_failed(pool, result, err);
        frag_end(frag, result);
        return;
    }
    for (unsigned i = 0; i < frag->claim.nr; i++)
        mapcache_set(frag->core, v + i,
                     mapping_pack(frag->claim.dblock + i, mapping_time(frag->new_value)));
    volume_core_changed(frag->core, metadata_txn(pool->md));
    if (seeded_bug(SEEDED_MAPPING_FIRST) && frag->stage == SEEDED_MAPPING_FIRST) {
        provision(frag);
        return;
    }
    space_claim_end(frag, true);
    if (!pool->closing)
        space_taken(pool);
    frag_step_done(frag);
}

void
mapper_insert(struct volume_frag *frag)
{
    if (!frag_alive(frag))
        return;
    frag->op.run = insert_run;
    frag->op.done = insert_done;
    frag->op.reads_only = false;
    frag->op.purse = TM_NORMAL;
    frag->op.name = "insert mappings";
    metaop_start(frag->pool, &frag->op, true);
}

/* ---- new blocks ----------------------------------------------------------------------------- */

static void
provision_written(struct volume_frag *frag, int result)
{
    if (result < 0) {
        frag_end(frag, result);
        return;
    }
    if (seeded_bug(SEEDED_MAPPING_FIRST) && frag->stage == SEEDED_MAPPING_FIRST) {
        space_claim_end(frag, true);
        frag_step_done(frag);
        return;
    }
    mapper_insert(frag);
}

static void provision_large(struct volume_frag *frag, int result);

/* The payload into the new blocks; the rest of them reads as zeros afterwards. */
static void
provision(struct volume_frag *frag)
{
    struct pool *pool = frag->pool;
    uint64_t total = (uint64_t)frag->claim.nr * pool->block_size;
    uint64_t head = pool_block_offset(pool, frag->step_begin);
    uint64_t len = frag->step_end - frag->step_begin, tail = total - head - len;
    uint64_t place_at = frag->claim.dblock * pool->block_size;
    struct iovec *iov = frag->iov + 1;
    unsigned nr = frag->nr_iov;

    if (seeded_bug(SEEDED_MAPPING_FIRST) && frag->stage == 0) {
        frag->stage = SEEDED_MAPPING_FIRST;
        mapper_insert(frag);
        return;
    }
    if (frag->claim.zero || !pool->config.zeroing)
        head = tail = 0;
    if (head > ZERO_BUFFER_BYTES || tail > ZERO_BUFFER_BYTES) {
        frag->copy_pos = 0;
        provision_large(frag, 0);
        return;
    }
    if (head > 0) {
        iov--;
        iov->iov_base = pool->in->zeros;
        iov->iov_len = head;
        nr++;
    } else {
        place_at += pool_block_offset(pool, frag->step_begin);
    }
    if (tail > 0) {
        iov[nr].iov_base = pool->in->zeros;
        iov[nr].iov_len = tail;
        nr++;
    }
    frag_submit(frag, DEVICE_WRITE, 0, place_at, head + len + tail, iov, nr, false,
                provision_written);
}

/* Huge blocks: all of it is zeroed in pieces, then the payload is written. */
static void
provision_large(struct volume_frag *frag, int result)
{
    struct pool *pool = frag->pool;
    uint64_t place_at = frag->claim.dblock * pool->block_size;
    uint64_t at = frag->copy_pos, len = min_u64(ZERO_PIECE, pool->block_size - at);

    if (result < 0) {
        frag_end(frag, result);
    } else if (len > 0) {
        frag->copy_pos += len;
        frag_submit(frag, DEVICE_WRITE_ZEROES, DEVICE_NO_UNMAP, place_at + at, len, NULL,
                    0, false, provision_large);
    } else {
        frag_submit(frag, DEVICE_WRITE, 0,
                    place_at + pool_block_offset(pool, frag->step_begin),
                    frag->step_end - frag->step_begin, frag->iov + 1, frag->nr_iov, false,
                    provision_written);
    }
}

/* ---- the payload of a step ------------------------------------------------------------------- */

/*
 * Fills frag->iov[1..] for [step_begin, step_end), which may become shorter: never empty.
 */
static void
payload(struct volume_frag *frag)
{
    uint64_t len = frag->step_end - frag->step_begin;

    if (frag->sector_ready) {
        frag->iov[1].iov_base = frag->sector;
        frag->iov[1].iov_len = SECTOR_SIZE;
        frag->nr_iov = 1;
        return;
    }
    if (frag->kind == FRAG_ZEROES) {
        len = min_u64(len, ZERO_BUFFER_BYTES);
        frag->iov[1].iov_base = frag->pool->in->zeros;
        frag->iov[1].iov_len = len;
        frag->nr_iov = 1;
        frag->step_end = frag->step_begin + len;
        return;
    }
    len = frag_slice(frag, frag->step_begin, len);
    if (len == 0) {
        /* One sector in more pieces than a request takes. */
        io_copy_in(frag->io, frag->step_begin - frag->io->offset, frag->sector,
                   SECTOR_SIZE);
        frag->iov[1].iov_base = frag->sector;
        frag->iov[1].iov_len = SECTOR_SIZE;
        frag->nr_iov = 1;
        len = SECTOR_SIZE;
    }
    frag->step_end = frag->step_begin + len;
}

/* ---- placing ------------------------------------------------------------------------------------ */

static void
in_place_done(struct volume_frag *frag, int result)
{
    if (result < 0)
        frag_end(frag, result);
    else
        frag_step_done(frag);
}

/* Mapped and unshared blocks that lie behind one another, from step_begin on. */
static void
write_in_place(struct volume_frag *frag, uint64_t slot)
{
    struct pool *pool = frag->pool;
    struct volume_core *core = frag->core;
    vblock_t v = pool_vblock(pool, frag->step_begin);
    uint64_t at = mapping_block(slot) * pool->block_size +
                  pool_block_offset(pool, frag->step_begin);
    uint64_t end = round_down_u64(frag->end, SECTOR_SIZE);
    unsigned fua = frag->io->flags & VOLUME_FUA ? DEVICE_FUA : 0;

    if (!frag->sector_ready) {
        for (uint64_t i = 1; frag->step_end < end; i++) {
            uint64_t next = mapcache_get(core, v + i);

            if (!slot_mapped(next) || slot_shared(core, next) ||
                mapping_block(next) != mapping_block(slot) + i)
                break;
            frag->step_end = min_u64(frag->step_end + pool->block_size, end);
        }
        if (frag->kind == FRAG_ZEROES)
            frag->step_end = min_u64(frag->step_end, frag->step_begin + ZERO_PIECE);
    }
    if (cell_wait_rmw(frag, frag->step_begin, frag->step_end))
        return;
    if (frag->kind == FRAG_ZEROES && !frag->sector_ready) {
        frag_submit(frag, DEVICE_WRITE_ZEROES, DEVICE_NO_UNMAP | fua, at,
                    frag->step_end - frag->step_begin, NULL, 0, true, in_place_done);
        return;
    }
    payload(frag);
    frag_submit(frag, DEVICE_WRITE, fua, at, frag->step_end - frag->step_begin,
                frag->iov + 1, frag->nr_iov, true, in_place_done);
}

/* Zeroes over what is not mapped, from `begin` on, have nothing to do: it reads as zeros.
   A discard takes away only what is there. */
static bool
stays_hole(const struct volume_frag *frag, uint64_t begin)
{
    return frag->kind == FRAG_ZEROES &&
           (frag->io->op == VOLUME_DISCARD ||
            (!(frag->io->flags & VOLUME_NO_HOLE) && !origin_backs(frag->core, begin)));
}

/* Blocks from v on that the fragment overwrites whole and that need a new place. */
static unsigned
whole_run(struct volume_frag *frag, vblock_t v)
{
    struct pool *pool = frag->pool;
    uint64_t stretch_end = (v / WINDOW_BLOCKS_MAX + 1) * WINDOW_BLOCKS_MAX;
    unsigned nr = 0;

    while (nr < PROVISION_RUN_MAX && v + nr < stretch_end) {
        uint64_t slot = mapcache_get(frag->core, v + nr);

        if ((v + nr + 1) * pool->block_size > frag->end || slot == MAP_UNKNOWN ||
            (slot_mapped(slot) && !slot_shared(frag->core, slot)) ||
            (!slot_mapped(slot) && stays_hole(frag, (v + nr) * pool->block_size)))
            break;
        nr++;
    }
    return nr;
}

static void
place(struct volume_frag *frag)
{
    struct pool *pool = frag->pool;
    vblock_t v = pool_vblock(pool, frag->step_begin);
    uint64_t slot = mapcache_get(frag->core, v), len;
    uint64_t in_block = pool_block_offset(pool, frag->step_begin);
    unsigned nr = 1;
    int r;

    if (slot == MAP_UNKNOWN) {
        frag_lookup(frag, v);
        return;
    }
    if (slot_mapped(slot) && !slot_shared(frag->core, slot)) {
        write_in_place(frag, slot);
        return;
    }
    if (!slot_mapped(slot) && stays_hole(frag, frag->step_begin)) {
        frag_step_done(frag);
        return;
    }
    if (!frag->sector_ready && in_block == 0 && !frag->cell.core) {
        nr = whole_run(frag, v);
        if (nr == 0)
            nr = 1;
    }
    if (!frag->cell.core && !cell_take(frag, v, v + nr))
        return;
    /* The cell may have been taken by an earlier pass, over as many blocks as then. */
    nr = (unsigned)(frag->cell.end - v);
    if (!frag->sector_ready)
        frag->step_end =
            min_u64(frag->step_begin - in_block + nr * (uint64_t)pool->block_size,
                    round_down_u64(frag->end, SECTOR_SIZE));
    payload(frag);
    len = frag->step_end - frag->step_begin;
    nr = len / pool->block_size > 1 ? (unsigned)(len / pool->block_size) : 1;
    if (!frag->claim.window) {
        r = space_claim(frag, v, nr);
        if (r > 0)
            return;
        if (r == -THIN_E_NO_DATA_SPACE) {
            frag_no_space(frag);
            return;
        }
        if (r < 0) {
            frag_end(frag, r);
            return;
        }
    }
    /* No more than was claimed, and of several blocks only whole ones. */
    if (len > pool->block_size || frag->claim.nr < nr) {
        frag->step_end = frag->step_begin + (uint64_t)frag->claim.nr * pool->block_size;
        payload(frag);
        len = frag->step_end - frag->step_begin;
    }
    frag->claim.nr = (unsigned)div_up_u64(in_block + len, pool->block_size);
    if (len < pool->block_size &&
        (slot_mapped(slot) || (origin_backs(frag->core, v * pool->block_size) &&
                               !seeded_bug(SEEDED_ORIGIN_FORGOTTEN)))) {
        frag->old_value = slot;
        copier_start(frag);
    } else {
        provision(frag);
    }
}

/* ---- parts of sectors ------------------------------------------------------------------------------ */

static void
patch(struct volume_frag *frag)
{
    unsigned len = frag->part_end - frag->part_begin;

    if (frag->kind == FRAG_ZEROES)
        memset(frag->sector + frag->part_begin, 0, len);
    else
        io_copy_in(frag->io, frag->step_begin + frag->part_begin - frag->io->offset,
                   frag->sector + frag->part_begin, len);
    frag->sector_ready = true;
    place(frag);
}

static void
patch_read(struct volume_frag *frag, int result)
{
    if (result < 0) {
        frag_end(frag, result);
        return;
    }
    if (frag_alive(frag))
        patch(frag);
}

/*
 * Reads the sector, patches it, writes all of it. Meanwhile the cell keeps off other
 * part-sector writes and every write that covers this sector: none is lost.
 */
static void
patch_begin(struct volume_frag *frag)
{
    struct pool *pool = frag->pool;
    vblock_t v = pool_vblock(pool, frag->begin);
    uint64_t slot = mapcache_get(frag->core, v), at;

    if (slot == MAP_UNKNOWN) {
        frag_lookup(frag, v);
        return;
    }
    if (!frag->cell.core) {
        if (!cell_take(frag, v, v + 1))
            return;
        frag->partial = true;
        frag->part_begin = (unsigned)(frag->begin % SECTOR_SIZE);
        frag->step_begin = frag->begin - frag->part_begin;
        frag->step_end = frag->step_begin + SECTOR_SIZE;
        frag->part_end = (unsigned)min_u64(SECTOR_SIZE, frag->end - frag->step_begin);
        cell_set_rmw(frag, frag->step_begin >> SECTOR_SHIFT);
    }
    if (!slot_mapped(slot)) {
        if (stays_hole(frag, frag->step_begin)) {
            frag_step_done(frag);
            return;
        }
        if (origin_backs(frag->core, frag->step_begin)) {
            frag->iov[0].iov_base = frag->sector;
            frag->iov[0].iov_len = SECTOR_SIZE;
            origin_read(frag, frag->step_begin, SECTOR_SIZE, frag->iov, 1, patch_read);
            return;
        }
        memset(frag->sector, 0, SECTOR_SIZE);
        patch(frag);
        return;
    }
    at = mapping_block(slot) * pool->block_size +
         pool_block_offset(pool, frag->step_begin);
    if (inflight_overlaps(pool, at, at + SECTOR_SIZE, INFLIGHT_WRITE)) {
        frag->resume = NULL;
        TAILQ_INSERT_TAIL(&pool->in->inflight_waiters, frag, link);
        return;
    }
    frag->iov[0].iov_base = frag->sector;
    frag->iov[0].iov_len = SECTOR_SIZE;
    frag_submit(frag, DEVICE_READ, 0, at, SECTOR_SIZE, frag->iov, 1, false, patch_read);
}

void
write_step(struct volume_frag *frag)
{
    if (frag->sector_ready) {
        place(frag);
        return;
    }
    if (frag->partial || frag->begin % SECTOR_SIZE ||
        frag->end - frag->begin < SECTOR_SIZE) {
        patch_begin(frag);
        return;
    }
    frag->step_begin = frag->begin;
    frag->step_end =
        min_u64(round_down_u64(frag->end, SECTOR_SIZE),
                (pool_vblock(frag->pool, frag->begin) + 1) * frag->pool->block_size);
    place(frag);
}
