/* Cached blocks: locks, what is missing, what is damaged, what gives way, the cut. */
#include "tests/unit/persist/persist_rig.h"

#define NR_BLOCKS 500u

static struct thin_loop *loop;
static struct device *mem, *dev;
static struct block_manager *bm;
static struct thin_error err;
static const struct bm_validator bitmap_v = {.kind = BLOCK_BITMAP};
static const struct bm_validator index_v = {.kind = BLOCK_INDEX};

static void
make(bool waiting)
{
    struct bm_params params = {.nr_frames = BM_FRAMES_MIN, .waiting = waiting};

    params.dev = dev;
    ck_assert_int_eq(bm_create(&params, &bm), 0);
}

static void
setup(void)
{
    uint8_t block[METADATA_BLOCK_SIZE];

    loop = sim_loop_create(1);
    ck_assert_int_eq(
        device_mem_open(loop, (uint64_t)NR_BLOCKS * METADATA_BLOCK_SIZE, &mem), 0);
    dev = device_fault_open(mem);
    for (mblock_t b = 0; b < NR_BLOCKS; b++) {
        memset(block, 0, sizeof(block));
        store_le64(block + 16, b * 3);
        block_seal(BLOCK_BITMAP, block, b);
        ck_assert_int_eq(
            device_write_wait(dev, b * METADATA_BLOCK_SIZE, block, sizeof(block), 0), 0);
    }
    make(false);
}

static void
teardown(void)
{
    bm_destroy(bm);
    device_close(dev, NULL, NULL);
    while (sim_loop_step(loop))
        ;
    sim_loop_destroy(loop);
}

static void
fetch(struct rig_fetch *f)
{
    f->done = false;
    bm_fetch_start(&f->fetch);
    while (!f->done)
        ck_assert(sim_loop_step(loop));
}

/* Reads a block into the cache. */
static struct bm_block *
get(mblock_t b)
{
    struct bm_block *block = NULL;
    struct rig_fetch f;
    int r = bm_read_lock(bm, b, &bitmap_v, &block, &err);

    bm_fetch_init(&f.fetch, bm, rig_fetch_done);
    if (r == -THIN_E_WOULD_BLOCK) {
        fetch(&f);
        ck_assert_int_eq(f.result, 0);
        r = bm_read_lock(bm, b, &bitmap_v, &block, &err);
    }
    bm_fetch_fini(&f.fetch);
    ck_assert_int_eq(r, 0);
    return block;
}

START_TEST(miss_names_the_block_and_a_fetch_reads_it)
{
    struct bm_block *block;
    struct bm_stats stats;
    struct rig_fetch f;
    mblock_t missing[BM_MISSING_MAX];

    ck_assert_int_eq(bm_read_lock(bm, 7, &bitmap_v, &block, &err), -THIN_E_WOULD_BLOCK);
    ck_assert_int_eq(bm_read_lock(bm, 7, &bitmap_v, &block, &err), -THIN_E_WOULD_BLOCK);
    ck_assert_int_eq(bm_read_lock(bm, 9, &bitmap_v, &block, &err), -THIN_E_WOULD_BLOCK);
    ck_assert_uint_eq(bm_missing(bm, missing), 2);
    ck_assert_uint_eq(missing[0], 7);
    ck_assert_uint_eq(missing[1], 9);
    bm_fetch_init(&f.fetch, bm, rig_fetch_done);
    fetch(&f);
    ck_assert_int_eq(f.result, 0);
    ck_assert_uint_eq(bm_missing(bm, missing), 0);
    ck_assert_int_eq(bm_read_lock(bm, 9, &bitmap_v, &block, &err), 0);
    ck_assert_uint_eq(load_le64((const uint8_t *)bm_data(block) + 16), 27);
    bm_unlock(block);
    bm_fetch_fini(&f.fetch);
    bm_get_stats(bm, &stats);
    ck_assert_uint_eq(stats.reads, 2);
    ck_assert_int_eq(bm_read_lock(bm, NR_BLOCKS, &bitmap_v, &block, &err), -THIN_E_RANGE);
}
END_TEST

