/* Transactions and the metadata space map: what may be handed out when, what undo puts
   back, what an operation may cost, what is loaded again. */
#include "tests/unit/persist/persist_rig.h"

static struct rig *rig;
static const struct bm_validator bitmap_v = {.kind = BLOCK_BITMAP};

static void
setup(void)
{
    rig = rig_create(200, 100, 400, 6, false);
}

static void
teardown(void)
{
    rig_destroy(rig);
}

/* A block of its own operation. */
static mblock_t
new_block(void)
{
    struct bm_block *block;
    mblock_t b;

    tm_op_begin(rig->tm, TM_COMMIT);
    ck_assert_int_eq(tm_new_block(rig->tm, &bitmap_v, &block, &rig->err), 0);
    b = bm_location(block);
    tm_unlock(rig->tm, block);
    tm_op_keep(rig->tm);
    return b;
}

static void
change_count(mblock_t b, int by)
{
    tm_op_begin(rig->tm, TM_COMMIT);
    if (by > 0)
        ck_assert_int_eq(tm_inc(rig->tm, b, (uint32_t)by, &rig->err), 0);
    for (; by < 0; by++)
        ck_assert_int_eq(tm_dec(rig->tm, b, &rig->err), 0);
    tm_op_keep(rig->tm);
}

static uint32_t
count_of(mblock_t b)
{
    uint32_t count = 0;

    ck_assert_int_eq(tm_ref(rig->tm, b, &count, &rig->err), 0);
    return count;
}

/* All free blocks but `leave`, one operation each. */
static unsigned
use_up(mblock_t *blocks, unsigned leave)
{
    unsigned nr = 0;

    while (tm_nr_free(rig->tm) > leave)
        blocks[nr++] = new_block();
    return nr;
}

START_TEST(block_made_and_freed_in_one_transaction_is_free_at_once)
{
    mblock_t b = new_block(), blocks[200];
    uint64_t before = tm_nr_free(rig->tm);
    unsigned nr;
    bool again = false;

    change_count(b, -1);
    ck_assert_uint_eq(tm_nr_free(rig->tm), before + 1);
    ck_assert_ptr_null(bm_find(rig->bm, b));
    nr = use_up(blocks, 0);
    for (unsigned i = 0; i < nr; i++)
        again |= blocks[i] == b;
    ck_assert(again);
    for (unsigned i = 0; i < nr; i++)
        change_count(blocks[i], -1);
}
END_TEST

START_TEST(freed_block_is_not_handed_out_before_its_transaction_is_durable)
{
    mblock_t b = new_block(), other, blocks[200];
    struct bm_block *block;
    unsigned nr;

    rig_ok(rig, rig_commit(rig));
    other = new_block();
    rig_ok(rig, rig_commit_start(rig)); /* `b` is freed after this cut */
    change_count(b, -1);
    ck_assert_uint_eq(count_of(b), 0);
    nr = use_up(blocks, 0);
    for (unsigned i = 0; i < nr; i++)
        ck_assert_uint_ne(blocks[i], b);
    rig_ok(rig, rig_commit_finish(rig)); /* durable is the transaction before */
    for (unsigned i = 0; tm_nr_free(rig->tm); i++)
        ck_assert_uint_ne(blocks[nr++] = new_block(), b);
    tm_op_begin(rig->tm, TM_NORMAL);
    ck_assert_int_eq(tm_new_block(rig->tm, &bitmap_v, &block, &rig->err),
                     -THIN_E_NEED_COMMIT);
    tm_op_undo(rig->tm);
    for (unsigned i = 0; i < nr; i++)
        change_count(blocks[i], -1);
    change_count(other, -1);
    rig_ok(rig, rig_commit(rig));
    nr = use_up(blocks, 0);
    for (unsigned i = 0; i < nr && b; i++)
        b = blocks[i] == b ? 0 : b;
    ck_assert_uint_eq(b, 0);
    for (unsigned i = 0; i < nr; i++)
        change_count(blocks[i], -1);
    rig_ok(rig, rig_commit(rig));
    rig_recount(rig);
}
END_TEST

