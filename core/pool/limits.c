/* See limits.h for what is counted. */
#include <inttypes.h>
#include <stdlib.h>

#include "core/pool/catalogue_private.h"
#include "core/pool/limits.h"
#include "core/pool/space_private.h"

#define LIMITS_COMMITS_MAX 2u /* commits that a claim waits for before it is refused */
#define WALK_LEAVES_STEP   8u /* leaves counted in one step */

struct reservation {
    uint32_t dev_id;
    uint64_t blocks; /* reserved */
    uint64_t own;
    uint64_t claimed;
    bool unshared; /* known: all that it maps is its own */
    bool walking;
    vblock_t cursor; /* of the walk: below it mappings are counted in `found` */
    uint64_t found;
    bool found_shared;
    UT_hash_handle hh;
};

struct limits {
    struct pool *pool;
    struct reservation *by_id;
    struct reservation *spare; /* what limits_prepare made */
    uint64_t committed;
    bool stopped;

    struct reservation *at; /* being walked; NULL: none */
    unsigned step_leaves;
    struct metaop op;
    struct thin_task task;
    bool at_work;
    bool stale; /* what the step at work reads is no longer so */
    uint32_t step_dev;
    uint32_t step_time;
    bool step_found;
};

static struct reservation *
find(const struct pool *pool, uint32_t dev_id)
{
    struct reservation *res = NULL;

    if (pool->limits && pool->limits->by_id)
        HASH_FIND(hh, pool->limits->by_id, &dev_id, sizeof(dev_id), res);
    return res;
}

static uint64_t
need_of(const struct reservation *res)
{
    return res->blocks > res->own ? res->blocks - res->own : 0;
}

static uint64_t
share_of(const struct reservation *res)
{
    return max_u64(need_of(res), res->claimed);
}

static uint64_t
room(const struct pool *pool)
{
    struct metadata_space ms;

    metadata_data_space(pool->md, &ms);
    return ms.nr_free + ms.nr_pending;
}

uint64_t
limits_unreserved(const struct pool *pool)
{
    uint64_t all = room(pool), committed = pool->limits->committed;

    return all > committed ? all - committed : 0;
}

bool
limits_room(const struct pool *pool)
{
    return !pool->limits->by_id || limits_unreserved(pool) > 0;
}

uint64_t
limits_reserved_bytes(const struct pool *pool)
{
    const struct reservation *res;
    uint64_t sum = 0;

    for (res = pool->limits ? pool->limits->by_id : NULL; res; res = res->hh.next)
        sum += need_of(res);
    return sum * pool->block_size;
}

/* ---- the walk ------------------------------------------------------------------------------ */

static void
walk_kick(struct limits *lm)
{
    if (!lm->stopped && !lm->at_work)
        loop_defer(lm->pool->loop, &lm->task);
}

static void
walk_begin(struct limits *lm, struct reservation *res)
{
    res->walking = true;
    res->cursor = 0;
    res->found = 0;
    res->found_shared = false;
    if (lm->at_work && lm->step_dev == res->dev_id)
        lm->stale = true;
    walk_kick(lm);
}

static int
walk_run(struct metaop *op, struct thin_error *err)
{
    struct limits *lm = container_of(op, struct limits, op);
    struct pool *pool = lm->pool;
    struct pool_internals *in = pool->in;
    struct reservation *res = find(pool, lm->step_dev);
    struct device_details details;
    int r;

    lm->step_found = false;
    if (!res || !res->walking || lm->stale)
        return 0;
    r = metadata_get_device(pool->md, lm->step_dev, &details, &lm->step_found, err);
    if (r < 0 || !lm->step_found)
        return r;
    lm->step_time = details.snapshotted_time;
    return metadata_read_leaf(pool->md, lm->step_dev, res->cursor, in->slots,
                              &in->nr_slots, &in->slots_begin, &in->slots_end, err);
}

