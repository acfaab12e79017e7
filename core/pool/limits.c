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
    bool unshared;   /* known: all that it maps is its own */
    bool counted;    /* `own` is exact; else perhaps too low */
    bool walking;    /* set by walk_set */
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
    unsigned nr_walking;
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
    struct mapping_slot held[MAPPING_SLOTS_MAX]; /* what the held root maps there */
    uint32_t nr_held;
    vblock_t step_end;
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
walk_set(struct limits *lm, struct reservation *res, bool walking)
{
    if (res->walking == walking)
        return;
    res->walking = walking;
    if (walking)
        lm->nr_walking++;
    else
        lm->nr_walking--;
}

/* Who waited to know whether there is room looks again. */
static void
walk_ended(struct limits *lm, struct reservation *res)
{
    walk_set(lm, res, false);
    if (limits_room(lm->pool))
        space_resume(lm->pool);
    else
        loop_defer(lm->pool->loop, &lm->pool->space->wake_task);
}

static void
walk_begin(struct limits *lm, struct reservation *res)
{
    walk_set(lm, res, true);
    res->counted = false;
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
    r = metadata_read_held_leaf(pool->md, lm->step_dev, res->cursor, lm->held,
                                &lm->nr_held, &lm->step_end, err);
    if (r < 0)
        return r;
    r = metadata_read_leaf(pool->md, lm->step_dev, res->cursor, in->slots, &in->nr_slots,
                           &in->slots_begin, &in->slots_end, err);
    if (r == 0)
        lm->step_end = min_u64(lm->step_end, in->slots_end);
    return r;
}

/* Whether the held root keeps a mapping's block: then it is not the volume's alone. Both
   rows are sorted; *at goes along. */
static bool
is_held(const struct limits *lm, uint32_t *at, const struct mapping_slot *slot)
{
    while (*at < lm->nr_held && lm->held[*at].vblock < slot->vblock)
        ++*at;
    return *at < lm->nr_held && lm->held[*at].vblock == slot->vblock &&
           mapping_block(lm->held[*at].value) == mapping_block(slot->value);
}

