/* Where the hidden device's pages stand on the data device, and reading and writing them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/pool/catalogue_private.h"

void
catalogue_area_reset(struct catalogue *cat)
{
    for (unsigned i = 0; i < 2; i++) {
        struct catalogue_area *area = &cat->areas[i];

        free(area->dblocks);
        memset(area, 0, sizeof(*area));
        /* A whole virtual block begins where an area begins. */
        area->begin = i * round_up_u64(CATALOGUE_AREA_PAGES, pages_per_block(cat));
    }
}

int
catalogue_area_reserve(struct catalogue_area *area, uint64_t nr_blocks)
{
    uint64_t max = area->max_blocks ? area->max_blocks : 8;
    dblock_t *grown;

    if (nr_blocks <= area->max_blocks)
        return 0;
    while (max < nr_blocks)
        max *= 2;
    grown = reallocarray(area->dblocks, max, sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    area->dblocks = grown;
    area->max_blocks = max;
    return 0;
}

int
catalogue_area_add(struct catalogue_area *area, dblock_t dblock)
{
    int r = catalogue_area_reserve(area, area->nr_blocks + 1);

    if (r == 0)
        area->dblocks[area->nr_blocks++] = dblock;
    return r;
}

static void piece_done(struct device_io *io, int result);

static void
start_piece(struct catalogue_io *cio)
{
    uint32_t per_block = cio->pool->block_size / CATALOGUE_PAGE_BYTES;
    uint64_t in_area = cio->page + cio->pos - cio->area->begin;
    uint64_t block = in_area / per_block;
    uint32_t in_block = (uint32_t)(in_area % per_block);

    THIN_ASSERT(block < cio->area->nr_blocks);
    cio->piece =
        (uint32_t)min_u64(cio->nr_pages - cio->pos, (uint64_t)per_block - in_block);
    cio->iov.iov_base = cio->bytes + (size_t)cio->pos * CATALOGUE_PAGE_BYTES;
    cio->iov.iov_len = (size_t)cio->piece * CATALOGUE_PAGE_BYTES;
    memset(&cio->io, 0, sizeof(cio->io));
    cio->io.op = cio->write ? DEVICE_WRITE : DEVICE_READ;
    cio->io.offset = cio->area->dblocks[block] * cio->pool->block_size +
                     (uint64_t)in_block * CATALOGUE_PAGE_BYTES;
    cio->io.len = cio->iov.iov_len;
    cio->io.iov = &cio->iov;
    cio->io.nr_iov = 1;
    cio->io.done = piece_done;
    if (cio->write)
        pool_data_begin(cio->pool);
    device_submit(cio->pool->data, &cio->io);
}

static void
piece_done(struct device_io *io, int result)
{
    struct catalogue_io *cio = container_of(io, struct catalogue_io, io);

    if (cio->write)
        pool_data_end(cio->pool, result == 0, cio->iov.iov_len);
    cio->pos += cio->piece;
    /* What the areas hold may be forgotten by a roll-back: no further piece. */
    if (result == 0 && cio->write && cio->pool->rolling_back)
        result = -THIN_E_ROLLED_BACK;
    if (result == 0 && cio->pos < cio->nr_pages)
        start_piece(cio);
    else
        cio->done(cio, result);
}

static void
run_empty(struct thin_task *task)
{
    struct catalogue_io *cio = container_of(task, struct catalogue_io, task);

    cio->done(cio, 0);
}

/* What is dead in the pages as they were loaded may live in an older state. */
static void
io_settled(struct settle_wait *wait, int result)
{
    struct catalogue_io *cio = container_of(wait, struct catalogue_io, settle);

    if (result == 0)
        start_piece(cio);
    else
        cio->done(cio, result);
}

void
catalogue_io_start(struct catalogue_io *cio)
{
    cio->pos = 0;
    if (cio->nr_pages > 0 && cio->write && !pool_is_settled(cio->pool)) {
        cio->settle.done = io_settled;
        pool_settle(cio->pool, &cio->settle);
    } else if (cio->nr_pages > 0) {
        start_piece(cio);
    } else {
        memset(&cio->task, 0, sizeof(cio->task));
        cio->task.run = run_empty;
        loop_defer(cio->pool->loop, &cio->task);
    }
}
