/* How much each volume has for itself alone: two walks with one byte for each block. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/pool/admin_private.h"

#define LEAVES_A_STEP 4u

enum { BLOCK_UNUSED, BLOCK_ALONE, BLOCK_SHARED };

struct waiter {
    struct pool_done done;
    TAILQ_ENTRY(waiter) link;
};
TAILQ_HEAD(waiter_list, waiter);

struct exclusive {
    struct pool *pool;
    bool running;
    bool valid;   /* what the records say was so... */
    uint64_t txn; /* ...in this open transaction, when it held no change */
    uint64_t epoch;
    struct waiter_list waiters;

    uint8_t *blocks; /* while running */
    uint64_t nr_blocks;
    bool second;      /* walk: first marks, second counts */
    uint64_t next_id; /* devices below are done */
    uint32_t dev_id;  /* the one at hand */
    bool in_device;
    vblock_t vblock;
    uint64_t begun_txn;
    bool begun_clean;

    struct mapping_slot slots[LEAVES_A_STEP * 252];
    uint32_t nr_slots;
    vblock_t reached;
    bool at_end; /* of the device */
    struct metaop op;
};

static void walk_on(struct exclusive *ex);

static void
finish(struct exclusive *ex, int result, const struct thin_error *err)
{
    struct admin *admin = ex->pool->admin;
    struct waiter_list waiters = TAILQ_HEAD_INITIALIZER(waiters);
    struct waiter *waiter;

    free(ex->blocks);
    ex->blocks = NULL;
    ex->running = false;
    /* Nothing changed from begin to end: it stands until something does. */
    ex->valid = result == 0 && ex->begun_clean && !metadata_changed(ex->pool->md) &&
                metadata_txn(ex->pool->md) == ex->begun_txn &&
                ex->epoch == ex->pool->epoch;
    ex->txn = ex->begun_txn;
    TAILQ_CONCAT(&waiters, &ex->waiters, link);
    while ((waiter = TAILQ_FIRST(&waiters))) {
        TAILQ_REMOVE(&waiters, waiter, link);
        waiter->done.fn(waiter->done.arg, result, err);
        free(waiter);
    }
    admin->nr_reads--;
    admin_check_stopped(admin);
}

static int
leaves_run(struct metaop *op, struct thin_error *err)
{
    struct exclusive *ex = container_of(op, struct exclusive, op);
    int r = 0;

    ex->nr_slots = 0;
    ex->reached = ex->vblock;
    ex->at_end = false;
    for (uint32_t i = 0; i < LEAVES_A_STEP && !ex->at_end; i++) {
        vblock_t begin, end;
        uint32_t nr = 0;

        r = metadata_read_leaf(ex->pool->md, ex->dev_id, ex->reached,
                               ex->slots + ex->nr_slots, &nr, &begin, &end, err);
        if (r < 0)
            break;
        /* The leaf may begin below: what was counted is not counted again. */
        for (uint32_t s = 0, from = ex->nr_slots; s < nr; s++)
            if (ex->slots[from + s].vblock >= ex->reached)
                ex->slots[ex->nr_slots++] = ex->slots[from + s];
        ex->at_end = end <= ex->reached || end == UINT64_MAX;
        ex->reached = end;
    }
    if (r == -THIN_E_NOT_FOUND || is_damage(r)) {
        ex->at_end = true;
        return 0;
    }
    /* The leaves at hand count; the next step fetches the one that is missing. */
    return r == -THIN_E_WOULD_BLOCK && ex->reached > ex->vblock ? 0 : r;
}

static void
leaves_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct exclusive *ex = container_of(op, struct exclusive, op);
    struct catalogue_record *record;

    if (result < 0) {
        finish(ex, result, err);
        return;
    }
    record = catalogue_by_id(&ex->pool->catalogue->records, ex->dev_id);
    for (uint32_t i = 0; i < ex->nr_slots; i++) {
        dblock_t b = mapping_block(ex->slots[i].value);

        if (b >= ex->nr_blocks)
            continue;
        if (!ex->second && ex->blocks[b] != BLOCK_SHARED)
            ex->blocks[b]++;
        else if (ex->second && ex->blocks[b] == BLOCK_ALONE && record)
            record->exclusive++;
    }
    ex->vblock = ex->reached;
    if (ex->at_end)
        ex->in_device = false;
    walk_on(ex);
}