START_TEST(waiting_manager_reads_inside_the_lock)
{
    struct bm_block *block;

    bm_destroy(bm);
    make(true);
    ck_assert_int_eq(bm_read_lock(bm, 100, &bitmap_v, &block, &err), 0);
    ck_assert_uint_eq(bm_location(block), 100);
    bm_unlock(block);
    device_fault_order(dev, FAULT_FAIL, FAULT_OP(DEVICE_READ), 1, 1, -EIO, 0);
    ck_assert_int_eq(bm_read_lock(bm, 101, &bitmap_v, &block, &err), -EIO);
    ck_assert_int_eq(bm_read_lock(bm, 101, &bitmap_v, &block, &err), 0);
    bm_unlock(block);
}
END_TEST

START_TEST(newest_misses_are_remembered)
{
    struct bm_block *block;
    mblock_t missing[BM_MISSING_MAX];

    for (mblock_t b = 1; b <= 20; b++)
        ck_assert_int_eq(bm_read_lock(bm, b, &bitmap_v, &block, NULL),
                         -THIN_E_WOULD_BLOCK);
    ck_assert_uint_eq(bm_missing(bm, missing), BM_MISSING_MAX);
    ck_assert_uint_eq(missing[BM_MISSING_MAX - 1], 20);
    bm_clear_missing(bm);
    ck_assert_uint_eq(bm_missing(bm, missing), 0);
}
END_TEST

START_TEST(recursive_locks_are_refused_naming_both_places)
{
    struct bm_block *a = get(3), *b, *c;

    ck_assert_int_eq(bm_read_lock(bm, 3, &bitmap_v, &b, &err), 0);
    ck_assert_int_eq(bm_write_lock_at(bm, 3, &bitmap_v, &c, "second:2", &err),
                     -THIN_E_RECURSIVE_LOCK);
    ck_assert_ptr_nonnull(strstr(err.text, "second:2"));
    ck_assert_ptr_nonnull(strstr(err.text, "test_block_manager.c"));
    bm_unlock(a);
    bm_unlock(b);

    ck_assert_int_eq(bm_new_lock_at(bm, 4, &bitmap_v, &a, "first:1", &err), 0);
    ck_assert_int_eq(bm_read_lock(bm, 4, &bitmap_v, &b, &err), -THIN_E_RECURSIVE_LOCK);
    ck_assert_ptr_nonnull(strstr(err.text, "first:1"));
    ck_assert_int_eq(bm_write_lock(bm, 4, &bitmap_v, &b, &err), -THIN_E_RECURSIVE_LOCK);
    ck_assert_int_eq(bm_new_lock(bm, 4, &bitmap_v, &b, &err), -THIN_E_RECURSIVE_LOCK);
    bm_unlock(a);
    ck_assert_int_eq(bm_write_lock(bm, 4, &bitmap_v, &a, &err), 0);
    bm_unlock(a);
}
END_TEST

START_TEST(high_water_mark_counts_locks_held_at_once)
{
    struct bm_block *a = get(1), *b = get(2), *c;
    struct bm_stats stats;

    bm_reset_high_water(bm);
    ck_assert_int_eq(bm_read_lock(bm, 1, &bitmap_v, &c, &err), 0);
    bm_unlock(c);
    bm_get_stats(bm, &stats);
    ck_assert_uint_eq(stats.locks_held, 2);
    ck_assert_uint_eq(stats.locks_high_water, 3);
    bm_unlock(a);
    bm_unlock(b);
}
END_TEST

START_TEST(damage_is_refused_and_read_again)
{
    struct bm_block *block;
    struct rig_fetch f;

    device_fault_order(dev, FAULT_CORRUPT, FAULT_OP(DEVICE_READ), 1, 1, 0, 1000);
    ck_assert_int_eq(bm_read_lock(bm, 5, &bitmap_v, &block, &err), -THIN_E_WOULD_BLOCK);
    bm_fetch_init(&f.fetch, bm, rig_fetch_done);
    fetch(&f);
    ck_assert_int_eq(bm_read_lock(bm, 5, &bitmap_v, &block, &err), -THIN_E_CHECKSUM);
    bm_fetch_fini(&f.fetch);
    bm_unlock(get(5));
    /* The right checksum of the wrong kind. */
    ck_assert_int_eq(bm_read_lock(bm, 5, &index_v, &block, &err), -THIN_E_CHECKSUM);
    bm_unlock(get(5));
}
END_TEST

