/*
 * The data space map against a plain array of counts: sizes around the borders of
 * bitmaps are filled to the last block, grown, and filled again; random runs of
 * allocations, increments, decrements and holds give what the array says, and a block
 * that was freed is not seen again before its transaction is durable.
 */
#include "tests/unit/persist/persist_rig.h"

static struct rig *rig;
static struct thin_random rng;

/* ---- what lies on disk ------------------------------------------------------------------ */

struct expect {
    const uint32_t *counts;
    uint64_t nr_blocks, nr_overflow;
    const struct btree *overflow;
};

static int
visit_bitmap(void *arg, uint64_t k, const uint8_t *value)
{
    BLOCK_LOCK struct bm_block *bitmap = NULL;
    struct expect *e = arg;
    struct index_entry entry;
    uint32_t nr_used = 0, first_free = BITMAP_ENTRIES;

    index_entry_decode(&entry, value);
    want_eq(tm_read_lock(rig->tm, entry.blocknr, &sm_bitmap_validator, &bitmap, NULL), 0);
    for (uint32_t i = 0; i < BITMAP_ENTRIES; i++) {
        uint64_t b = k * BITMAP_ENTRIES + i;
        uint32_t count = b < e->nr_blocks ? e->counts[b] : 0;

        if (bitmap_get(bm_data(bitmap), i) != (count < 3 ? count : 3))
            want_eq(b, UINT64_MAX);
        nr_used += count != 0;
        e->nr_overflow += count > 2;
        if (count == 0 && first_free == BITMAP_ENTRIES)
            first_free = i;
    }
    want_eq(entry.nr_free, BITMAP_ENTRIES - nr_used);
    want(entry.none_free_before <= first_free);
    return 0;
}

static int
visit_overflow(void *arg, uint64_t b, const uint8_t *value)
{
    struct expect *e = arg;

    want(b < e->nr_blocks && e->counts[b] > 2);
    want_eq(load_le32(value), e->counts[b]);
    e->nr_overflow--;
    return 0;
}

static uint64_t
nodes_of(const struct btree *t, mblock_t root)
{
    struct btree_shape shape;

    want_eq(btree_measure(t, root, &shape, NULL), 0);
    return shape.nr_internal + shape.nr_leaves;
}

/* Everything is merged: bitmaps, index, overflow tree and all metadata counts. The
   image is read by a rig that waits. */
static void
check_disk(const uint32_t *counts, uint64_t nr_blocks)
{
    struct expect e = {.counts = counts, .nr_blocks = nr_blocks};
    struct space_map_root root;
    struct tm_stats stats;
    uint64_t used = 0, md_bitmaps;

    rig->bm->waiting = true;
    sm_get_root(rig->sm, &root);
    for (uint64_t b = 0; b < nr_blocks; b++)
        used += counts[b] != 0;
    want_eq(root.nr_blocks, nr_blocks);
    want_eq(root.nr_allocated, used);
    want_eq(btree_walk(&rig->sm->index, root.bitmap_root, 0, UINT64_MAX, visit_bitmap, &e,
                       NULL),
            0);
    want_eq(btree_walk(&rig->sm->overflow, root.ref_count_root, 0, UINT64_MAX,
                       visit_overflow, &e, NULL),
            0);
    want_eq(e.nr_overflow, 0);

    tm_get_stats(rig->tm, &stats);
    md_bitmaps = (stats.nr_blocks + BITMAP_ENTRIES - 1) / BITMAP_ENTRIES;
    want_eq(stats.nr_allocated,
            1 /* superblock */ + 1 /* index block */ + md_bitmaps +
                nodes_of(&rig->tm->overflow_tree, rig->tm->core.overflow_root) +
                nodes_of(&rig->sm->index, root.bitmap_root) +
                (nr_blocks + BITMAP_ENTRIES - 1) / BITMAP_ENTRIES +
                nodes_of(&rig->sm->overflow, root.ref_count_root) + 2 /* empty trees */);
    rig->bm->waiting = false;
}

