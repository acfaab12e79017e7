/* The data space map: holds, frees that wait, damage, growth of maps that others made. */
#include "tests/unit/persist/persist_rig.h"

#define NR_DATA 1000u

static struct rig *rig;

static void
setup(void)
{
    rig = rig_create(400, NR_DATA, 300, 6, true);
}

static void
teardown(void)
{
    rig_destroy(rig);
}

static void
take_blocks(dblock_t begin, dblock_t end)
{
    tm_op_begin(rig->tm, TM_COMMIT);
    rig_ok(rig, sm_alloc(rig->sm, begin, end, &rig->err));
    tm_op_keep(rig->tm);
}

static void
drop_blocks(dblock_t begin, dblock_t end)
{
    tm_op_begin(rig->tm, TM_COMMIT);
    rig_ok(rig, sm_dec(rig->sm, begin, end, &rig->err));
    tm_op_keep(rig->tm);
}

/* The first free run in [begin, end), or NR_DATA. */
static dblock_t
find(dblock_t begin, dblock_t end, uint64_t *ret_len)
{
    dblock_t at = NR_DATA, next;

    rig_ok(rig,
           sm_find_free(rig->sm, begin, end, UINT64_MAX, &at, ret_len, &next, &rig->err));
    return *ret_len ? at : NR_DATA;
}

START_TEST(taken_and_freed_block_waits_for_the_commit)
{
    uint64_t len;

    take_blocks(10, 20);
    ck_assert_uint_eq(find(5, 30, &len), 5);
    ck_assert_uint_eq(len, 5);
    drop_blocks(12, 15);
    ck_assert_uint_eq(find(10, 20, &len), NR_DATA);
    rig_ok(rig, rig_commit_start(rig));
    ck_assert_uint_eq(find(10, 20, &len), NR_DATA);
    rig_ok(rig, rig_commit_finish(rig));
    ck_assert_uint_eq(find(10, 20, &len), 12);
    ck_assert_uint_eq(len, 3);
}
END_TEST

static dblock_t told[10][2];
static unsigned nr_told;

static void
note_freed(void *arg, dblock_t begin, dblock_t end)
{
    struct space_map *sm = arg;

    told[nr_told][0] = begin;
    told[nr_told++][1] = end;
    if (begin == 30)
        ck_assert_int_eq(sm_hold(sm, 31), 0);
}

START_TEST(freed_runs_are_told_and_may_be_held_by_who_is_told)
{
    struct sm_stats stats;
    uint64_t len, txn;

    take_blocks(10, 40);
    rig_ok(rig, rig_commit(rig));
    ck_assert_int_eq(sm_hold(rig->sm, 11), 0);
    ck_assert_int_eq(sm_hold(rig->sm, 11), 0);
    drop_blocks(10, 15);
    drop_blocks(30, 33);
    rig_ok(rig, rig_commit_start(rig));
    txn = rig->cut_txn;
    nr_told = 0;
    sm_durable(rig->sm, txn, note_freed, rig->sm);
    rig_ok(rig, rig_commit_finish(rig));
    ck_assert_uint_eq(nr_told, 2);
    ck_assert_uint_eq(told[0][0], 10);
    ck_assert_uint_eq(told[0][1], 15);
    ck_assert_uint_eq(told[1][0], 30);
    ck_assert_uint_eq(told[1][1], 33);
    ck_assert_uint_eq(find(10, 40, &len), 10);
    ck_assert_uint_eq(len, 1);
    ck_assert_uint_eq(find(11, 40, &len), 12);
    ck_assert_uint_eq(find(30, 40, &len), 30);
    ck_assert_uint_eq(len, 1);
    sm_get_stats(rig->sm, &stats);
    ck_assert_uint_eq(stats.nr_pending, 2);
    ck_assert_uint_eq(stats.nr_allocated, 30 - 8);
    sm_release(rig->sm, 11);
    ck_assert_uint_eq(find(11, 12, &len), NR_DATA);
    sm_release(rig->sm, 11);
    ck_assert_uint_eq(find(11, 12, &len), 11);
    sm_release(rig->sm, 31);
    sm_get_stats(rig->sm, &stats);
    ck_assert_uint_eq(stats.nr_pending, 0);
}
END_TEST

START_TEST(counts_cannot_fall_below_zero)
{
    bool more;

    take_blocks(10, 11);
    drop_blocks(10, 11);
    tm_op_begin(rig->tm, TM_COMMIT);
    ck_assert_int_eq(sm_dec(rig->sm, 10, 11, &rig->err), -THIN_E_BAD_BLOCK);
    tm_op_undo(rig->tm);
    tm_op_begin(rig->tm, TM_COMMIT);
    ck_assert_int_eq(sm_dec(rig->sm, 999, 1001, &rig->err), -THIN_E_BAD_BLOCK);
    ck_assert_int_eq(sm_dec(rig->sm, 500, 501, &rig->err), 0);
    ck_assert_int_eq(sm_merge_step(rig->sm, &more, &rig->err), -THIN_E_BAD_BLOCK);
    tm_op_undo(rig->tm);
    rig_ok(rig, rig_commit(rig));
}
END_TEST

