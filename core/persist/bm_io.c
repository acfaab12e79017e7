/* The block manager's I/O: fetching what was missing, writing a cut, block 0, flush. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "core/persist/bm_private.h"

/* ---- fetch --------------------------------------------------------------------------- */

static void
fetch_run(struct thin_task *task)
{
    struct bm_fetch *fetch = container_of(task, struct bm_fetch, task);

    fetch->running = false;
    fetch->done(fetch, fetch->result);
}

void
bm_fetch_init(struct bm_fetch *fetch, struct block_manager *bm,
              void (*done)(struct bm_fetch *fetch, int result))
{
    memset(fetch, 0, sizeof(*fetch));
    fetch->bm = bm;
    fetch->done = done;
    fetch->task.run = fetch_run;
}

void
bm_wake(struct bm_block *f, int result)
{
    struct bm_wait *wait;

    while ((wait = TAILQ_FIRST(&f->waits))) {
        struct bm_fetch *fetch = wait->fetch;

        TAILQ_REMOVE(&f->waits, wait, link);
        wait->frame = NULL;
        if (result < 0 && fetch->result == 0)
            fetch->result = result;
        /* Deferred: `done` may start anything, and others wait in the same list. */
        if (--fetch->nr_left == 0)
            loop_defer(f->bm->dev->loop, &fetch->task);
    }
}

static void read_done(struct device_io *io, int result);

static void
start_reads(struct block_manager *bm)
{
    struct bm_block *f;

    while (bm->nr_reading < BM_READS_MAX && (f = TAILQ_FIRST(&bm->reads_waiting))) {
        struct bm_read_slot *slot = bm->reads;

        while (slot->frame)
            slot++;
        TAILQ_REMOVE(&bm->reads_waiting, f, link);
        f->reading = true;
        slot->frame = f;
        slot->iov = (struct iovec){.iov_base = f->data, .iov_len = METADATA_BLOCK_SIZE};
        slot->io = (struct device_io){
            .op = DEVICE_READ,
            .offset = f->number * METADATA_BLOCK_SIZE,
            .len = METADATA_BLOCK_SIZE,
            .iov = &slot->iov,
            .nr_iov = 1,
            .done = read_done,
        };
        bm->nr_reading++;
        bm->stats.reads++;
        device_submit(bm->dev, &slot->io);
    }
}

static void
read_done(struct device_io *io, int result)
{
    struct bm_read_slot *slot = container_of(io, struct bm_read_slot, io);
    struct bm_block *f = take(slot->frame);
    struct block_manager *bm = f->bm;

    bm->nr_reading--;
    f->reading = false;
    if (!f->hashed) {
        bm_drop(f); /* given up while it was read */
    } else {
        f->state = FRAME_LOADED;
        bm_wake(f, result);
        if (result < 0)
            bm_drop(f);
    }
    start_reads(bm);
}

static void
pin(struct bm_fetch *fetch, struct bm_block *f)
{
    for (unsigned i = 0; i < fetch->nr_pinned; i++)
        if (fetch->pinned[i] == f)
            return;
    if (fetch->nr_pinned == BM_PINNED_MAX) {
        bm_frame_unpin(fetch->pinned[0]);
        memmove(fetch->pinned, fetch->pinned + 1,
                (BM_PINNED_MAX - 1) * sizeof(struct bm_block *));
        fetch->nr_pinned--;
    }
    f->pins++;
    fetch->pinned[fetch->nr_pinned++] = f;
}