/* ---- filling ------------------------------------------------------------------------------ */

struct take {
    dblock_t from, begin, next;
    uint64_t wanted, len;
};

static int
op_take(struct rig *r_, void *arg, struct thin_error *err)
{
    struct take *t = arg;
    int r = sm_find_free(r_->sm, t->from, UINT64_MAX, t->wanted, &t->begin, &t->len,
                         &t->next, err);

    if (r == 0 && t->len)
        r = sm_alloc(r_->sm, t->begin, t->begin + t->len, err);
    return r;
}

/* Takes all that is free, from a random place on. */
static uint64_t
fill(uint32_t *counts, uint64_t nr_blocks)
{
    struct take t = {.from = random_below(&rng, nr_blocks)};
    uint64_t taken = 0;

    for (unsigned rounds = 0; rounds < 2;) {
        t.wanted = 1 + random_below(&rng, 4000);
        rig_ok(rig, rig_do(rig, TM_NORMAL, op_take, &t));
        for (uint64_t i = 0; i < t.len; i++) {
            want(t.begin + i < nr_blocks && counts[t.begin + i] == 0);
            counts[t.begin + i] = 1;
        }
        taken += t.len;
        t.from = t.next;
        if (t.len == 0 && t.next >= nr_blocks) {
            t.from = 0;
            rounds++;
        }
    }
    return taken;
}

/* Growths by one block and by a few, within a bitmap, to its end and around that, and
   over several. */
static const uint64_t growths[] = {
    1, 2, 3, 8200, BITMAP_ENTRIES - 1, BITMAP_ENTRIES, BITMAP_ENTRIES + 1, 40000,
};
#define NR_GROWTHS ((unsigned)(sizeof(growths) / sizeof(growths[0])))
#define NR_SIZES   15u /* from two below one, two and three bitmaps to two above */

static uint64_t
size_of(unsigned i)
{
    return (uint64_t)BITMAP_ENTRIES * (1 + i / 5) + i % 5 - 2;
}

START_TEST(every_block_of_any_size_is_found)
{
    uint64_t size = size_of((unsigned)_i / NR_GROWTHS);
    uint64_t grown = size + growths[(unsigned)_i % NR_GROWTHS];
    uint32_t *counts = calloc(grown, sizeof(*counts));
    bool done = false;

    random_seed(&rng, rig_seed(2000 + (uint64_t)_i));
    want(counts);
    rig = rig_create(400, size, 100, 6, false);
    want_eq(fill(counts, size), size);
    rig_ok(rig, rig_commit(rig));
    check_disk(counts, size);
    rig_reopen(rig);
    want_eq(fill(counts, size), 0);

    rig->nr_data = grown;
    while (!done)
        rig_ok(rig, rig_do(rig, TM_NORMAL, rig_grow_op, &done));
    want_eq(fill(counts, grown), grown - size);
    rig_ok(rig, rig_commit(rig));
    check_disk(counts, grown);
    rig_destroy(rig);
    free(counts);
}
END_TEST

/* ---- the metadata's own ------------------------------------------------------------------ */

static int
op_grow_own(struct rig *r_, void *arg, struct thin_error *err)
{
    return tm_extend(r_->tm, *(uint64_t *)arg, err);
}

/* Takes each free block, in one operation that is undone: how many there are. */
static uint64_t
count_own(uint64_t nr_blocks)
{
    uint8_t *seen = calloc(nr_blocks, 1);
    uint64_t nr = 0;
    mblock_t b = 0;

    want(seen);
    tm_op_begin(rig->tm, TM_COMMIT);
    while (tm_alloc(rig->tm, &b, NULL) == 0) {
        want(b > 0 && b < nr_blocks && !seen[b]);
        seen[b] = 1;
        nr++;
    }
    tm_op_undo(rig->tm);
    free(seen);
    return nr;
}