static void
walk_count(struct limits *lm, struct reservation *res)
{
    struct pool *pool = lm->pool;
    const struct pool_internals *in = pool->in;

    for (uint32_t i = 0; i < in->nr_slots; i++) {
        if (in->slots[i].vblock < res->cursor)
            continue;
        if (mapping_time(in->slots[i].value) >= lm->step_time)
            res->found++;
        else
            res->found_shared = true;
    }
    res->cursor = in->slots_end;
    if (in->slots_end < VOLUME_BLOCKS_MAX)
        return;
    res->walking = false;
    lm->committed -= share_of(res);
    res->own = res->found;
    res->unshared = !res->found_shared;
    lm->committed += share_of(res);
    if (limits_room(pool))
        space_resume(pool);
}

static void
walk_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct limits *lm = container_of(op, struct limits, op);
    struct reservation *res = find(lm->pool, lm->step_dev);

    lm->at_work = false;
    if (result < 0 && res && !lm->stale) {
        /* It stays taken too low. */
        log_warning("the blocks of a reserved volume cannot be counted: %s pool=%s "
                    "device=%u",
                    thin_error_text(err, result), lm->pool->name, lm->step_dev);
        res->walking = false;
    } else if (result == 0 && res && res->walking && !lm->stale && lm->step_found) {
        walk_count(lm, res);
    } else if (res && !lm->step_found && !lm->stale) {
        res->walking = false;
    }
    walk_kick(lm);
}

static void
walk_task(struct thin_task *task)
{
    struct limits *lm = container_of(task, struct limits, task);
    struct reservation *res;

    if (lm->stopped || lm->at_work || !lm->pool->metadata_ready)
        return;
    for (res = lm->by_id; res && !res->walking;)
        res = res->hh.next;
    if (!res)
        return;
    lm->at_work = true;
    lm->stale = false;
    lm->step_dev = res->dev_id;
    memset(&lm->op, 0, sizeof(lm->op));
    lm->op.run = walk_run;
    lm->op.done = walk_done;
    lm->op.reads_only = true;
    lm->op.name = "count a reserved volume";
    metaop_start(lm->pool, &lm->op, false);
}

/* ---- life ------------------------------------------------------------------------------------ */

int
limits_create(struct pool *pool)
{
    struct limits *lm = calloc(1, sizeof(*lm));

    if (!lm)
        return -ENOMEM;
    lm->pool = pool;
    lm->task.run = walk_task;
    pool->limits = lm;
    return 0;
}

static void
forget_all(struct limits *lm)
{
    while (lm->by_id) {
        struct reservation *res = lm->by_id;

        HASH_DELETE(hh, lm->by_id, res);
        free(res);
    }
}

void
limits_destroy(struct pool *pool)
{
    struct limits *lm = pool->limits;

    if (!lm)
        return;
    loop_defer_cancel(pool->loop, &lm->task);
    forget_all(lm);
    free(lm->spare);
    free(lm);
    pool->limits = NULL;
}

void
limits_stop(struct pool *pool)
{
    if (!pool->limits)
        return;
    pool->limits->stopped = true;
    loop_defer_cancel(pool->loop, &pool->limits->task);
}

int
limits_prepare(struct pool *pool)
{
    if (!pool->limits->spare)
        pool->limits->spare = calloc(1, sizeof(struct reservation));
    return pool->limits->spare ? 0 : -ENOMEM;
}

static struct reservation *
add(struct limits *lm, uint32_t dev_id)
{
    struct reservation *res = take(lm->spare);

    THIN_ASSERT(res);
    memset(res, 0, sizeof(*res));
    res->dev_id = dev_id;
    HASH_ADD(hh, lm->by_id, dev_id, sizeof(res->dev_id), res);
    if (!res->hh.tbl) {
        free(res);
        return NULL;
    }
    return res;
}

int
limits_load(struct pool *pool)
{
    struct limits *lm = pool->limits;
    const struct catalogue_record *record = NULL;
    const char *after = NULL;
    struct volume_core *core;

    forget_all(lm);
    lm->committed = 0;
    lm->stopped = false;
    TAILQ_FOREACH(core, &pool->cores, link)
        lm->committed += core->claimed;
    while ((record = catalogue_next_name(&pool->catalogue->records, after))) {
        after = record->name;
        if (!record->reserve)
            continue;
        if (limits_prepare(pool) < 0)
            return -ENOMEM;
        limits_follow(pool, record->dev_id, record->reserve, false);
        if (!find(pool, record->dev_id))
            return -ENOMEM;
    }
    return 0;
}