void
bm_fetch_start(struct bm_fetch *fetch)
{
    struct block_manager *bm = fetch->bm;
    mblock_t wanted[BM_MISSING_MAX];
    unsigned nr_wanted = bm_missing(bm, wanted), nr_found = 0;

    THIN_ASSERT(!fetch->running);
    bm_clear_missing(bm);
    fetch->running = true;
    fetch->result = 0;
    fetch->nr_left = 0;
    for (unsigned i = 0; i < nr_wanted; i++) {
        struct bm_block *f = bm_find(bm, wanted[i]);

        if (!f) {
            f = bm_take_frame(bm, wanted[i],
                              fetch->alone ? BM_TO_READ_ALONE : BM_TO_READ);
            if (!f)
                continue;
            TAILQ_INSERT_TAIL(&bm->reads_waiting, f, link);
        }
        nr_found++;
        pin(fetch, f);
        if (f->state == FRAME_LOADING) {
            struct bm_wait *wait = &fetch->waits[fetch->nr_left++];

            wait->fetch = fetch;
            wait->frame = f;
            TAILQ_INSERT_TAIL(&f->waits, wait, link);
        }
    }
    if (nr_wanted && nr_found == 0)
        fetch->result = -THIN_E_CACHE_FULL;
    if (fetch->nr_left == 0)
        loop_defer(bm->dev->loop, &fetch->task);
    start_reads(bm);
}

void
bm_fetch_fini(struct bm_fetch *fetch)
{
    if (fetch->running) {
        for (unsigned i = 0; i < BM_MISSING_MAX; i++)
            if (fetch->waits[i].frame) {
                TAILQ_REMOVE(&fetch->waits[i].frame->waits, &fetch->waits[i], link);
                fetch->waits[i].frame = NULL;
            }
        loop_defer_cancel(fetch->bm->dev->loop, &fetch->task);
        fetch->running = false;
    }
    while (fetch->nr_pinned)
        bm_frame_unpin(fetch->pinned[--fetch->nr_pinned]);
}

/* ---- the cut --------------------------------------------------------------------------- */

uint32_t
bm_cut(struct block_manager *bm)
{
    struct bitset empty = bm->writing_set;

    THIN_ASSERT(bm->stats.locks_held == 0);
    THIN_ASSERT(bm->nr_writing == 0 && !bm->write.running);
    bm->writing_set = bm->dirty_set;
    bm->dirty_set = empty;
    bm->nr_writing = bm->nr_dirty;
    bm->nr_dirty = 0;
    bm->cut++;
    return bm->nr_writing;
}

static void
write_run(struct thin_task *task)
{
    struct block_manager *bm = container_of(task, struct block_manager, write.task);

    bm->write.running = false;
    bm->write.done(bm->write.arg, bm->write.result);
}

static void
seal(struct bm_block *f)
{
    block_seal(f->v.kind, f->data, f->number);
    /* What we would refuse to read is never written. */
    THIN_ASSERT(!f->v.judge || f->v.judge(f->data, f->number, f->v.arg, NULL) == 0);
}

static void write_done(struct device_io *io, int result);

/* Takes the next run of neighbours from the writing set into a free slot. */
static bool
start_write(struct block_manager *bm)
{
    struct bm_write_slot *slot = bm->write.slots;
    mblock_t b;

    if (!bitset_next(&bm->writing_set, bm->write.next, &b))
        return false;
    while (slot->nr)
        slot++;
    slot->io = (struct device_io){
        .op = DEVICE_WRITE,
        .offset = b * METADATA_BLOCK_SIZE,
        .iov = slot->iov,
        .done = write_done,
    };
    for (; slot->nr < BM_WRITE_BLOCKS && bitset_test(&bm->writing_set, b); b++) {
        struct bm_block *f = bm_find(bm, b);

        THIN_ASSERT(f && frame_is_writing(f));
        seal(f);
        slot->frames[slot->nr] = f;
        slot->iov[slot->nr++] =
            (struct iovec){.iov_base = f->data, .iov_len = METADATA_BLOCK_SIZE};
    }
    bm->write.next = b;
    slot->io.nr_iov = slot->nr;
    slot->io.len = (uint64_t)slot->nr * METADATA_BLOCK_SIZE;
    bm->write.in_flight++;
    bm->stats.writes += slot->nr;
    bm->stats.write_ios++;
    device_submit(bm->dev, &slot->io);
    return true;
}

/* Sealing and handing over BM_WRITE_BLOCKS is about what one turn may take. */
static void
go_on_writing(struct block_manager *bm)
{
    if (bm->write.result == 0 && bm->write.in_flight < BM_WRITES_MAX && start_write(bm)) {
        loop_defer(bm->dev->loop, &bm->write.go_on);
        return;
    }
    if (bm->write.in_flight == 0)
        loop_defer(bm->dev->loop, &bm->write.task);
}