START_TEST(pinned_view_keeps_what_is_freed_after_it)
{
    struct tm_pin early, late;
    mblock_t b = new_block();
    struct tm_stats stats;

    rig_ok(rig, rig_commit(rig));
    tm_pin_view(rig->tm, &early);
    change_count(b, -1);
    rig_ok(rig, rig_commit(rig));
    tm_pin_view(rig->tm, &late);
    ck_assert(bitset_test(&rig->tm->pending, b));
    tm_unpin_view(rig->tm, &late);
    ck_assert(!tm_free_some(rig->tm, UINT32_MAX));
    ck_assert(bitset_test(&rig->tm->pending, b));
    tm_unpin_view(rig->tm, &early);
    ck_assert(!tm_free_some(rig->tm, UINT32_MAX));
    ck_assert(!bitset_test(&rig->tm->pending, b));
    tm_get_stats(rig->tm, &stats);
    ck_assert_uint_eq(stats.nr_pending, 0);
}
END_TEST

START_TEST(shadow_copies_what_is_durable_or_shared_and_nothing_else)
{
    struct bm_block *block;
    bool inc;
    mblock_t a, b, c;

    a = new_block();
    tm_op_begin(rig->tm, TM_COMMIT);
    ck_assert_int_eq(tm_shadow_block(rig->tm, a, &bitmap_v, &block, &inc, &rig->err), 0);
    ck_assert_uint_eq(bm_location(block), a); /* made in this transaction */
    ck_assert(!inc);
    tm_unlock(rig->tm, block);
    tm_op_keep(rig->tm);
    rig_ok(rig, rig_commit(rig));

    tm_op_begin(rig->tm, TM_COMMIT);
    ck_assert_int_eq(tm_shadow_block(rig->tm, a, &bitmap_v, &block, &inc, &rig->err), 0);
    b = bm_location(block);
    ck_assert_uint_ne(b, a);
    ck_assert(!inc);
    ck_assert_uint_eq(load_le64((const uint8_t *)bm_data(block) + 8), b);
    tm_unlock(rig->tm, block);
    ck_assert_int_eq(tm_inc(rig->tm, b, 1, &rig->err), 0); /* a second holder */
    ck_assert_int_eq(tm_shadow_block(rig->tm, b, &bitmap_v, &block, &inc, &rig->err), 0);
    c = bm_location(block);
    ck_assert_uint_ne(c, b);
    ck_assert(inc);
    tm_unlock(rig->tm, block);
    tm_op_keep(rig->tm);
    ck_assert_uint_eq(count_of(a), 0);
    ck_assert_uint_eq(count_of(b), 1);
    ck_assert_uint_eq(count_of(c), 1);
}
END_TEST

static uint64_t undone[3];
static unsigned nr_undone;

static void
note_undo(void *arg, uint64_t a, uint64_t b)
{
    ck_assert_ptr_eq(arg, undone);
    ck_assert_uint_eq(b, a * 2);
    undone[nr_undone++] = a;
}

START_TEST(undo_puts_back_words_bytes_and_counts_and_calls_backwards)
{
    uint64_t words[2] = {5, 6};
    mblock_t b = new_block();
    struct bm_block *block;
    uint32_t before = rig_state(rig);
    bool inc;

    nr_undone = 0;
    tm_op_begin(rig->tm, TM_NORMAL);
    ck_assert(tm_op_open(rig->tm));
    tm_op_save(rig->tm, words, sizeof(words));
    words[0] = 7;
    tm_op_save(rig->tm, words, sizeof(words));
    words[1] = 8;
    for (uint64_t i = 0; i < 3; i++)
        ck_assert_int_eq(tm_op_on_undo(rig->tm, note_undo, undone, i, i * 2), 0);
    ck_assert_int_eq(tm_shadow_block(rig->tm, b, &bitmap_v, &block, &inc, &rig->err), 0);
    memset(bm_data_rw(block), 0xee, METADATA_BLOCK_SIZE);
    tm_unlock(rig->tm, block);
    ck_assert_int_eq(tm_inc(rig->tm, b, 9, &rig->err), 0);
    ck_assert_int_eq(tm_new_block(rig->tm, &bitmap_v, &block, &rig->err), 0);
    tm_unlock(rig->tm, block);
    tm_set_commit_need(rig->tm, 11);
    tm_op_undo(rig->tm);
    ck_assert(!tm_op_open(rig->tm));
    ck_assert_uint_eq(words[0], 5);
    ck_assert_uint_eq(words[1], 6);
    ck_assert_uint_eq(nr_undone, 3);
    ck_assert_uint_eq(undone[0], 2);
    ck_assert_uint_eq(undone[2], 0);
    ck_assert_uint_eq(before, rig_state(rig));
}
END_TEST