static void
check_own(uint64_t nr_blocks)
{
    struct tm_stats stats;

    /* What the last commits freed is free from the next ones on. */
    rig_ok(rig, rig_commit(rig));
    tm_get_stats(rig->tm, &stats);
    want_eq(stats.nr_blocks, nr_blocks);
    want_eq(stats.nr_pending, 0);
    want_eq(count_own(nr_blocks) + stats.nr_allocated, nr_blocks);
    rig_recount(rig);
}

START_TEST(every_metadata_block_of_any_size_is_found)
{
    uint64_t size = size_of((unsigned)_i / NR_GROWTHS);
    uint64_t grown = size + growths[(unsigned)_i % NR_GROWTHS];

    rig = rig_create_reserving(size, 100, 100, 0, false, 0);
    check_own(size);
    rig_ok(rig, device_grow_wait(rig->dev, grown * METADATA_BLOCK_SIZE));
    rig_ok(rig, rig_do(rig, TM_COMMIT, op_grow_own, &grown));
    check_own(grown);
    rig_reopen(rig);
    check_own(grown);
    rig_destroy(rig);
}
END_TEST

/* ---- random steps ----------------------------------------------------------------------------- */

#define NR_BLOCKS (9u * BITMAP_ENTRIES + 77)
#define NR_HELD   40u

static uint32_t counts[NR_BLOCKS];
static uint8_t
    freed[NR_BLOCKS]; /* 1: was in use in the open transaction or the one that is
                                    being written; 2: in the latter */
static dblock_t held[NR_HELD];
static unsigned nr_held;

struct run {
    dblock_t begin, end;
    int change;
    uint32_t count;
};

static int
op_change(struct rig *r_, void *arg, struct thin_error *err)
{
    struct run *run = arg;

    return run->change > 0 ? sm_inc(r_->sm, run->begin, run->end, err)
                           : sm_dec(r_->sm, run->begin, run->end, err);
}

static int
op_count(struct rig *r_, void *arg, struct thin_error *err)
{
    struct run *run = arg;

    return sm_count(r_->sm, run->begin, &run->count, err);
}

static bool
is_held(dblock_t b)
{
    for (unsigned i = 0; i < nr_held; i++)
        if (held[i] == b)
            return true;
    return false;
}

/* Blocks that were freed may be handed out when their transaction is durable. */
static void
note_durable(void)
{
    for (uint32_t b = 0; b < NR_BLOCKS; b++)
        if (freed[b] == 2)
            freed[b] = 0;
}

/* An operation that needed room may have committed by itself. */
static uint64_t commits_seen;

static void
note_commits(void)
{
    if (rig->nr_commits != commits_seen)
        memset(freed, 0, sizeof(freed));
    commits_seen = rig->nr_commits;
}

static void
step_commit(void)
{
    if (rig->committing) {
        rig_ok(rig, rig_commit_finish(rig));
        note_durable();
        commits_seen = rig->nr_commits;
        return;
    }
    rig_ok(rig, rig_commit_start(rig));
    note_commits();
    for (uint32_t b = 0; b < NR_BLOCKS; b++)
        if (freed[b] == 1)
            freed[b] = 2;
    if (random_below(&rng, 2)) {
        rig_ok(rig, rig_commit_finish(rig));
        note_durable();
        commits_seen = rig->nr_commits;
        if (random_below(&rng, 3) == 0)
            check_disk(counts, NR_BLOCKS);
    }
}

static void
step_take(void)
{
    struct take t = {.from = random_below(&rng, NR_BLOCKS),
                     .wanted = 1 + random_below(&rng, 300)};

    rig_ok(rig, rig_do(rig, TM_NORMAL, op_take, &t));
    note_commits();
    for (dblock_t b = t.from; t.len && b < t.begin; b++)
        want(counts[b] || freed[b] || is_held(b));
    for (uint64_t i = 0; i < t.len; i++) {
        want(counts[t.begin + i] == 0 && !freed[t.begin + i]);
        want(!is_held(t.begin + i));
        counts[t.begin + i] = 1;
    }
}