/* ---- the administrator's ------------------------------------------------------------------------ */

int
limits_judge(struct pool *pool, uint32_t dev_id, uint64_t bytes, bool all_shared,
             struct thin_error *err)
{
    const struct reservation *res = find(pool, dev_id);
    uint64_t blocks = div_up_u64(bytes, pool->block_size), now = res ? need_of(res) : 0;
    uint64_t own = res && !all_shared ? res->own : 0, need;

    need = blocks > own ? blocks - own : 0;
    if (need <= now || need - now <= limits_unreserved(pool))
        return 0;
    return thin_fail(err, -THIN_E_NO_DATA_SPACE,
                     "a reservation of %" PRIu64 " bytes needs %" PRIu64
                     " more bytes than the pool has unreserved",
                     bytes,
                     (need - now - limits_unreserved(pool)) * (uint64_t)pool->block_size);
}

int
limits_judge_virtual(const struct pool *pool, uint64_t more_bytes, struct thin_error *err)
{
    uint64_t percent = pool->config.overcommit_percent, nr = 0, now = 0;
    uint64_t size = pool->nr_data_blocks * (uint64_t)pool->block_size;
    uint64_t most = size / 100 * percent + size % 100 * percent / 100;

    catalogue_count(pool, &nr, &now);
    if (percent == 0 || (more_bytes <= most && now <= most - more_bytes))
        return 0;
    return thin_fail(err, -THIN_E_LIMIT,
                     "the volumes would have %" PRIu64 " bytes together, %" PRIu64
                     " more than overcommit allows (%" PRIu64 " %% of the data device)",
                     now + more_bytes, now + more_bytes - most, percent);
}

int
limits_judge_shared(struct pool *pool, const uint32_t *dev_ids, uint32_t nr,
                    struct thin_error *err)
{
    uint64_t more = 0, left = limits_unreserved(pool);

    for (uint32_t i = 0; i < nr; i++) {
        const struct reservation *res = find(pool, dev_ids[i]);

        if (res)
            more += res->blocks - need_of(res);
    }
    if (more <= left)
        return 0;
    return thin_fail(err, -THIN_E_NO_DATA_SPACE,
                     "the reservations of what is taken a snapshot of need %" PRIu64
                     " more bytes than the pool has unreserved",
                     (more - left) * pool->block_size);
}

void
limits_follow(struct pool *pool, uint32_t dev_id, uint64_t reserve_bytes, bool fresh)
{
    struct limits *lm = pool->limits;
    struct reservation *res = find(pool, dev_id);
    struct volume_core *core = volume_core_find(pool, dev_id);
    uint64_t blocks = div_up_u64(reserve_bytes, pool->block_size);

    if (!blocks) {
        limits_gone(pool, dev_id);
        return;
    }
    if (res) {
        lm->committed -= share_of(res);
        res->blocks = blocks;
        lm->committed += share_of(res);
        return;
    }
    res = add(lm, dev_id);
    if (!res) {
        log_error("no memory for a reservation pool=%s device=%u", pool->name, dev_id);
        return;
    }
    res->blocks = blocks;
    res->claimed = core ? core->claimed : 0;
    res->unshared = fresh;
    lm->committed -= res->claimed;
    lm->committed += share_of(res);
    if (!fresh)
        walk_begin(lm, res);
}

void
limits_shared(struct pool *pool, uint32_t dev_id)
{
    struct limits *lm = pool->limits;
    struct reservation *res = find(pool, dev_id);

    if (!res)
        return;
    lm->committed -= share_of(res);
    res->own = 0;
    res->unshared = false;
    res->walking = false;
    if (lm->at_work && lm->step_dev == dev_id)
        lm->stale = true;
    lm->committed += share_of(res);
}

void
limits_gone(struct pool *pool, uint32_t dev_id)
{
    struct limits *lm = pool->limits;
    struct reservation *res = find(pool, dev_id);

    if (!res)
        return;
    lm->committed -= share_of(res);
    lm->committed += res->claimed;
    HASH_DELETE(hh, lm->by_id, res);
    free(res);
    space_resume(pool);
}