START_TEST(counts_above_two_survive_a_commit_and_a_load)
{
    static const int ups[] = {1, 2, 5, 100000};
    mblock_t blocks[80];

    for (unsigned i = 0; i < 80; i++) {
        blocks[i] = new_block();
        change_count(blocks[i], ups[i % 4]);
    }
    rig_ok(rig, rig_commit(rig));
    rig_reopen(rig);
    rig->bm->waiting = true;
    for (unsigned i = 0; i < 80; i++)
        ck_assert_uint_eq(count_of(blocks[i]), 1 + (unsigned)ups[i % 4]);
    for (unsigned i = 0; i < 80; i++)
        if (i % 4 < 3)
            change_count(blocks[i], -ups[i % 4]);
    rig->bm->waiting = false;
    rig_ok(rig, rig_commit(rig));
    rig_reopen(rig);
    rig->bm->waiting = true;
    for (unsigned i = 0; i < 80; i++)
        ck_assert_uint_eq(count_of(blocks[i]), i % 4 < 3 ? 1u : 100001u);
    rig->bm->waiting = false;
}
END_TEST

static int
op_merge(struct rig *r_, void *arg, struct thin_error *err)
{
    (void)arg;
    return tm_merge_step(r_->tm, err);
}

/* Some entries a step, over a cache that forgets: what is undone on the way stays to be
   done, and counts change again in between. */
START_TEST(counts_above_two_are_merged_in_steps)
{
    mblock_t blocks[120];
    unsigned steps = 0;

    rig->check_undo = true;
    for (unsigned i = 0; i < 120; i++) {
        blocks[i] = new_block();
        change_count(blocks[i], 3);
    }
    rig_ok(rig, rig_commit(rig));
    rig_reopen(rig);
    rig->bm->waiting = true;
    for (unsigned i = 0; i < 120; i++)
        change_count(blocks[i], i % 3 ? 1 : -2);
    rig->bm->waiting = false;
    while (tm_merge_left(rig->tm)) {
        uint32_t before = rig->tm->core.nr_changed;

        rig_drop_clean(rig);
        rig_ok(rig, rig_do(rig, TM_COMMIT, op_merge, NULL));
        ck_assert_uint_lt(rig->tm->core.nr_changed, before);
        if (steps++ == 1)
            change_count(blocks[119], 1); /* written already, or not yet */
    }
    ck_assert_uint_ge(steps, 3);
    rig_ok(rig, rig_commit(rig));
    rig_reopen(rig);
    rig->bm->waiting = true;
    for (unsigned i = 0; i < 120; i++)
        ck_assert_uint_eq(count_of(blocks[i]), i == 119 ? 6 : i % 3 ? 5 : 2);
    rig->bm->waiting = false;
}
END_TEST

START_TEST(counts_do_not_fall_below_zero_nor_rise_from_it)
{
    mblock_t b = new_block();

    change_count(b, -1);
    tm_op_begin(rig->tm, TM_COMMIT);
    ck_assert_int_eq(tm_dec(rig->tm, b, &rig->err), -THIN_E_BAD_BLOCK);
    ck_assert_int_eq(tm_inc(rig->tm, b, 1, &rig->err), -THIN_E_BAD_BLOCK);
    ck_assert_int_eq(tm_inc(rig->tm, 200, 1, &rig->err), -THIN_E_BAD_BLOCK);
    ck_assert_int_eq(tm_inc(rig->tm, 0, 1, &rig->err), -THIN_E_BAD_BLOCK);
    tm_op_undo(rig->tm);
}
END_TEST

