/*
 * Pinned views: the durable state of one moment stays readable on the metadata device,
 * for who reads it there by himself and in his own time.
 *
 * Nothing is copied but block 0. What the pinned state reaches is never written in place,
 * and blocks freed since wait in the transaction manager's list until the pin goes. Where
 * that list, or what is free beside it, runs out, the oldest pin goes first.
 *
 *   pool_pin ─ tm_pin_view, read block 0 ─► done ─► held ─► pool_unpin
 *                                                    └─► lost ─► pool_unpin (only frees)
 *
 * Block 0 is read after the pin was set, so it may be of a later transaction than the
 * pin's: what that one reaches was freed later still, and stays as well.
 */
#include <stdlib.h>

#include "core/pool/space_private.h"

#define PIN_READS_MAX 16u /* of block 0, when it is met half written */
/* The oldest view goes when less than one part is free and more than the other waits. */
#define PIN_FREE_PART 16u
#define PIN_HELD_PART 16u

struct pool_pin {
    struct pool *pool; /* NULL: lost */
    struct tm_pin view;
    bool reading;
    int why; /* it was lost; 0: it was not */
    unsigned nr_reads;
    void *superblock;
    struct iovec iov;
    struct device_io io;
    void (*done)(void *arg, const void *superblock, int result,
                 const struct thin_error *err);
    void (*lost)(void *arg, int why);
    void *arg;
    LIST_ENTRY(pool_pin) link; /* newest first */
};

static void
pin_free(struct pool_pin *pin)
{
    free(pin->superblock);
    free(pin);
}

static void
pin_drop(struct pool_pin *pin, int why)
{
    struct pool *pool = pin->pool;

    THIN_ASSERT(pool); /* listed as long as it has one */
    log_notice("a reader of the metadata loses its view: %s pool=%s", thin_strerror(why),
               pool->name);
    LIST_REMOVE(pin, link);
    tm_unpin_view(metadata_tm(pool->md), &pin->view);
    commit_free(pool);
    pin->why = why;
    if (pin->reading) /* told when the read ends */
        return;
    pin->pool = NULL;
    pin->lost(pin->arg, why);
}

bool
pins_drop_oldest(struct pool *pool, int why)
{
    struct pool_pin *pin = LIST_FIRST(&pool->pins);

    if (!pin)
        return false;
    while (LIST_NEXT(pin, link))
        pin = LIST_NEXT(pin, link);
    pin_drop(pin, why);
    return true;
}

void
pins_drop_all(struct pool *pool, int why)
{
    struct pool_pin *pin;

    while ((pin = LIST_FIRST(&pool->pins)))
        pin_drop(pin, why);
}

/* Whether views hold back more than they should: before anybody waits for the blocks, and
   before the metadata would grow for them, which cannot be taken back. */
static bool
hold_too_much(struct pool *pool)
{
    bool grows = pool->config.extend_metadata && pool->metadata_dev->limits.grows;
    struct tm_stats s;
    uint64_t nr_free;

    tm_get_stats(metadata_tm(pool->md), &s);
    nr_free = s.nr_blocks - s.nr_allocated - s.nr_pending;
    if (s.nr_pending >= TM_PENDING_MAX / 2)
        return true;
    return s.nr_pending >= s.nr_blocks / PIN_HELD_PART &&
           nr_free <
               s.reserve + s.nr_blocks / (grows ? METADATA_LOW_PART : PIN_FREE_PART);
}

void
pins_after_commit(struct pool *pool)
{
    /* What it held back is let go in steps, after which this is asked again. */
    if (!LIST_EMPTY(&pool->pins) && hold_too_much(pool))
        pins_drop_oldest(pool, -THIN_E_NO_METADATA_SPACE);
}

/* ---- taking and giving back ---------------------------------------------------------- */

static void
pin_read_done(struct device_io *io, int result)
{
    struct pool_pin *pin = container_of(io, struct pool_pin, io);
    struct pool *pool = pin->pool;
    struct thin_error err;

    thin_error_init(&err);
    if (pin->why)
        result = thin_fail(&err, pin->why, "%s", thin_strerror(pin->why));
    else if (result == 0)
        result =
            block_check(BLOCK_SUPERBLOCK, pin->superblock, SUPERBLOCK_LOCATION, &err);
    else
        thin_fail_code(&err, result, "read the superblock");
    if (result < 0 && !pin->why && is_damage(result) && ++pin->nr_reads < PIN_READS_MAX) {
        device_submit(pool->metadata_dev, &pin->io); /* it is being written just now */
        return;
    }
    pin->reading = false;
    pool->commit.md_io--;
    pool_check_idle(pool);
    if (result == 0) {
        pin->done(pin->arg, pin->superblock, 0, &err);
        return;
    }
    if (!pin->why) {
        LIST_REMOVE(pin, link);
        tm_unpin_view(metadata_tm(pool->md), &pin->view);
        commit_free(pool);
    }
    pin->done(pin->arg, NULL, result, &err);
    pin_free(pin);
}

int
pool_pin(struct pool *pool,
         void (*done)(void *arg, const void *superblock, int result,
                      const struct thin_error *err),
         void (*lost)(void *arg, int why), void *arg, struct pool_pin **ret_pin,
         struct thin_error *err)
{
    struct pool_pin *pin;
    unsigned nr = 0;

    if (pool->closing)
        return thin_fail(err, -THIN_E_SHUTDOWN, "the pool is closing");
    if (!pool->opened || !pool->metadata_ready)
        return thin_fail(err, -THIN_E_FAILED, "the pool cannot be read now%s%s",
                         pool->why[0] ? ": " : "", pool->why);
    LIST_FOREACH(pin, &pool->pins, link)
        nr++;
    if (nr >= POOL_PINS_MAX)
        return thin_fail(err, -THIN_E_LIMIT, "%u readers of the metadata are at work",
                         nr);
    pin = calloc(1, sizeof(*pin));
    if (pin)
        pin->superblock = aligned_alloc(METADATA_BLOCK_SIZE, METADATA_BLOCK_SIZE);
    if (!pin || !pin->superblock) {
        free(pin);
        return thin_fail_code(err, -ENOMEM, "pin the metadata");
    }
    pin->pool = pool;
    pin->done = done;
    pin->lost = lost;
    pin->arg = arg;
    LIST_INSERT_HEAD(&pool->pins, pin, link);
    tm_pin_view(metadata_tm(pool->md), &pin->view);
    pin->reading = true;
    pin->iov.iov_base = pin->superblock;
    pin->iov.iov_len = METADATA_BLOCK_SIZE;
    pin->io.op = DEVICE_READ;
    pin->io.offset = SUPERBLOCK_LOCATION;
    pin->io.len = METADATA_BLOCK_SIZE;
    pin->io.iov = &pin->iov;
    pin->io.nr_iov = 1;
    pin->io.done = pin_read_done;
    pool->commit.md_io++; /* close and roll-back wait for it */
    device_submit(pool->metadata_dev, &pin->io);
    *ret_pin = pin;
    return 0;
}

void
pool_unpin(struct pool_pin *pin)
{
    if (!pin)
        return;
    THIN_ASSERT(!pin->reading);
    if (pin->pool) {
        LIST_REMOVE(pin, link);
        tm_unpin_view(metadata_tm(pin->pool->md), &pin->view);
        commit_free(pin->pool);
    }
    pin_free(pin);
}