START_TEST(failed_read_ends_the_fetch_and_leaves_nothing)
{
    struct bm_block *block;
    struct rig_fetch f;

    device_fault_order(dev, FAULT_FAIL, FAULT_OP(DEVICE_READ), 1, 1, -EIO, 0);
    ck_assert_int_eq(bm_read_lock(bm, 5, &bitmap_v, &block, &err), -THIN_E_WOULD_BLOCK);
    bm_fetch_init(&f.fetch, bm, rig_fetch_done);
    fetch(&f);
    ck_assert_int_eq(f.result, -EIO);
    bm_fetch_fini(&f.fetch);
    ck_assert_ptr_null(bm_find(bm, 5));
    bm_unlock(get(5));
}
END_TEST

START_TEST(two_fetches_share_one_read)
{
    struct bm_block *block;
    struct bm_stats stats;
    struct rig_fetch a, b;

    bm_fetch_init(&a.fetch, bm, rig_fetch_done);
    bm_fetch_init(&b.fetch, bm, rig_fetch_done);
    a.done = b.done = false;
    ck_assert_int_eq(bm_read_lock(bm, 5, &bitmap_v, &block, &err), -THIN_E_WOULD_BLOCK);
    bm_fetch_start(&a.fetch);
    ck_assert_int_eq(bm_read_lock(bm, 5, &bitmap_v, &block, &err), -THIN_E_WOULD_BLOCK);
    bm_fetch_start(&b.fetch);
    ck_assert(!a.done && !b.done);
    while (!a.done || !b.done)
        ck_assert(sim_loop_step(loop));
    bm_get_stats(bm, &stats);
    ck_assert_uint_eq(stats.reads, 1);
    bm_fetch_fini(&a.fetch);
    bm_fetch_fini(&b.fetch);
}
END_TEST

START_TEST(reset_cancels_what_is_being_read)
{
    struct bm_block *block;
    struct rig_fetch a, b;

    bm_fetch_init(&a.fetch, bm, rig_fetch_done);
    bm_fetch_init(&b.fetch, bm, rig_fetch_done);
    a.done = b.done = false;
    ck_assert_int_eq(bm_read_lock(bm, 5, &bitmap_v, &block, &err), -THIN_E_WOULD_BLOCK);
    bm_fetch_start(&a.fetch);
    ck_assert_int_eq(bm_read_lock(bm, 6, &bitmap_v, &block, &err), -THIN_E_WOULD_BLOCK);
    bm_fetch_start(&b.fetch);
    bm_fetch_fini(&b.fetch); /* given up while it runs: never told */
    bm_reset(bm);
    bm_unlock(get(5));
    while (sim_loop_step(loop))
        ;
    ck_assert(a.done && !b.done);
    ck_assert_int_eq(a.result, -THIN_E_CANCELLED);
    bm_fetch_fini(&a.fetch);
}
END_TEST

START_TEST(new_block_takes_over_one_that_is_being_read)
{
    struct bm_block *block;
    struct rig_fetch a;

    bm_fetch_init(&a.fetch, bm, rig_fetch_done);
    a.done = false;
    ck_assert_int_eq(bm_read_lock(bm, 5, &bitmap_v, &block, &err), -THIN_E_WOULD_BLOCK);
    bm_fetch_start(&a.fetch);
    ck_assert_int_eq(bm_new_lock(bm, 5, &bitmap_v, &block, &err), 0);
    store_le64((uint8_t *)bm_data_rw(block) + 16, 99);
    bm_unlock(block);
    while (sim_loop_step(loop))
        ;
    ck_assert(a.done);
    ck_assert_int_eq(a.result, 0);
    ck_assert_int_eq(bm_read_lock(bm, 5, &bitmap_v, &block, &err), 0);
    ck_assert_uint_eq(load_le64((const uint8_t *)bm_data(block) + 16), 99);
    bm_unlock(block);
    bm_fetch_fini(&a.fetch);
}
END_TEST