/* A run of blocks in use, and one step up or down for it. */
static void
step_change(void)
{
    dblock_t b = random_below(&rng, NR_BLOCKS);
    struct run run = {.change = random_below(&rng, 5) < 2 ? 1 : -1};
    uint64_t most = 1 + random_below(&rng, 500);

    while (b < NR_BLOCKS && !counts[b])
        b++;
    run.begin = b;
    while (b < NR_BLOCKS && counts[b] && b - run.begin < most)
        b++;
    run.end = b;
    rig_ok(rig, rig_do(rig, TM_RESERVE, op_change, &run));
    note_commits();
    for (b = run.begin; b < run.end; b++) {
        counts[b] += (uint32_t)run.change;
        if (counts[b] == 0)
            freed[b] = 1;
    }
}

static void
step_hold(void)
{
    dblock_t b = random_below(&rng, NR_BLOCKS);

    if (nr_held < NR_HELD && random_below(&rng, 2)) {
        want_eq(sm_hold(rig->sm, b), 0);
        held[nr_held++] = b;
    } else if (nr_held) {
        unsigned i = (unsigned)random_below(&rng, nr_held);

        sm_release(rig->sm, held[i]);
        held[i] = held[--nr_held];
    }
}

START_TEST(counts_are_those_of_the_model)
{
    uint64_t seed = rig_seed(3000 + (uint64_t)_i);

    random_seed(&rng, seed);
    memset(counts, 0, sizeof(counts));
    memset(freed, 0, sizeof(freed));
    nr_held = 0;
    rig = rig_create(20000, NR_BLOCKS, _i ? 600 : 6000, _i == 2 ? 0 : 6, false);
    rig->check_undo = true;
    for (unsigned n = 0; n < 2500; n++) {
        struct run run = {.begin = random_below(&rng, NR_BLOCKS)};

        if (_i && random_below(&rng, 10) == 0)
            rig_drop_clean(rig);
        switch (random_below(&rng, 16)) {
        case 0 ... 4:
            step_take();
            break;
        case 5 ... 9:
            step_change();
            break;
        case 10 ... 12:
            rig_ok(rig, rig_read(rig, op_count, &run));
            want_eq(run.count, counts[run.begin]);
            break;
        case 13 ... 14:
            step_hold();
            break;
        default:
            step_commit();
            break;
        }
        /* A commit may have come by itself. */
        if (n % 100 == 99) {
            rig_ok(rig, rig_commit(rig));
            memset(freed, 0, sizeof(freed));
            if (n % 500 == 499)
                check_disk(counts, NR_BLOCKS);
        }
    }
    while (nr_held)
        sm_release(rig->sm, held[--nr_held]);
    rig_ok(rig, rig_commit(rig));
    {
        struct sm_stats stats;

        sm_get_stats(rig->sm, &stats);
        want_eq(stats.nr_pending, 0);
        want_eq(stats.nr_deltas, 0);
    }
    rig_reopen(rig);
    check_disk(counts, NR_BLOCKS);
    printf("%" PRIu64 " passes undone, %" PRIu64 " commits, %" PRIu32 " locks at most\n",
           rig->nr_undone, rig->nr_commits, rig->locks_high_water);
    test_locks_within_bound(rig->locks_high_water);
    rig_destroy(rig);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("prop_space_map");
    TCase *tc = tcase_create("model");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, every_block_of_any_size_is_found, 0,
                        (int)(NR_SIZES * NR_GROWTHS));
    tcase_add_loop_test(tc, every_metadata_block_of_any_size_is_found, 0,
                        (int)(NR_SIZES * NR_GROWTHS));
    tcase_add_loop_test(tc, counts_are_those_of_the_model, 0, 3);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
