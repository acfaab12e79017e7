/*
 * A whole metadata image for tests of this floor: device, cache, transactions, data
 * space map, a two-level mapping tree and a details tree, run as the engine runs them
 * (passes that miss are undone, what is missing is fetched). Included by each program.
 */
#ifndef THIN_TESTS_UNIT_PERSIST_RIG_H
#define THIN_TESTS_UNIT_PERSIST_RIG_H

#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/base/crc32c.h"
#include "core/base/random.h"
#include "core/ondisk/details.h"
#include "core/ondisk/mapping.h"
#include "core/persist/bm_private.h"
#include "core/persist/sm_private.h"
#include "core/persist/tm_private.h"
#include "tests/lib/device_fault.h"
#include "tests/lib/recount.h"
#include "tests/lib/sim_loop.h"
#include "tests/lib/test_cache.h"

/* Check's own asserts write to a pipe each time: too slow for millions. */
#define want(cond)                          \
    do {                                    \
        if (!(cond))                        \
            ck_abort_msg("not: %s", #cond); \
    } while (0)
#define want_eq(a, b)                                                                  \
    do {                                                                               \
        uint64_t want_a = (uint64_t)(a), want_b = (uint64_t)(b);                       \
        if (want_a != want_b)                                                          \
            ck_abort_msg("%s is %" PRIu64 ", %s is %" PRIu64, #a, want_a, #b, want_b); \
    } while (0)

struct rig {
    struct thin_loop *loop;
    struct device *mem, *dev; /* dev: the fault wrapper around mem */
    struct block_manager *bm;
    struct transaction_manager *tm;
    struct space_map *sm;
    struct btree top, map, details; /* map: one device's tree */
    mblock_t top_root, details_root;

    uint32_t nr_frames, node_max, reserve;
    uint64_t nr_data;
    uint32_t time;
    bool waiting;
    bool check_undo; /* compare the whole state around every undone pass */

    /* A commit between cut and durable. */
    bool committing;
    uint64_t cut_txn;
    uint8_t super[METADATA_BLOCK_SIZE];
    bool io_done;
    int io_result;

    dblock_t data_cursor;
    uint64_t nr_undone, nr_fetches, nr_commits, nr_faults;
    uint32_t locks_high_water;
    struct thin_error err;
};

static inline uint64_t
rig_seed(uint64_t fallback)
{
    const char *seed = getenv("SEED");
    uint64_t value = seed ? strtoull(seed, NULL, 0) : fallback;

    printf("SEED=%" PRIu64 "\n", value);
    fflush(stdout);
    return value;
}

/* ---- what the trees' values refer to --------------------------------------------------- */

static inline int
rig_map_each(struct rig *rig, const uint8_t *values, uint32_t nr,
             int (*change)(struct space_map *, dblock_t, dblock_t, struct thin_error *),
             struct thin_error *err)
{
    for (uint32_t i = 0; i < nr; i++) {
        dblock_t b = mapping_block(load_le64(values + 8 * (size_t)i));
        int r = change(rig->sm, b, b + 1, err);

        if (r < 0)
            return r;
    }
    return 0;
}

static inline int
rig_map_inc(void *context, const uint8_t *values, uint32_t nr, struct thin_error *err)
{
    return rig_map_each(context, values, nr, sm_inc, err);
}

static inline int
rig_map_dec(void *context, const uint8_t *values, uint32_t nr, struct thin_error *err)
{
    return rig_map_each(context, values, nr, sm_dec, err);
}

static inline bool
rig_map_equal(void *context, const uint8_t *a, const uint8_t *b)
{
    (void)context;
    return mapping_block(load_le64(a)) == mapping_block(load_le64(b));
}

static inline int
rig_top_inc(void *context, const uint8_t *values, uint32_t nr, struct thin_error *err)
{
    struct rig *rig = context;

    for (uint32_t i = 0; i < nr; i++) {
        int r = tm_inc(rig->tm, load_le64(values + 8 * (size_t)i), 1, err);

        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- the whole state as one number -------------------------------------------------------- */

static inline void
rig_mix(uint32_t *crc, uint64_t x)
{
    *crc = crc32c_update(*crc, &x, sizeof(x));
}

/* Everything that undo must put back: counts, allocations, dirty frames, deltas. */
static inline uint32_t
rig_state(const struct rig *rig)
{
    const struct transaction_manager *tm = rig->tm;
    const struct space_map *sm = rig->sm;
    uint32_t crc = CRC32C_INIT;
    uint64_t b, sum = 0;

    crc = crc32c_update(crc, &tm->core, sizeof(tm->core));
    for (uint32_t i = 0; i < tm->core.nr_bitmaps; i++) {
        crc = crc32c_update(crc, tm->bitmaps[i].image, METADATA_BLOCK_SIZE);
        rig_mix(&crc, tm->bitmaps[i].place);
        rig_mix(&crc, tm->bitmaps[i].dirty);
    }
    for (b = 0; bitset_next(&tm->pending, b, &b); b++)
        rig_mix(&crc, b);
    for (b = 0; bitset_next(&tm->made, b, &b); b++)
        rig_mix(&crc, b);
    rig_mix(&crc, tm->nr_freed);
    for (uint32_t i = 0; i < tm->core.nr_changed; i++) {
        uint32_t at = 0;

        want(u64_map_get(&tm->overflow_at, tm->changed[i], &at));
        want(tm->overflow[at].changed);
        /* A cut sorts them. */
        sum += (tm->changed[i] + 7) * (tm->overflow[at].count + 1000003ull);
    }
    rig_mix(&crc, sum);
    for (b = 0; bitset_next(&rig->bm->dirty_set, b, &b); b++) {
        const struct bm_block *f = bm_find(rig->bm, b);

        want(f && frame_is_open(f));
        rig_mix(&crc, b);
        crc = crc32c_update(crc, f->data, METADATA_BLOCK_SIZE);
    }
    rig_mix(&crc, rig->bm->nr_dirty);
    want_eq(rig->bm->stats.locks_held, 0);

    rig_mix(&crc, rig->top_root);
    rig_mix(&crc, rig->details_root);
    if (!sm)
        return crc;
    crc = crc32c_update(crc, &sm->core.root, sizeof(sm->core.root));
    rig_mix(&crc, sm->core.overflow_max);
    rig_mix(&crc, (uint64_t)sm->nr_deltas << 32 | sm->nr_fresh);
    rig_mix(&crc, (uint64_t)sm->nr_up << 32 | sm->nr_groups);
    rig_mix(&crc, sm->nr_down);
    for (b = 0; bitset_next(&sm->group_set, b, &b); b++) {
        uint32_t at = 0;

        sum = 0; /* the order within a group does not matter */
        want(u64_map_get(&sm->group_at, b, &at));
        for (uint32_t i = sm->groups[at].first; i != SM_NONE; i = sm->deltas[i].next)
            sum += (sm->deltas[i].block * 2 + sm->deltas[i].fresh) *
                   (uint64_t)(sm->deltas[i].delta + 1000003);
        rig_mix(&crc, b);
        rig_mix(&crc, sum);
    }
    rig_mix(&crc, sm->nr_pending);
    for (uint32_t i = 0; i < sm->nr_runs; i++) {
        const struct sm_run *run = &sm->runs[(sm->runs_head + i) % sm->cap_runs];

        rig_mix(&crc, run->begin);
        rig_mix(&crc, run->len);
    }
    return crc;
}

/* ---- passes ---------------------------------------------------------------------------------- */

static inline void
rig_io_done(void *arg, int result)
{
    struct rig *rig = arg;

    rig->io_done = true;
    rig->io_result = result;
}

struct rig_fetch {
    struct bm_fetch fetch;
    bool done;
    int result;
};

static inline void
rig_fetch_done(struct bm_fetch *fetch, int result)
{
    struct rig_fetch *f = container_of(fetch, struct rig_fetch, fetch);

    f->done = true;
    f->result = result;
}

static inline int
rig_fetch_wait(struct rig *rig, struct rig_fetch *f)
{
    f->done = false;
    bm_fetch_start(&f->fetch);
    while (!f->done)
        want(sim_loop_step(rig->loop));
    rig->nr_fetches++;
    if (f->result == -THIN_E_CACHE_FULL && !f->fetch.alone) {
        /* As the pool does with an operation that reads much: it is tried alone. */
        bm_fetch_fini(&f->fetch);
        bm_fetch_init(&f->fetch, rig->bm, rig_fetch_done);
        f->fetch.alone = true;
        return 0;
    }
    return f->result;
}

/* Makes every block that can leave the cache leave it. */
static inline void
rig_drop_clean(struct rig *rig)
{
    for (uint32_t i = 0; i < rig->bm->nr_begun; i++) {
        struct bm_block *f = &rig->bm->frames[i];

        if (f->hashed && f->state == FRAME_LOADED && !f->pins)
            bm_drop(f);
    }
}

static inline int rig_commit(struct rig *rig);

typedef int rig_op(struct rig *rig, void *arg, struct thin_error *err);

static inline void
rig_note_locks(struct rig *rig)
{
    struct bm_stats stats;

    bm_get_stats(rig->bm, &stats);
    if (stats.locks_high_water > rig->locks_high_water)
        rig->locks_high_water = stats.locks_high_water;
    bm_reset_high_water(rig->bm);
}

/* One pass: kept, or undone so that nothing is left of it. */
static inline int
rig_pass(struct rig *rig, enum tm_purse purse, rig_op *op, void *arg)
{
    uint32_t before = rig->check_undo ? rig_state(rig) : 0;
    int r;

    thin_error_init(&rig->err);
    tm_op_begin(rig->tm, purse);
    r = op(rig, arg, &rig->err);
    if (r == 0) {
        tm_set_commit_need(rig->tm, sm_merge_need(rig->sm) + 16);
        r = tm_op_admit(rig->tm, &rig->err);
    }
    if (r == 0) {
        tm_op_keep(rig->tm);
    } else {
        tm_op_undo(rig->tm);
        rig->nr_undone++;
        if (rig->check_undo)
            want_eq(before, rig_state(rig));
    }
    rig_note_locks(rig);
    return r;
}

static inline bool
rig_is_fault(int r)
{
    return r == -THIN_E_CHECKSUM || r == -THIN_E_BAD_BLOCK || r == -EIO;
}

/* Passes until one is kept. Faults that were ordered are met and tried again. */
static inline int
rig_do(struct rig *rig, enum tm_purse purse, rig_op *op, void *arg)
{
    struct rig_fetch f;
    unsigned commits = 0;
    int r = 0;

    bm_fetch_init(&f.fetch, rig->bm, rig_fetch_done);
    for (unsigned n = 0; n < 2000; n++) {
        r = rig_pass(rig, purse, op, arg);
        if (r == -THIN_E_WOULD_BLOCK) {
            r = rig_fetch_wait(rig, &f);
            if (r == 0)
                continue;
        }
        if (rig_is_fault(r) && (rig->nr_faults < device_fault_nr_met(rig->dev))) {
            rig->nr_faults = device_fault_nr_met(rig->dev);
            continue;
        }
        if ((r == -THIN_E_NEED_COMMIT || r == -THIN_E_CACHE_FULL) && commits++ < 5 &&
            purse != TM_COMMIT) {
            bm_fetch_fini(&f.fetch);
            r = rig_commit(rig);
            if (r < 0)
                return r;
            continue;
        }
        break;
    }
    bm_fetch_fini(&f.fetch);
    return r;
}

/* The same for calls that change nothing. */
static inline int
rig_read(struct rig *rig, rig_op *op, void *arg)
{
    struct rig_fetch f;
    int r = 0;

    bm_fetch_init(&f.fetch, rig->bm, rig_fetch_done);
    for (unsigned n = 0; n < 2000; n++) {
        thin_error_init(&rig->err);
        bm_clear_missing(rig->bm);
        r = op(rig, arg, &rig->err);
        if (r == -THIN_E_WOULD_BLOCK) {
            r = rig_fetch_wait(rig, &f);
            if (r == 0)
                continue;
        }
        if (rig_is_fault(r) && rig->nr_faults < device_fault_nr_met(rig->dev)) {
            rig->nr_faults = device_fault_nr_met(rig->dev);
            continue;
        }
        break;
    }
    bm_fetch_fini(&f.fetch);
    return r;
}

#define rig_ok(rig, expr)                                             \
    do {                                                              \
        int rig_r = (expr);                                           \
        if (rig_r)                                                    \
            ck_abort_msg("%s: %s: %s", #expr, thin_error_name(rig_r), \
                         thin_error_text(&(rig)->err, rig_r));        \
    } while (0)

/* ---- devices of the top level ------------------------------------------------------------------ */

static inline int
rig_get_root(struct rig *rig, uint32_t id, mblock_t *ret_root, bool *ret_found,
             struct thin_error *err)
{
    uint8_t value[8];
    int r = btree_lookup(&rig->top, rig->top_root, id, value, ret_found, err);

    if (r == 0 && *ret_found)
        *ret_root = load_le64(value);
    return r;
}

static inline int
rig_put_root(struct rig *rig, uint32_t id, mblock_t root, struct thin_error *err)
{
    uint8_t value[8];
    bool inserted;

    tm_op_save(rig->tm, &rig->top_root, sizeof(rig->top_root));
    store_le64(value, root);
    return btree_insert(&rig->top, rig->top_root, id, value, &rig->top_root, &inserted,
                        err);
}

/* The device's root, ready to be changed: the way to it belongs to this transaction. */
static inline int
rig_touch_root(struct rig *rig, uint32_t id, mblock_t *ret_root, struct thin_error *err)
{
    bool found;
    int r = rig_get_root(rig, id, ret_root, &found, err);

    if (r < 0)
        return r;
    want(found);
    return rig_put_root(rig, id, *ret_root, err);
}

struct rig_details_arg {
    uint32_t id;
    struct device_details details;
    bool remove;
};

static inline int
rig_details_op(struct rig *rig, void *arg, struct thin_error *err)
{
    struct rig_details_arg *a = arg;
    uint8_t value[VALUE_SIZE_DETAILS];
    bool inserted;

    tm_op_save(rig->tm, &rig->details_root, sizeof(rig->details_root));
    if (a->remove)
        return btree_remove(&rig->details, rig->details_root, a->id, &rig->details_root,
                            &inserted, err);
    device_details_encode(&a->details, value);
    return btree_insert(&rig->details, rig->details_root, a->id, value,
                        &rig->details_root, &inserted, err);
}

/* ---- commit ---------------------------------------------------------------------------------- */

static inline int
rig_merge_op(struct rig *rig, void *arg, struct thin_error *err)
{
    return sm_merge_step(rig->sm, arg, err);
}

static inline int
rig_tm_merge_op(struct rig *rig, void *arg, struct thin_error *err)
{
    (void)arg;
    return tm_merge_step(rig->tm, err);
}

/* tm_prepare_cut is an operation of its own. */
static inline int
rig_prepare(struct rig *rig, struct space_map_root *ret_root)
{
    struct rig_fetch f;
    int r = 0;

    bm_fetch_init(&f.fetch, rig->bm, rig_fetch_done);
    for (unsigned n = 0; n < 2000; n++) {
        uint32_t before = rig->check_undo ? rig_state(rig) : 0;

        r = tm_prepare_cut(rig->tm, ret_root, &rig->err);
        rig_note_locks(rig);
        if (r < 0 && rig->check_undo)
            want_eq(before, rig_state(rig));
        if (r == -THIN_E_WOULD_BLOCK) {
            r = rig_fetch_wait(rig, &f);
            if (r == 0)
                continue;
        }
        if (rig_is_fault(r) && rig->nr_faults < device_fault_nr_met(rig->dev)) {
            rig->nr_faults = device_fault_nr_met(rig->dev);
            continue;
        }
        break;
    }
    bm_fetch_fini(&f.fetch);
    return r;
}

static inline int
rig_io_wait(struct rig *rig)
{
    while (!rig->io_done)
        want(sim_loop_step(rig->loop));
    rig->io_done = false;
    return rig->io_result;
}

/* The second half: what the cut holds becomes durable. */
static inline int
rig_commit_finish(struct rig *rig)
{
    int r;

    if (!rig->committing)
        return 0;
    r = rig_io_wait(rig);
    if (r < 0)
        return r;
    bm_flush(rig->bm, rig_io_done, rig);
    r = rig_io_wait(rig);
    if (r < 0)
        return r;
    bm_write_superblock(rig->bm, rig->super, rig_io_done, rig);
    r = rig_io_wait(rig);
    if (r < 0)
        return r;
    tm_durable(rig->tm, rig->cut_txn);
    sm_durable(rig->sm, rig->cut_txn, NULL, NULL);
    rig->committing = false;
    rig->nr_commits++;
    return 0;
}

/* The first half: merges, cuts, starts writing. The next transaction is open after it. */
static inline int
rig_commit_start(struct rig *rig)
{
    struct superblock sb = {
        .version = SUPERBLOCK_VERSION,
        .time = rig->time,
        .data_block_size = 128,
        .metadata_block_size = METADATA_BLOCK_SECTORS,
    };
    uint64_t before, need;
    bool more = true;
    int r;

    r = rig_commit_finish(rig);
    need = tm_own_need(rig->tm) + sm_merge_need(rig->sm);
    before = tm_nr_free(rig->tm);
    while (r == 0 && more)
        r = rig_do(rig, TM_COMMIT, rig_merge_op, &more);
    while (r == 0 && tm_merge_left(rig->tm))
        r = rig_do(rig, TM_COMMIT, rig_tm_merge_op, NULL);
    if (r == 0)
        r = rig_prepare(rig, &sb.metadata_sm);
    if (r < 0)
        return r;
    /* What every operation was admitted against. */
    want(before - tm_nr_free(rig->tm) <= need);
    sm_get_root(rig->sm, &sb.data_sm);
    sb.data_mapping_root = rig->top_root;
    sb.device_details_root = rig->details_root;
    sb.metadata_nr_blocks = sb.metadata_sm.nr_blocks;
    memset(rig->super, 0, sizeof(rig->super));
    superblock_encode(&sb, rig->super);
    rig->cut_txn = tm_cut(rig->tm);
    rig->committing = true;
    rig->io_done = false;
    bm_write_cut(rig->bm, rig_io_done, rig);
    return 0;
}

static inline int
rig_commit(struct rig *rig)
{
    int r = rig_commit_start(rig);

    return r < 0 ? r : rig_commit_finish(rig);
}

static inline void
rig_recount(struct rig *rig)
{
    struct recount rc;

    if (recount_image(rig->mem, NULL, &rc) != 0)
        ck_abort_msg("recount: %s", rc.why);
}

/* ---- life --------------------------------------------------------------------------------------- */

static inline void
rig_make_managers(struct rig *rig)
{
    struct bm_params bp = {.dev = rig->dev,
                           .nr_frames = rig->nr_frames,
                           .nr_clean = test_cache_clean(),
                           .waiting = rig->waiting};
    struct tm_params tp = {.reserve = rig->reserve, .node_max = rig->node_max};

    if (!rig->bm)
        want_eq(bm_create(&bp, &rig->bm), 0);
    tp.bm = rig->bm;
    want_eq(tm_create(&tp, &rig->tm), 0);
    rig->top = (struct btree){
        .tm = rig->tm,
        .value = {.size = 8, .context = rig, .inc = rig_top_inc},
        .leaf_max = rig->node_max,
        .internal_max = rig->node_max,
    };
    rig->map = rig->top;
    rig->map.value = (struct btree_value_type){
        .size = 8,
        .context = rig,
        .inc = rig_map_inc,
        .dec = rig_map_dec,
        .equal = rig_map_equal,
    };
    rig->details = rig->top;
    rig->details.value = (struct btree_value_type){.size = VALUE_SIZE_DETAILS};
}

static inline int
rig_create_op(struct rig *rig, void *arg, struct thin_error *err)
{
    int r;

    (void)arg;
    r = btree_create(&rig->top, &rig->top_root, err);
    return r < 0 ? r : btree_create(&rig->details, &rig->details_root, err);
}

static inline int
rig_grow_op(struct rig *rig, void *arg, struct thin_error *err)
{
    return sm_extend(rig->sm, rig->nr_data, arg, err);
}

/* Formats: empty trees, `nr_data` data blocks; committed. */
static inline struct rig *
rig_create_reserving(uint64_t nr_blocks, uint64_t nr_data, uint32_t nr_frames,
                     uint32_t node_max, bool waiting, uint32_t reserve)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    bool done = false;

    want(rig);
    rig->loop = sim_loop_create(1);
    want_eq(device_mem_open(rig->loop, nr_blocks * METADATA_BLOCK_SIZE, &rig->mem), 0);
    rig->dev = device_fault_open(rig->mem);
    rig->nr_frames = nr_frames;
    rig->node_max = node_max;
    rig->nr_data = nr_data;
    rig->waiting = waiting;
    rig->reserve = reserve;
    rig_make_managers(rig);
    rig_ok(rig, tm_format(rig->tm, nr_blocks, &rig->err));
    tm_op_begin(rig->tm, TM_COMMIT);
    rig_ok(rig, sm_create(rig->tm, &rig->sm, &rig->err));
    rig_ok(rig, rig_create_op(rig, NULL, &rig->err));
    tm_op_keep(rig->tm);
    while (!done)
        rig_ok(rig, rig_do(rig, TM_NORMAL, rig_grow_op, &done));
    rig_ok(rig, rig_commit(rig));
    return rig;
}

static inline struct rig *
rig_create(uint64_t nr_blocks, uint64_t nr_data, uint32_t nr_frames, uint32_t node_max,
           bool waiting)
{
    return rig_create_reserving(nr_blocks, nr_data, nr_frames, node_max, waiting, 0);
}

static inline int
rig_load_op(struct rig *rig, void *arg, struct thin_error *err)
{
    return tm_load(rig->tm, arg, err);
}

/* Forgets all that is not durable and opens the image again. */
static inline void
rig_reopen(struct rig *rig)
{
    struct superblock sb;

    rig_ok(rig, rig_commit_finish(rig));
    sm_destroy(rig->sm);
    rig->sm = NULL;
    tm_destroy(rig->tm);
    bm_reset(rig->bm);
    rig_make_managers(rig);
    superblock_decode(&sb, device_mem_page(rig->mem, 0));
    rig_ok(rig, rig_read(rig, rig_load_op, &sb.metadata_sm));
    rig_ok(rig, sm_open(rig->tm, &sb.data_sm, &rig->sm, &rig->err));
    rig->top_root = sb.data_mapping_root;
    rig->details_root = sb.device_details_root;
}

static inline void
rig_destroy(struct rig *rig)
{
    rig_ok(rig, rig_commit_finish(rig));
    sm_destroy(rig->sm);
    tm_destroy(rig->tm);
    bm_destroy(rig->bm);
    device_close(rig->dev, NULL, NULL);
    while (sim_loop_step(rig->loop))
        ;
    sim_loop_destroy(rig->loop);
    free(rig);
}

/* One data block, taken inside the open operation. */
static inline int
rig_take_data(struct rig *rig, dblock_t *ret_block, struct thin_error *err)
{
    dblock_t from = rig->data_cursor;
    unsigned wraps = 0;

    for (;;) {
        uint64_t len;
        dblock_t next;
        int r = sm_find_free(rig->sm, from, rig->nr_data, 1, ret_block, &len, &next, err);

        if (r < 0)
            return r;
        if (len) {
            rig->data_cursor = *ret_block + 1;
            return sm_alloc(rig->sm, *ret_block, *ret_block + 1, err);
        }
        from = next;
        if (from >= rig->nr_data) {
            if (wraps++)
                return -THIN_E_NO_DATA_SPACE;
            from = 0;
        }
    }
}

#endif