START_TEST(cache_is_full_when_nothing_may_give_way)
{
    struct bm_block *block;
    struct rig_fetch f;

    for (mblock_t b = 0; b < BM_FRAMES_MIN; b++) {
        ck_assert_int_eq(bm_new_lock(bm, b, &bitmap_v, &block, &err), 0);
        bm_unlock(block);
    }
    ck_assert_int_eq(bm_new_lock(bm, 200, &bitmap_v, &block, &err), -THIN_E_CACHE_FULL);
    ck_assert_int_eq(bm_read_lock(bm, 200, &bitmap_v, &block, &err), -THIN_E_WOULD_BLOCK);
    bm_fetch_init(&f.fetch, bm, rig_fetch_done);
    fetch(&f);
    ck_assert_int_eq(f.result, -THIN_E_CACHE_FULL);
    bm_fetch_fini(&f.fetch);
    bm_forget(bm, 3);
    ck_assert_uint_eq(bm_nr_dirty(bm), BM_FRAMES_MIN - 1);
    bm_unlock(get(200));
}
END_TEST

static bool io_done;
static int io_result;

static void
note_io(void *arg, int result)
{
    (void)arg;
    io_done = true;
    io_result = result;
}

static int
write_cut(void)
{
    io_done = false;
    bm_write_cut(bm, note_io, NULL);
    ck_assert(!io_done);
    while (!io_done)
        ck_assert(sim_loop_step(loop));
    return io_result;
}

START_TEST(clean_frames_leave_room_for_dirty_ones)
{
    struct bm_block *block;
    struct bm_stats stats;

    for (mblock_t b = 10; b < 100; b++) {
        bm_unlock(get(b));
        bm_get_stats(bm, &stats);
        ck_assert_uint_le(stats.frames_clean, BM_CLEAN_MIN);
    }
    ck_assert_uint_eq(stats.frames_clean, BM_CLEAN_MIN);
    /* So many become dirty and none of the clean ones goes; the next takes a clean one's
       place. */
    for (mblock_t b = 200; b < 200 + BM_DIRTY_MIN + 1; b++) {
        bm_get_stats(bm, &stats);
        ck_assert_uint_eq(stats.frames_clean, BM_CLEAN_MIN);
        ck_assert_int_eq(bm_new_lock(bm, b, &bitmap_v, &block, &err), 0);
        bm_unlock(block);
    }
    bm_get_stats(bm, &stats);
    ck_assert_uint_eq(stats.frames_clean, BM_CLEAN_MIN - 1);
    /* What was written is clean, and no more than others. */
    bm_cut(bm);
    ck_assert_int_eq(write_cut(), 0);
    bm_get_stats(bm, &stats);
    ck_assert_uint_eq(stats.frames_clean, BM_CLEAN_MIN);
    ck_assert_uint_eq(stats.frames_dirty + stats.frames_writing, 0);
}
END_TEST

START_TEST(pinned_and_locked_frames_stay)
{
    struct bm_block *block, *locked = get(1);
    struct rig_fetch f;

    bm_fetch_init(&f.fetch, bm, rig_fetch_done);
    ck_assert_int_eq(bm_read_lock(bm, 2, &bitmap_v, &block, &err), -THIN_E_WOULD_BLOCK);
    fetch(&f);
    for (mblock_t b = 10; b < 300; b++)
        bm_unlock(get(b));
    ck_assert_ptr_nonnull(bm_find(bm, 1));
    ck_assert_ptr_nonnull(bm_find(bm, 2));
    bm_fetch_fini(&f.fetch);
    bm_unlock(locked);
    for (mblock_t b = 10; b < 300; b++)
        bm_unlock(get(b));
    ck_assert_ptr_null(bm_find(bm, 1));
    ck_assert_ptr_null(bm_find(bm, 2));
}
END_TEST