/* ---- the data path's ------------------------------------------------------------------------------ */

static unsigned
bits(uint32_t mask)
{
    return (unsigned)__builtin_popcount(mask);
}

int
limits_admit(struct volume_frag *frag, vblock_t v, unsigned wanted, unsigned *ret_nr)
{
    struct pool *pool = frag->pool;
    struct limits *lm = pool->limits;
    struct volume_core *core = frag->core;
    struct reservation *res;
    uint64_t may, entitled;
    unsigned nr = 0;

    frag->claim.holes = 0;
    for (; nr < wanted && nr < PROVISION_RUN_MAX; nr++) {
        uint64_t slot = mapcache_get(core, v + nr);

        /* The page may have gone while the fragment waited: then block by block. */
        if (slot == MAP_UNKNOWN && nr > 0)
            break;
        if (slot_mapped(slot))
            continue;
        if (core->quota &&
            core->mapped + core->claimed_holes + bits(frag->claim.holes) >= core->quota)
            break;
        frag->claim.holes |= 1u << nr;
    }
    if (nr == 0)
        return -THIN_E_QUOTA;
    *ret_nr = nr;
    if (!lm->by_id)
        return 0;
    res = find(pool, core->dev_id);
    entitled = res && need_of(res) > res->claimed ? need_of(res) - res->claimed : 0;
    may = limits_unreserved(pool) + entitled;
    if (may == 0) {
        uint64_t txn = commit_last_txn(pool);

        /* What was freed lately may show only when its transaction is durable. */
        if (txn && frag->commits_waited++ < LIMITS_COMMITS_MAX) {
            TAILQ_INSERT_TAIL(&pool->space->waiters, frag, link);
            commit_want(pool, txn);
            return 1;
        }
        return -THIN_E_NO_DATA_SPACE;
    }
    *ret_nr = (unsigned)min_u64(nr, may);
    return 0;
}

static void
claimed_change(struct volume_frag *frag, bool more)
{
    struct limits *lm = frag->pool->limits;
    struct volume_core *core = frag->core;
    struct reservation *res = find(frag->pool, core->dev_id);
    unsigned nr = frag->claim.counted;
    uint64_t delta = more ? nr : 0ull - nr;

    core->claimed += delta;
    if (!res) {
        lm->committed += delta;
        return;
    }
    lm->committed -= share_of(res);
    res->claimed += delta;
    lm->committed += share_of(res);
}

void
limits_claimed(struct volume_frag *frag)
{
    frag->claim.counted = frag->claim.nr;
    frag->claim.holes &= (uint32_t)((1ull << frag->claim.nr) - 1);
    frag->core->claimed_holes += bits(frag->claim.holes);
    claimed_change(frag, true);
}

void
limits_claim_ended(struct volume_frag *frag, bool mapped)
{
    struct limits *lm = frag->pool->limits;
    struct volume_core *core = frag->core;
    struct reservation *res = find(frag->pool, core->dev_id);
    vblock_t v = pool_vblock(frag->pool, frag->step_begin);
    unsigned nr = frag->claim.nr; /* may have become less than was claimed */

    claimed_change(frag, false);
    core->claimed_holes -= bits(frag->claim.holes);
    if (!mapped)
        return;
    core->mapped += bits(frag->claim.holes & (uint32_t)((1ull << nr) - 1));
    if (!res)
        return;
    lm->committed -= share_of(res);
    res->own += nr;
    for (unsigned i = 0; i < nr && res->walking; i++)
        res->found += v + i < res->cursor;
    lm->committed += share_of(res);
}

void
limits_unmapped(struct pool *pool, uint32_t dev_id, uint64_t nr)
{
    struct limits *lm = pool->limits;
    struct reservation *res = find(pool, dev_id);
    struct volume_core *core = volume_core_find(pool, dev_id);

    if (core)
        core->mapped -= min_u64(nr, core->mapped);
    if (!res || nr == 0)
        return;
    lm->committed -= share_of(res);
    res->own -= min_u64(nr, res->own);
    lm->committed += share_of(res);
    if (!res->unshared)
        walk_begin(lm, res);
}