static int
op_new(struct rig *r_, void *arg, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *block = NULL;
    int r = tm_new_block(r_->tm, &bitmap_v, &block, err);

    if (r == 0)
        *(mblock_t *)arg = bm_location(block);
    return r;
}

static int
op_nothing(struct rig *r_, void *arg, struct thin_error *err)
{
    (void)r_;
    (void)arg;
    (void)err;
    return 0;
}

START_TEST(reserve_is_for_those_who_may_use_it)
{
    mblock_t b, blocks[200];

    rig->tm->core.reserve = 30;
    use_up(blocks, 30 + 40);
    while (rig_pass(rig, TM_NORMAL, op_new, &b) == 0)
        ;
    rig_ok(rig, rig_commit(rig)); /* which may have helped */
    while (rig_pass(rig, TM_NORMAL, op_new, &b) == 0)
        ;
    rig_ok(rig, rig_commit(rig));
    ck_assert_int_eq(rig_pass(rig, TM_NORMAL, op_new, &b), -THIN_E_NO_METADATA_SPACE);
    ck_assert_int_eq(rig_pass(rig, TM_NORMAL, op_nothing, NULL), 0);
    ck_assert_uint_ge(tm_nr_free(rig->tm), 30);
    ck_assert_int_eq(rig_pass(rig, TM_RESERVE, op_new, &b), 0);
    while (rig_pass(rig, TM_RESERVE, op_new, &b) == 0)
        ;
    /* What is left is what the commit needs, and it is enough. */
    ck_assert_uint_ge(tm_nr_free(rig->tm), 2);
    ck_assert_int_eq(rig_pass(rig, TM_COMMIT, op_new, &b), 0);
    rig_ok(rig, rig_commit(rig));
}
END_TEST

START_TEST(commit_is_asked_for_when_frees_wait_for_it)
{
    mblock_t b, blocks[200];
    unsigned nr = use_up(blocks, 60);

    rig_ok(rig, rig_commit(rig));
    for (unsigned i = 0; i < nr; i++)
        change_count(blocks[i], -1);
    while (rig_pass(rig, TM_NORMAL, op_new, &b) == 0)
        ;
    ck_assert_int_eq(rig_pass(rig, TM_NORMAL, op_new, &b), -THIN_E_NEED_COMMIT);
    rig_ok(rig, rig_commit(rig));
    ck_assert_int_eq(rig_pass(rig, TM_NORMAL, op_new, &b), 0);
}
END_TEST

START_TEST(full_cache_asks_for_a_commit_that_still_fits)
{
    mblock_t b;
    int r = 0;

    teardown();
    rig = rig_create(2000, 100, BM_FRAMES_MIN, 6, false);
    for (unsigned i = 0; r == 0 && i < 100; i++)
        r = rig_pass(rig, TM_NORMAL, op_new, &b);
    ck_assert_int_eq(r, -THIN_E_CACHE_FULL);
    rig_ok(rig, rig_commit(rig));
    ck_assert_int_eq(rig_pass(rig, TM_NORMAL, op_new, &b), 0);
}
END_TEST

static int
op_extend(struct rig *r_, void *arg, struct thin_error *err)
{
    return tm_extend(r_->tm, *(uint64_t *)arg, err);
}

