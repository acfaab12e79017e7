/*
 * Unmapping of ranges in bounded steps, for requests and for the administrator. Each
 * step holds its range, so that no copy of an old block can come back after it.
 */
#include "core/pool/limits.h"
#include "core/pool/pieces.h"

static void
unmap_end(struct unmap *u, int result, const struct thin_error *err)
{
    struct pool_internals *in = u->pool->in;
    struct volume_frag *frag;

    if (u->has_range) {
        TAILQ_REMOVE(&in->unmaps, u, link);
        u->has_range = false;
        while ((frag = TAILQ_FIRST(&in->range_waiters))) {
            TAILQ_REMOVE(&in->range_waiters, frag, link);
            frag_run_later(frag, NULL);
        }
    }
    u->done(u, result, err);
}

static int
unmap_op_run(struct metaop *op, struct thin_error *err)
{
    struct unmap *u = container_of(op, struct unmap, op);

    if (u->still && !u->still(u)) {
        u->ret_end = u->step_begin;
        u->step_unmapped = 0;
        u->given_up = true;
        return 0;
    }
    return metadata_unmap_step(u->pool->md, u->dev_id, u->step_begin, u->step_end,
                               UNMAP_STEP_NODES, &u->ret_end, &u->step_unmapped, err);
}

static void
unmap_op_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct unmap *u = container_of(op, struct unmap, op);
    struct pool *pool = u->pool;
    struct volume_core *core = volume_core_find(pool, u->dev_id);

    if (result == -THIN_E_NO_METADATA_SPACE && u->step_end - u->step_begin > 1) {
        /* The fewer counts change, the less the commit may need. */
        u->most = max_u64((u->step_end - u->step_begin) / UNMAP_STEP_SMALLER, 1);
        u->step_begin = u->step_end - u->most;
        loop_defer(pool->loop, &u->task);
        return;
    }
    if (result < 0) {
        unmap_end(u, result, err);
        return;
    }
    if (u->step_unmapped == 0)
        u->most = min_u64(u->most * UNMAP_STEP_SMALLER, UNMAP_STEP_BLOCKS);
    if (u->given_up) {
        unmap_end(u, 0, err);
        return;
    }
    u->unmapped += u->step_unmapped;
    limits_unmapped(pool, u->dev_id, u->step_unmapped);
    if (u->step_unmapped > 0)
        u->txn = metadata_txn(pool->md);
    if (core) {
        mapcache_set_holes(core, u->ret_end, u->step_end);
        if (u->step_unmapped > 0)
            volume_core_changed(core, u->txn);
    }
    u->step_end = u->ret_end;
    loop_defer(pool->loop, &u->task);
}

static void
unmap_task(struct thin_task *task)
{
    struct unmap *u = container_of(task, struct unmap, task);
    struct pool *pool = u->pool;
    struct volume_core *core = volume_core_find(pool, u->dev_id);
    struct thin_error err;

    thin_error_init(&err);
    if (u->epoch != pool->epoch) {
        unmap_end(u,
                  thin_fail(&err, -THIN_E_ROLLED_BACK, "%s",
                            thin_strerror(-THIN_E_ROLLED_BACK)),
                  &err);
        return;
    }
    if (u->step_end == u->step_begin) {
        if (u->step_begin == u->begin) {
            unmap_end(u, 0, &err);
            return;
        }
        u->step_end = u->step_begin;
        u->step_begin = u->step_end - min_u64(u->step_end - u->begin, u->most);
    }
    /* Who changes a mapping in the range now ends first; nobody begins anew. */
    if (!u->has_range) {
        TAILQ_INSERT_TAIL(&pool->in->unmaps, u, link);
        u->has_range = true;
    }
    u->waiting = core && cell_overlaps(core, u->step_begin, u->step_end);
    if (u->waiting)
        return;
    u->op.run = unmap_op_run;
    u->op.done = unmap_op_done;
    u->op.reads_only = false;
    u->op.purse = u->purse;
    u->op.name = "unmap";
    metaop_start(pool, &u->op, true);
}

void
unmap_start(struct pool *pool, struct unmap *u)
{
    u->pool = pool;
    u->epoch = pool->epoch;
    u->step_begin = u->step_end = u->end;
    u->most = UNMAP_STEP_BLOCKS;
    u->unmapped = 0;
    u->txn = 0;
    u->has_range = u->waiting = u->given_up = false;
    u->task.run = unmap_task;
    u->task.queued = false;
    loop_defer(pool->loop, &u->task);
}

/* ---- of a request ---------------------------------------------------------------------------- */

static void
frag_unmapped(struct unmap *u, int result, const struct thin_error *err)
{
    struct volume_frag *frag = container_of(u, struct volume_frag, unmap);

    (void)err;
    if (u->given_up && !frag->if_empty) {
        /* The last block is not whole any more. */
        u->end--;
        if (u->end > u->begin) {
            unmap_start(frag->pool, u);
            return;
        }
    }
    if (result == 0 && !frag->if_empty && frag->io->op == VOLUME_WRITE_ZEROES &&
        u->end * frag->pool->block_size < frag->end) {
        frag->begin = max_u64(frag->begin, u->end * frag->pool->block_size);
        frag->kind = FRAG_ZEROES;
        frag_run_later(frag, NULL);
        return;
    }
    if (result == -THIN_E_NO_METADATA_SPACE && !frag->if_empty &&
        space_extend_metadata(frag->pool)) {
        frag_no_space(frag);
        return;
    }
    if (result == -THIN_E_NO_METADATA_SPACE && !frag->if_empty &&
        frag->io->op == VOLUME_DISCARD) {
        /* Shared mappings, which only more metadata could make the volume's own: their
           blocks would not become free. A discard is a hint; this one is not taken. */
        frag->io->ret_kept = true;
        result = 0;
    }
    if (frag->if_empty && result == 0 && !u->given_up)
        pieces_forget(frag->core, u->begin);
    /* What the request asked for is done; that a block could be saved is no part of it. */
    if (frag->if_empty && result != -THIN_E_ROLLED_BACK)
        result = 0;
    frag_end(frag, result);
}

static bool
frag_still_empty(struct unmap *u)
{
    struct volume_frag *frag = container_of(u, struct volume_frag, unmap);

    return pieces_whole(frag->core, u->begin);
}

/* The block at the volume's end was whole when the request came: it has grown since, and
   somebody may have written behind the old end. */
static bool
frag_still_ends(struct unmap *u)
{
    struct volume_frag *frag = container_of(u, struct volume_frag, unmap);

    return u->step_end * frag->pool->block_size <= frag->end ||
           frag->core->size <= frag->end;
}

void
unmap_step(struct volume_frag *frag)
{
    struct pool *pool = frag->pool;

    frag->unmap.done = frag_unmapped;
    frag->unmap.dev_id = frag->core->dev_id;
    frag->unmap.purse = TM_DISCARD;
    frag->unmap.still = frag->if_empty ? frag_still_empty : frag_still_ends;
    frag->unmap.begin = pool_vblock(pool, frag->begin);
    frag->unmap.end = div_up_u64(frag->end, pool->block_size);
    unmap_start(pool, &frag->unmap);
}