START_TEST(table_of_changes_is_bounded)
{
    int r = 0;

    teardown();
    rig = rig_create(4000, 200000, 1000, 0, true);
    for (dblock_t b = 0; r == 0 && b < 199000; b += 1000) {
        tm_op_begin(rig->tm, TM_COMMIT);
        r = sm_alloc(rig->sm, b, b + 1000, &rig->err);
        if (r == 0)
            tm_op_keep(rig->tm);
        else
            tm_op_undo(rig->tm);
    }
    ck_assert_int_eq(r, -THIN_E_NEED_COMMIT);
    ck_assert_uint_le(sm_nr_deltas(rig->sm), SM_DELTAS_MAX);
    ck_assert_uint_ge(sm_nr_deltas(rig->sm), SM_DELTAS_MAX - 1000);
    {
        uint64_t need = sm_merge_need(rig->sm), before = tm_nr_free(rig->tm);
        struct sm_stats stats;
        bool more = true;

        while (more)
            rig_ok(rig, rig_do(rig, TM_COMMIT, rig_merge_op, &more));
        ck_assert_uint_le(before - tm_nr_free(rig->tm), need);
        rig_ok(rig, rig_commit(rig));
        sm_get_stats(rig->sm, &stats);
        ck_assert_uint_eq(stats.nr_allocated, 65000);
    }
}
END_TEST

START_TEST(damaged_bitmap_gives_no_blocks_and_the_rest_does)
{
    static const uint8_t noise[512] = {0x5a};
    uint8_t value[VALUE_SIZE_INDEX];
    struct index_entry entry;
    dblock_t at = 0, next;
    uint64_t len = 0;
    bool found;

    teardown();
    rig = rig_create(400, 2 * BITMAP_ENTRIES, 300, 6, true);
    rig_ok(rig, btree_lookup(&rig->sm->index, rig->sm->core.root.bitmap_root, 0, value,
                             &found, &rig->err));
    index_entry_decode(&entry, value);
    ck_assert_int_eq(device_write_wait(rig->mem,
                                       entry.blocknr * METADATA_BLOCK_SIZE + 512, noise,
                                       sizeof(noise), 0),
                     0);
    rig_drop_clean(rig);
    /* The first to meet it fails: it might have been the transfer. */
    ck_assert_int_eq(sm_find_free(rig->sm, 0, UINT64_MAX, 9, &at, &len, &next, &rig->err),
                     -THIN_E_CHECKSUM);
    rig_ok(rig, sm_find_free(rig->sm, 0, UINT64_MAX, 9, &at, &len, &next, &rig->err));
    ck_assert_uint_eq(at, BITMAP_ENTRIES);
    ck_assert_uint_eq(len, 9);
}
END_TEST

/* thin_restore counts the last bitmap's free blocks only up to the pool's end. */
START_TEST(growth_heals_the_last_index_entry)
{
    uint8_t value[VALUE_SIZE_INDEX];
    struct index_entry entry;
    bool flag, done = false;

    take_blocks(0, NR_DATA);
    rig_ok(rig, rig_commit(rig));
    tm_op_begin(rig->tm, TM_COMMIT);
    sm_save_core(rig->sm);
    rig_ok(rig, btree_lookup(&rig->sm->index, rig->sm->core.root.bitmap_root, 0, value,
                             &flag, &rig->err));
    index_entry_decode(&entry, value);
    ck_assert_uint_eq(entry.nr_free, BITMAP_ENTRIES - NR_DATA);
    entry.nr_free = 0;
    index_entry_encode(&entry, value);
    rig_ok(rig, btree_insert(&rig->sm->index, rig->sm->core.root.bitmap_root, 0, value,
                             &rig->sm->core.root.bitmap_root, &flag, &rig->err));
    tm_op_keep(rig->tm);
    rig_ok(rig, rig_commit(rig));
    rig_reopen(rig);
    rig->nr_data = NR_DATA + 10;
    rig_ok(rig, rig_do(rig, TM_NORMAL, rig_grow_op, &done));
    ck_assert(done);
    rig_ok(rig, btree_lookup(&rig->sm->index, rig->sm->core.root.bitmap_root, 0, value,
                             &flag, &rig->err));
    index_entry_decode(&entry, value);
    ck_assert_uint_eq(entry.nr_free, BITMAP_ENTRIES - NR_DATA);
    take_blocks(NR_DATA, NR_DATA + 10);
    tm_op_begin(rig->tm, TM_COMMIT);
    ck_assert_int_eq(sm_extend(rig->sm, NR_DATA, &done, &rig->err), -THIN_E_RANGE);
    tm_op_undo(rig->tm);
}
END_TEST

START_TEST(growth_of_many_bitmaps_goes_in_steps)
{
    uint64_t wanted = 20 * BITMAP_ENTRIES + 1;
    uint32_t before = rig_state(rig);
    struct space_map_root root;
    unsigned steps = 0;
    bool done = false;

    tm_op_begin(rig->tm, TM_COMMIT);
    rig_ok(rig, sm_extend(rig->sm, wanted, &done, &rig->err));
    rig_ok(rig, sm_extend(rig->sm, wanted, &done, &rig->err));
    tm_op_undo(rig->tm);
    ck_assert_uint_eq(before, rig_state(rig));
    rig->nr_data = wanted;
    while (!done) {
        rig_ok(rig, rig_do(rig, TM_NORMAL, rig_grow_op, &done));
        steps++;
    }
    ck_assert_uint_eq(steps, 21);
    rig_ok(rig, rig_commit(rig));
    rig_recount(rig);
    rig_reopen(rig);
    sm_get_root(rig->sm, &root);
    ck_assert_uint_eq(root.nr_blocks, wanted);
    take_blocks(wanted - 1, wanted);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("space_map");
    TCase *tc = tcase_create("all");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, taken_and_freed_block_waits_for_the_commit);
    tcase_add_test(tc, freed_runs_are_told_and_may_be_held_by_who_is_told);
    tcase_add_test(tc, counts_cannot_fall_below_zero);
    tcase_add_test(tc, table_of_changes_is_bounded);
    tcase_add_test(tc, damaged_bitmap_gives_no_blocks_and_the_rest_does);
    tcase_add_test(tc, growth_heals_the_last_index_entry);
    tcase_add_test(tc, growth_of_many_bitmaps_goes_in_steps);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
