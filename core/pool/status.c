/* What backs a range of a volume, leaf by leaf, a bounded number in one step. */
#include "core/pool/origin.h"

/* Appends [frag->begin, end); false: no more fits, or one was all that was asked for. */
static bool
status_add(struct volume_frag *frag, uint64_t end, uint32_t flags)
{
    struct volume_io *io = frag->io;
    uint64_t len;

    end = min_u64(end, frag->end);
    if (end <= frag->begin)
        return true;
    len = end - frag->begin;
    if (io->ret_nr_extents > 0) {
        struct volume_extent *last = &io->extents[io->ret_nr_extents - 1];

        if (last->flags == flags) {
            last->len += len;
            frag->begin = end;
            return true;
        }
    }
    if (io->ret_nr_extents == io->max_extents ||
        (io->ret_nr_extents > 0 && (io->flags & VOLUME_ONE_EXTENT)))
        return false;
    io->extents[io->ret_nr_extents].len = len;
    io->extents[io->ret_nr_extents].flags = flags;
    io->ret_nr_extents++;
    frag->begin = end;
    return true;
}

/* Nothing is mapped up to `end`. */
static bool
status_add_hole(struct volume_frag *frag, uint64_t end)
{
    if (origin_backs(frag->core, frag->begin) &&
        !status_add(frag, min_u64(end, frag->core->origin_size), VOLUME_EXTENT_ORIGIN))
        return false;
    return status_add(frag, end, VOLUME_EXTENT_HOLE | VOLUME_EXTENT_ZERO);
}

static bool
status_add_leaf(struct volume_frag *frag)
{
    const struct pool_internals *in = frag->pool->in;
    uint64_t bs = frag->pool->block_size;

    for (uint32_t i = 0; i < in->nr_slots && frag->begin < frag->end; i++) {
        const struct mapping_slot *slot = &in->slots[i];
        bool shared = slot_shared(frag->core, slot->value);

        if ((slot->vblock + 1) * bs <= frag->begin)
            continue;
        if (!status_add_hole(frag, slot->vblock * bs) ||
            !status_add(frag, (slot->vblock + 1) * bs, shared ? VOLUME_EXTENT_SHARED : 0))
            return false;
    }
    if (in->slots_end > frag->end / bs)
        return status_add_hole(frag, frag->end);
    return status_add_hole(frag, in->slots_end * bs);
}

static int
status_run(struct metaop *op, struct thin_error *err)
{
    struct volume_frag *frag = container_of(op, struct volume_frag, op);
    struct pool_internals *in = frag->pool->in;

    return metadata_read_leaf(frag->pool->md, frag->core->dev_id,
                              pool_vblock(frag->pool, frag->begin), in->slots,
                              &in->nr_slots, &in->slots_begin, &in->slots_end, err);
}

static void
status_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct volume_frag *frag = container_of(op, struct volume_frag, op);

    (void)err;
    if (result < 0 || !status_add_leaf(frag) || frag->begin >= frag->end) {
        frag_end(frag, result);
        return;
    }
    if (++frag->stage % STATUS_LEAVES_STEP == 0)
        frag_run_later(frag, NULL);
    else
        frag_run(frag);
}

void
status_step(struct volume_frag *frag)
{
    frag->op.run = status_run;
    frag->op.done = status_done;
    frag->op.reads_only = true;
    frag->op.name = "status";
    metaop_start(frag->pool, &frag->op, true);
}