static void
walk_on(struct exclusive *ex)
{
    if (!ex->in_device) {
        struct catalogue_record *record = NULL;

        if (ex->pool->admin->stopping) {
            struct thin_error err;

            thin_error_init(&err);
            thin_fail(&err, -THIN_E_SHUTDOWN, "the pool is being closed");
            finish(ex, -THIN_E_SHUTDOWN, &err);
            return;
        }
        if (ex->next_id <= DEV_ID_MAX)
            record =
                catalogue_next_id(&ex->pool->catalogue->records, (uint32_t)ex->next_id);
        if (!record && ex->second) {
            finish(ex, 0, NULL);
            return;
        }
        if (!record) {
            ex->second = true;
            ex->next_id = 0;
            record = catalogue_next_id(&ex->pool->catalogue->records, 0);
            if (!record) {
                finish(ex, 0, NULL);
                return;
            }
        }
        ex->in_device = true;
        ex->dev_id = record->dev_id;
        ex->next_id = (uint64_t)record->dev_id + 1;
        ex->vblock = 0;
        if (ex->second)
            record->exclusive = 0;
    }
    /* Later: so each step is one turn. */
    metaop_start(ex->pool, &ex->op, false);
}

static int
begin(struct exclusive *ex, struct thin_error *err)
{
    struct metadata_space space;

    metadata_data_space(ex->pool->md, &space);
    if (space.nr_blocks > EXCLUSIVE_BLOCKS_MAX)
        return thin_fail(err, -THIN_E_LIMIT,
                         "a pool of %" PRIu64
                         " blocks: exclusive space is counted up to %u; ask the offline "
                         "tools",
                         space.nr_blocks, EXCLUSIVE_BLOCKS_MAX);
    ex->blocks = calloc(space.nr_blocks ? space.nr_blocks : 1, 1);
    if (!ex->blocks)
        return thin_fail_code(err, -ENOMEM, "count exclusive blocks");
    ex->nr_blocks = space.nr_blocks;
    ex->running = true;
    ex->second = false;
    ex->next_id = 0;
    ex->in_device = false;
    ex->begun_txn = metadata_txn(ex->pool->md);
    ex->begun_clean = !metadata_changed(ex->pool->md);
    ex->epoch = ex->pool->epoch;
    memset(&ex->op, 0, sizeof(ex->op));
    ex->op.run = leaves_run;
    ex->op.done = leaves_done;
    ex->op.name = "count exclusive";
    ex->op.reads_only = true;
    ex->pool->admin->nr_reads++;
    return 0;
}

void
exclusive_count(struct pool *pool, struct pool_done done)
{
    struct admin *admin = pool->admin;
    struct exclusive *ex = admin->exclusive;
    struct waiter *waiter;
    struct thin_error err;
    bool starts;
    int r;

    thin_error_init(&err);
    if (!ex) {
        ex = admin->exclusive = calloc(1, sizeof(*ex));
        if (!ex) {
            thin_fail_code(&err, -ENOMEM, "count exclusive blocks");
            admin_refuse(pool, NULL, done, -ENOMEM, &err);
            return;
        }
        ex->pool = pool;
        TAILQ_INIT(&ex->waiters);
    }
    if (ex->valid && ex->txn == metadata_txn(pool->md) && ex->epoch == pool->epoch &&
        !metadata_changed(pool->md)) {
        admin_refuse(pool, NULL, done, 0, NULL); /* no refusal, but told later */
        return;
    }
    waiter = calloc(1, sizeof(*waiter));
    starts = waiter && !ex->running;
    r = waiter ? 0 : thin_fail_code(&err, -ENOMEM, "count exclusive blocks");
    if (starts)
        r = begin(ex, &err);
    if (r < 0) {
        free(waiter);
        admin_refuse(pool, NULL, done, r, &err);
        return;
    }
    waiter->done = done;
    TAILQ_INSERT_TAIL(&ex->waiters, waiter, link);
    if (starts && catalogue_next_id(&pool->catalogue->records, 0)) {
        walk_on(ex);
    } else if (starts) {
        /* No volumes: nothing to walk. The answer still comes later. */
        TAILQ_REMOVE(&ex->waiters, waiter, link);
        free(waiter);
        finish(ex, 0, NULL);
        admin_refuse(pool, NULL, done, 0, NULL);
    }
}

void
exclusive_destroy(struct exclusive *ex)
{
    if (!ex)
        return;
    free(ex->blocks);
    free(ex);
}