START_TEST(cut_is_written_in_joined_runs_and_leaves_clean_frames)
{
    static const mblock_t blocks[] = {30, 12, 10, 11, 31, 400};
    struct bm_stats stats;
    struct bm_block *block;

    for (unsigned i = 0; i < 6; i++) {
        ck_assert_int_eq(bm_new_lock(bm, blocks[i], &bitmap_v, &block, &err), 0);
        store_le64((uint8_t *)bm_data_rw(block) + 16, 1000 + i);
        bm_unlock(block);
    }
    ck_assert_uint_eq(bm_cut(bm), 6);
    ck_assert_uint_eq(bm_nr_dirty(bm), 0);
    ck_assert_int_eq(bm_new_lock(bm, 77, &bitmap_v, &block, &err), 0);
    bm_unlock(block); /* the next transaction's */
    ck_assert_int_eq(write_cut(), 0);
    bm_get_stats(bm, &stats);
    ck_assert_uint_eq(stats.writes, 6);
    ck_assert_uint_eq(stats.write_ios, 3);
    ck_assert_uint_eq(stats.frames_writing, 0);
    ck_assert_uint_eq(stats.frames_dirty, 1);
    bm_reset(bm);
    for (unsigned i = 0; i < 6; i++) {
        block = get(blocks[i]);
        ck_assert_uint_eq(load_le64((const uint8_t *)bm_data(block) + 16), 1000 + i);
        bm_unlock(block);
    }
    block = get(77);
    ck_assert_uint_eq(load_le64((const uint8_t *)bm_data(block) + 16), 77 * 3);
    bm_unlock(block);
    ck_assert_uint_eq(bm_cut(bm), 0);
    ck_assert_int_eq(write_cut(), 0);
}
END_TEST

START_TEST(failed_write_is_told_and_only_reset_goes_on)
{
    struct bm_stats stats;
    struct bm_block *block;

    for (mblock_t b = 10; b < 40; b += 2) {
        ck_assert_int_eq(bm_new_lock(bm, b, &bitmap_v, &block, &err), 0);
        bm_unlock(block);
    }
    bm_cut(bm);
    device_fault_order(dev, FAULT_FAIL, FAULT_OP(DEVICE_WRITE), 3, 1, -EIO, 0);
    ck_assert_int_eq(write_cut(), -EIO);
    bm_get_stats(bm, &stats);
    ck_assert_uint_ge(stats.frames_writing, 1);
    bm_reset(bm);
    bm_get_stats(bm, &stats);
    ck_assert_uint_eq(stats.frames_writing, 0);
    block = get(20);
    bm_unlock(block);
}
END_TEST

START_TEST(superblock_is_sealed_and_replaces_the_cached_one)
{
    static uint8_t sb[METADATA_BLOCK_SIZE];
    struct bm_validator v = {.kind = BLOCK_SUPERBLOCK};
    struct superblock fields = {.version = SUPERBLOCK_VERSION};
    struct bm_block *block;
    struct rig_fetch f;

    superblock_encode(&fields, sb);
    bm_unlock(get(0));
    io_done = false;
    bm_write_superblock(bm, sb, note_io, NULL);
    while (!io_done)
        ck_assert(sim_loop_step(loop));
    ck_assert_int_eq(io_result, 0);
    bm_fetch_init(&f.fetch, bm, rig_fetch_done);
    ck_assert_int_eq(bm_read_lock(bm, 0, &v, &block, &err), -THIN_E_WOULD_BLOCK);
    fetch(&f);
    ck_assert_int_eq(bm_read_lock(bm, 0, &v, &block, &err), 0);
    bm_unlock(block);
    bm_fetch_fini(&f.fetch);
    io_done = false;
    bm_flush(bm, note_io, NULL);
    while (!io_done)
        ck_assert(sim_loop_step(loop));
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("block_manager");
    TCase *tc = tcase_create("all");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, miss_names_the_block_and_a_fetch_reads_it);
    tcase_add_test(tc, waiting_manager_reads_inside_the_lock);
    tcase_add_test(tc, newest_misses_are_remembered);
    tcase_add_test(tc, recursive_locks_are_refused_naming_both_places);
    tcase_add_test(tc, high_water_mark_counts_locks_held_at_once);
    tcase_add_test(tc, damage_is_refused_and_read_again);
    tcase_add_test(tc, failed_read_ends_the_fetch_and_leaves_nothing);
    tcase_add_test(tc, two_fetches_share_one_read);
    tcase_add_test(tc, reset_cancels_what_is_being_read);
    tcase_add_test(tc, new_block_takes_over_one_that_is_being_read);
    tcase_add_test(tc, cache_is_full_when_nothing_may_give_way);
    tcase_add_test(tc, clean_frames_leave_room_for_dirty_ones);
    tcase_add_test(tc, pinned_and_locked_frames_stay);
    tcase_add_test(tc, cut_is_written_in_joined_runs_and_leaves_clean_frames);
    tcase_add_test(tc, failed_write_is_told_and_only_reset_goes_on);
    tcase_add_test(tc, superblock_is_sealed_and_replaces_the_cached_one);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
