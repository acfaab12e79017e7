/*
 * Cells: who changes the mapping of a stretch of blocks, or patches a sector, and those
 * who wait for him. Found by volume and aligned stretch: no cell crosses one, since
 * runs are provisioned inside a window's stretch.
 */
#include "core/base/seeded_bug.h"
#include "core/pool/io_private.h"

static struct cell_list *
bucket_of(struct volume_core *core, vblock_t v)
{
    uint64_t stretch = v / WINDOW_BLOCKS_MAX;

    return &core->pool->in->cells[(stretch * 31 + core->dev_id) % CELL_BUCKETS];
}

static struct cell *
cell_find(struct volume_core *core, vblock_t begin, vblock_t end)
{
    struct cell_list *list = bucket_of(core, begin);
    struct cell *cell;

    TAILQ_FOREACH(cell, list, link)
        if (cell->core == core && cell->begin < end && cell->end > begin)
            return cell;
    return NULL;
}

bool
cell_overlaps(struct volume_core *core, vblock_t begin, vblock_t end)
{
    struct pool_internals *in = core->pool->in;
    struct cell *cell;

    if (!in->nr_cells)
        return false;
    for (unsigned i = 0; i < CELL_BUCKETS; i++)
        TAILQ_FOREACH(cell, &in->cells[i], link)
            if (cell->core == core && cell->begin < end && cell->end > begin)
                return true;
    return false;
}

static bool
range_held(struct volume_core *core, vblock_t begin, vblock_t end)
{
    struct unmap *u;

    TAILQ_FOREACH(u, &core->pool->in->unmaps, link)
        if (u->dev_id == core->dev_id && u->step_begin < end && u->step_end > begin)
            return true;
    return false;
}

bool
cell_take(struct volume_frag *frag, vblock_t begin, vblock_t end)
{
    struct volume_core *core = frag->core;
    struct cell *other = cell_find(core, begin, end);

    THIN_ASSERT(!frag->cell.core);
    THIN_ASSERT(begin / WINDOW_BLOCKS_MAX == (end - 1) / WINDOW_BLOCKS_MAX);
    if (other) {
        TAILQ_INSERT_TAIL(&other->waiters, frag, link);
        return false;
    }
    if (range_held(core, begin, end)) {
        TAILQ_INSERT_TAIL(&core->pool->in->range_waiters, frag, link);
        return false;
    }
    frag->cell.core = core;
    frag->cell.begin = begin;
    frag->cell.end = end;
    frag->cell.rmw = false;
    TAILQ_INIT(&frag->cell.waiters);
    TAILQ_INSERT_TAIL(bucket_of(core, begin), &frag->cell, link);
    core->pool->in->nr_cells++;
    return true;
}

void
cell_set_rmw(struct volume_frag *frag, uint64_t sector)
{
    frag->cell.rmw = true;
    frag->cell.rmw_sector = sector;
    frag->core->nr_rmw++;
}

void
cell_release(struct volume_frag *frag)
{
    struct cell *cell = &frag->cell;
    struct pool_internals *in = frag->pool->in;
    struct volume_frag *waiter;
    struct unmap *u;

    if (!cell->core)
        return;
    TAILQ_REMOVE(bucket_of(cell->core, cell->begin), cell, link);
    in->nr_cells--;
    if (cell->rmw)
        cell->core->nr_rmw--;
    while ((waiter = TAILQ_FIRST(&cell->waiters))) {
        TAILQ_REMOVE(&cell->waiters, waiter, link);
        frag_run_later(waiter, NULL);
    }
    TAILQ_FOREACH(u, &in->unmaps, link)
        if (u->waiting && u->dev_id == cell->core->dev_id)
            loop_defer(frag->pool->loop, &u->task);
    cell->core = NULL;
}

static struct cell *
rmw_find(struct volume_core *core, uint64_t begin, uint64_t end)
{
    struct pool_internals *in = core->pool->in;
    struct cell *cell;

    for (unsigned i = 0; i < CELL_BUCKETS; i++)
        TAILQ_FOREACH(cell, &in->cells[i], link)
            if (cell->core == core && cell->rmw &&
                cell->rmw_sector << SECTOR_SHIFT < end &&
                (cell->rmw_sector + 1) << SECTOR_SHIFT > begin)
                return cell;
    return NULL;
}

bool
cell_rmw_overlaps(struct volume_core *core, uint64_t begin, uint64_t end)
{
    return core->nr_rmw && rmw_find(core, begin, end);
}

bool
cell_wait_rmw(struct volume_frag *frag, uint64_t begin, uint64_t end)
{
    struct cell *cell;

    if (!frag->core->nr_rmw || seeded_bug(SEEDED_NEIGHBOUR_TORN))
        return false;
    cell = rmw_find(frag->core, begin, end);
    if (!cell || cell == &frag->cell)
        return false;
    TAILQ_INSERT_TAIL(&cell->waiters, frag, link);
    return true;
}