static void
walk_count(struct limits *lm, struct reservation *res)
{
    struct pool *pool = lm->pool;
    const struct pool_internals *in = pool->in;
    uint32_t at = 0;

    for (uint32_t i = 0; i < in->nr_slots; i++) {
        const struct mapping_slot *slot = &in->slots[i];

        if (slot->vblock < res->cursor || slot->vblock >= lm->step_end)
            continue;
        if (mapping_time(slot->value) >= lm->step_time && !is_held(lm, &at, slot))
            res->found++;
        else
            res->found_shared = true;
    }
    res->cursor = lm->step_end;
    if (lm->step_end < VOLUME_BLOCKS_MAX)
        return;
    lm->committed -= share_of(res);
    res->own = res->found;
    res->unshared = !res->found_shared;
    res->counted = true;
    lm->committed += share_of(res);
    walk_ended(lm, res);
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
        walk_ended(lm, res);
    } else if (result == 0 && res && res->walking && !lm->stale && lm->step_found) {
        walk_count(lm, res);
    } else if (res && !lm->step_found && !lm->stale) {
        walk_ended(lm, res);
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
    lm->nr_walking = 0;
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

/*
 * Whether the pool may promise so many blocks in all. While volumes are being counted it
 * seems to promise more than it does; that is said.
 */
static int
judge_total(const struct pool *pool, uint64_t total, const char *what,
            struct thin_error *err)
{
    uint64_t all = room(pool);

    if (total <= all)
        return 0;
    return thin_fail(err, -THIN_E_NO_DATA_SPACE,
                     "%s%s %" PRIu64 " more bytes than the pool has unreserved%s", what,
                     pool->limits->nr_walking ? ", perhaps," : "",
                     (total - all) * (uint64_t)pool->block_size,
                     pool->limits->nr_walking
                         ? "; what reserved volumes map is still being counted, try "
                           "again in a while"
                         : "");
}

int
limits_judge(struct pool *pool, uint32_t dev_id, uint64_t bytes, bool all_shared,
             struct thin_error *err)
{
    const struct reservation *res = find(pool, dev_id);
    uint64_t blocks = div_up_u64(bytes, pool->block_size);
    uint64_t own = res && !all_shared ? res->own : 0;
    uint64_t need = blocks > own ? blocks - own : 0, total = pool->limits->committed;
    char what[80];

    /* Not more than before, whatever it maps. */
    if (blocks == 0 || (res && blocks <= res->blocks && !all_shared) ||
        (res && res->counted && need <= need_of(res)))
        return 0;
    total += (res ? max_u64(need, res->claimed) : need) - (res ? share_of(res) : 0);
    snprintf(what, sizeof(what), "a reservation of %" PRIu64 " bytes needs", bytes);
    return judge_total(pool, total, what, err);
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

/* What it would need more if all that it maps were shared. */
static uint64_t
more_if_shared(const struct reservation *res)
{
    return max_u64(res->blocks, res->claimed) - share_of(res);
}

int
limits_judge_shared(struct pool *pool, const uint32_t *dev_ids, uint32_t nr,
                    struct thin_error *err)
{
    uint64_t more = 0;
    bool counted = true;

    for (uint32_t i = 0; i < nr; i++) {
        const struct reservation *res = find(pool, dev_ids[i]);

        if (!res)
            continue;
        more += more_if_shared(res);
        counted = counted && res->counted;
    }
    if (more == 0 && counted)
        return 0;
    return judge_total(pool, pool->limits->committed + more,
                       "the reservations of what is taken a snapshot of need", err);
}

int
limits_judge_rollback(struct pool *pool, uint32_t dev_id, uint64_t bytes,
                      uint32_t origin_id, struct thin_error *err)
{
    const struct reservation *res = find(pool, dev_id), *origin = find(pool, origin_id);
    uint64_t total = pool->limits->committed;

    if (!origin)
        return limits_judge(pool, dev_id, bytes, true, err);
    total += div_up_u64(bytes, pool->block_size) - (res ? share_of(res) : 0);
    return judge_total(pool, total + more_if_shared(origin),
                       "the reservations of the volume and of its snapshot need", err);
}

int
limits_judge_held(struct pool *pool, struct thin_error *err)
{
    const struct reservation *res;
    uint64_t more = 0;
    bool counted = true;

    for (res = pool->limits->by_id; res; res = res->hh.next) {
        more += more_if_shared(res);
        counted = counted && res->counted;
    }
    if (more == 0 && counted)
        return 0;
    return judge_total(pool, pool->limits->committed + more,
                       "the reservations of volumes whose blocks it would keep need",
                       err);
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
    res->unshared = res->counted = fresh;
    lm->committed -= res->claimed;
    lm->committed += share_of(res);
    if (!fresh)
        walk_begin(lm, res);
}

static void
share_all(struct limits *lm, struct reservation *res)
{
    lm->committed -= share_of(res);
    res->own = 0;
    res->unshared = false;
    res->counted = true;
    if (res->walking)
        walk_ended(lm, res);
    if (lm->at_work && lm->step_dev == res->dev_id)
        lm->stale = true;
    lm->committed += share_of(res);
}

void
limits_shared(struct pool *pool, uint32_t dev_id)
{
    struct reservation *res = find(pool, dev_id);

    if (res)
        share_all(pool->limits, res);
}

void
limits_held(struct pool *pool)
{
    for (struct reservation *res = pool->limits->by_id; res; res = res->hh.next)
        share_all(pool->limits, res);
}

void
limits_released(struct pool *pool)
{
    for (struct reservation *res = pool->limits->by_id; res; res = res->hh.next)
        if (!res->unshared)
            walk_begin(pool->limits, res);
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
    walk_set(lm, res, false);
    HASH_DELETE(hh, lm->by_id, res);
    free(res);
    space_resume(pool);
}

/* ---- the data path's ------------------------------------------------------------------------------ */

/*
 * How many blocks a volume may take now: those that nobody else was promised, or those that
 * it was promised for certain. While it is being counted, all that it maps may be its own.
 */
static uint64_t
may_take(const struct pool *pool, const struct volume_core *core)
{
    const struct reservation *res = find(pool, core->dev_id);
    uint64_t all = room(pool), others = pool->limits->committed, sure, own;

    if (!res)
        return limits_unreserved(pool);
    others += res->claimed - share_of(res); /* and its own claims */
    own = res->counted ? res->own : max_u64(res->own, core->mapped);
    own += res->claimed;
    sure = res->blocks > own ? res->blocks - own : 0;
    return max_u64(all > others ? all - others : 0, sure);
}

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
    uint64_t may;
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
    may = may_take(pool, core);
    if (may == 0 && lm->nr_walking && !lm->stopped) {
        /* More may be promised than it seems, or less: that is known soon. */
        TAILQ_INSERT_TAIL(&pool->space->waiters, frag, link);
        return 1;
    }
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