static void
go_on_run(struct thin_task *task)
{
    struct block_manager *bm = container_of(task, struct block_manager, write.go_on);

    if (bm->write.running)
        go_on_writing(bm);
}

static void
write_done(struct device_io *io, int result)
{
    struct bm_write_slot *slot = container_of(io, struct bm_write_slot, io);
    struct block_manager *bm = slot->frames[0]->bm;

    if (result == 0) {
        for (unsigned i = 0; i < slot->nr; i++) {
            struct bm_block *f = slot->frames[i];

            f->state = FRAME_LOADED;
            bitset_clear(&bm->writing_set, f->number);
            bm->nr_writing--;
        }
        bm_trim_clean(bm);
    } else if (bm->write.result == 0) {
        bm->write.result = result;
    }
    slot->nr = 0;
    bm->write.in_flight--;
    loop_defer(bm->dev->loop, &bm->write.go_on);
}

void
bm_write_cut(struct block_manager *bm, void (*done)(void *arg, int result), void *arg)
{
    THIN_ASSERT(!bm->write.running);
    bm->write.running = true;
    bm->write.next = 0;
    bm->write.result = 0;
    bm->write.done = done;
    bm->write.arg = arg;
    bm->write.task.run = write_run;
    bm->write.go_on.run = go_on_run;
    loop_defer(bm->dev->loop, &bm->write.go_on);
}

/* ---- block 0, flush --------------------------------------------------------------------- */

static void
single_done(struct device_io *io, int result)
{
    struct bm_single *single = container_of(io, struct bm_single, io);

    single->busy = false;
    single->done(single->arg, result);
}

static void
single_start(struct block_manager *bm, struct bm_single *single,
             void (*done)(void *arg, int result), void *arg)
{
    THIN_ASSERT(!single->busy);
    single->busy = true;
    single->done = done;
    single->arg = arg;
    single->io.done = single_done;
    device_submit(bm->dev, &single->io);
}

void
bm_write_superblock(struct block_manager *bm, void *superblock,
                    void (*done)(void *arg, int result), void *arg)
{
    struct bm_block *f = bm_find(bm, SUPERBLOCK_LOCATION);

    block_seal(BLOCK_SUPERBLOCK, superblock, SUPERBLOCK_LOCATION);
    if (f) {
        THIN_ASSERT(f->state != FRAME_DIRTY);
        bm_wake(f, 0);
        bm_drop(f); /* who wants block 0 reads the new one */
    }
    bm->super.iov =
        (struct iovec){.iov_base = superblock, .iov_len = METADATA_BLOCK_SIZE};
    bm->super.io = (struct device_io){
        .op = DEVICE_WRITE,
        .flags = DEVICE_FUA,
        .offset = SUPERBLOCK_LOCATION * METADATA_BLOCK_SIZE,
        .len = METADATA_BLOCK_SIZE,
        .iov = &bm->super.iov,
        .nr_iov = 1,
    };
    single_start(bm, &bm->super, done, arg);
}

void
bm_flush(struct block_manager *bm, void (*done)(void *arg, int result), void *arg)
{
    bm->flush.io = (struct device_io){.op = DEVICE_FLUSH};
    single_start(bm, &bm->flush, done, arg);
}

void
bm_reset(struct block_manager *bm)
{
    THIN_ASSERT(bm->stats.locks_held == 0);
    THIN_ASSERT(bm->write.in_flight == 0 && !bm->super.busy);
    if (bm->write.running) {
        loop_defer_cancel(bm->dev->loop, &bm->write.task);
        loop_defer_cancel(bm->dev->loop, &bm->write.go_on);
        bm->write.running = false;
    }
    for (uint32_t i = 0; i < bm->nr_begun; i++) {
        struct bm_block *f = &bm->frames[i];

        if (!f->hashed)
            continue;
        bm_wake(f, -THIN_E_CANCELLED);
        bm_drop(f);
    }
    bm_clear_missing(bm);
    THIN_ASSERT(bm->nr_dirty == 0 && bm->nr_writing == 0);
}