START_TEST(metadata_grows_over_several_bitmaps)
{
    uint64_t wanted = 3 * BITMAP_ENTRIES + 5;
    struct tm_stats stats;
    uint32_t before;

    ck_assert_int_eq(rig_pass(rig, TM_COMMIT, op_extend, &wanted), -THIN_E_RANGE);
    ck_assert_int_eq(device_grow_wait(rig->dev, wanted * METADATA_BLOCK_SIZE), 0);
    before = rig_state(rig);
    tm_op_begin(rig->tm, TM_COMMIT);
    ck_assert_int_eq(tm_extend(rig->tm, wanted, &rig->err), 0);
    tm_op_undo(rig->tm);
    ck_assert_uint_eq(before, rig_state(rig));

    rig_ok(rig, rig_do(rig, TM_COMMIT, op_extend, &wanted));
    ck_assert_int_eq(rig_pass(rig, TM_COMMIT, op_extend, &wanted), -THIN_E_RANGE);
    rig_ok(rig, rig_commit(rig));
    rig_recount(rig);
    rig_reopen(rig);
    tm_get_stats(rig->tm, &stats);
    ck_assert_uint_eq(stats.nr_blocks, wanted);
    rig->tm->core.cursor = wanted - 3;
    ck_assert_uint_eq(new_block(), wanted - 3);
}
END_TEST

START_TEST(commits_of_nothing_but_the_space_map_use_no_more_blocks)
{
    struct tm_stats before, after;

    rig_ok(rig, rig_commit(rig));
    tm_get_stats(rig->tm, &before);
    for (unsigned i = 0; i < 50; i++) {
        change_count(new_block(), -1);
        rig_ok(rig, rig_commit(rig));
    }
    tm_get_stats(rig->tm, &after);
    ck_assert_uint_eq(before.nr_allocated, after.nr_allocated);
    ck_assert_uint_eq(after.nr_pending, 0);
    ck_assert_uint_eq(after.txn, before.txn + 50);
    rig_recount(rig);
}
END_TEST

/* Opens what a hostile root says; every answer but a crash is fine. */
START_TEST(roots_that_cannot_be_are_refused)
{
    struct space_map_root good, bad;
    struct superblock sb;

    superblock_decode(&sb, device_mem_page(rig->mem, 0));
    good = sb.metadata_sm;
    for (unsigned i = 0; i < 8; i++) {
        struct transaction_manager *tm;
        struct tm_params tp = {.bm = rig->bm};
        int r;

        bad = good;
        if (i == 0)
            bad.nr_blocks = 0;
        if (i == 1)
            bad.nr_blocks = 201;
        if (i == 2)
            bad.nr_blocks = UINT64_MAX;
        if (i == 3)
            bad.bitmap_root = 0;
        if (i == 4)
            bad.bitmap_root = 500;
        if (i == 5)
            bad.ref_count_root = UINT64_MAX;
        if (i == 6)
            bad.bitmap_root = sb.device_details_root; /* another kind of block */
        if (i == 7)
            bad.nr_blocks = 1;
        ck_assert_int_eq(tm_create(&tp, &tm), 0);
        rig->bm->waiting = true;
        r = tm_load(tm, &bad, &rig->err);
        rig->bm->waiting = false;
        ck_assert_int_lt(r, 0);
        ck_assert_int_ne(r, -THIN_E_WOULD_BLOCK);
        tm_destroy(tm);
    }
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("transaction_manager");
    TCase *tc = tcase_create("all");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, block_made_and_freed_in_one_transaction_is_free_at_once);
    tcase_add_test(tc, freed_block_is_not_handed_out_before_its_transaction_is_durable);
    tcase_add_test(tc, pinned_view_keeps_what_is_freed_after_it);
    tcase_add_test(tc, shadow_copies_what_is_durable_or_shared_and_nothing_else);
    tcase_add_test(tc, undo_puts_back_words_bytes_and_counts_and_calls_backwards);
    tcase_add_test(tc, counts_above_two_survive_a_commit_and_a_load);
    tcase_add_test(tc, counts_above_two_are_merged_in_steps);
    tcase_add_test(tc, counts_do_not_fall_below_zero_nor_rise_from_it);
    tcase_add_test(tc, reserve_is_for_those_who_may_use_it);
    tcase_add_test(tc, commit_is_asked_for_when_frees_wait_for_it);
    tcase_add_test(tc, full_cache_asks_for_a_commit_that_still_fits);
    tcase_add_test(tc, metadata_grows_over_several_bitmaps);
    tcase_add_test(tc, commits_of_nothing_but_the_space_map_use_no_more_blocks);
    tcase_add_test(tc, roots_that_cannot_be_are_refused);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
