/* Durability: flushes, FUA, group commit, roll-back; what is there after a power cut. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/random.h"
#include "tests/lib/check_codes.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/device_fault.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/sim_loop.h"

#define BLOCK     65536u
#define NR_BLOCKS 256u
#define META_SIZE (4u << 20)
#define VOL_SIZE  (8u << 20)

static struct pool_rig rig;
static struct thin_random rng;
static struct crash_disk *data_disk, *meta_disk;
static struct device *data, *meta; /* wrapped, for orders */
static struct volume *vol;
static unsigned char buf[1u << 20], back[1u << 20];

static void
open_pool(bool format)
{
    struct pool_params params;

    data = device_fault_open(crash_disk_open(data_disk, rig.loop));
    meta = device_fault_open(crash_disk_open(meta_disk, rig.loop));
    rig_params(&rig, &params, data, meta);
    params.format = format;
    params.leaf_max = params.internal_max = 6;
    ck_ok(rig_open(&rig, &params));
    if (format)
        ck_ok(rig_create(&rig, "vol", VOL_SIZE));
    ck_ok(rig_volume(&rig, "vol", &vol));
}

static void
set_up(void)
{
    rig.loop = sim_loop_create(11);
    random_seed(&rng, 5);
    data_disk = crash_disk_create(&rng, NR_BLOCKS * BLOCK, NULL);
    meta_disk = crash_disk_create(&rng, META_SIZE, NULL);
    open_pool(true);
    for (size_t i = 0; i < sizeof(buf); i++)
        buf[i] = (unsigned char)random_u64(&rng);
}

static void
close_pool(void)
{
    int r = rig_close(&rig, true);

    (void)r;
    volume_close(vol);
}

static void
tear_down(void)
{
    if (rig.pool)
        close_pool();
    crash_disk_destroy(data_disk);
    crash_disk_destroy(meta_disk);
    sim_loop_destroy(rig.loop);
}

/* The power goes, and comes back. */
static void
cut(void)
{
    crash_disk_cut(data_disk);
    crash_disk_cut(meta_disk);
    close_pool();
    open_pool(false);
}

static uint64_t
ios(void)
{
    return crash_disk_nr_ios(data_disk) + crash_disk_nr_ios(meta_disk);
}

static uint64_t
flushes(void)
{
    return crash_disk_nr_op(data_disk, DEVICE_FLUSH);
}

static void
check_reads(uint64_t offset, const void *wanted, size_t len)
{
    memset(back, 0xee, len);
    ck_ok(rig_read(&rig, vol, offset, back, len));
    ck_assert_int_eq(memcmp(back, wanted, len), 0);
}

START_TEST(what_was_flushed_survives_a_power_cut)
{
    for (unsigned i = 0; i < 16; i++) {
        ck_ok(rig_write(&rig, vol, i * 70000, buf + i * 5000, 5000));
        ck_ok(rig_flush(&rig, vol));
        cut();
        for (unsigned k = 0; k <= i; k++)
            check_reads(k * 70000, buf + k * 5000, 5000);
    }
}
END_TEST

START_TEST(what_was_written_with_fua_survives_a_power_cut)
{
    for (unsigned i = 0; i < 8; i++) {
        /* First into a new block, then over it. */
        ck_ok(rig_io(&rig, vol, VOLUME_WRITE, VOLUME_FUA, i * BLOCK, buf, 4096));
        cut();
        check_reads(i * BLOCK, buf, 4096);
        ck_ok(
            rig_io(&rig, vol, VOLUME_WRITE, VOLUME_FUA, i * BLOCK, buf + i * 512, 4096));
        cut();
        check_reads(i * BLOCK, buf + i * 512, 4096);
    }
}
END_TEST

START_TEST(fua_over_a_mapping_that_is_not_durable_waits_for_it)
{
    ck_ok(rig_write(&rig, vol, 0, buf, 4096));
    ck_ok(rig_io(&rig, vol, VOLUME_WRITE, VOLUME_FUA, 0, buf + 512, 4096));
    cut();
    check_reads(0, buf + 512, 4096);
}
END_TEST

START_TEST(zeroes_with_fua_survive_a_power_cut)
{
    ck_ok(rig_write(&rig, vol, 0, buf, BLOCK * 3));
    ck_ok(rig_flush(&rig, vol));
    ck_ok(rig_io(&rig, vol, VOLUME_WRITE_ZEROES, VOLUME_FUA, 100, NULL, BLOCK * 2));
    cut();
    memset(back, 0, BLOCK * 2);
    memcpy(buf, back, 0);
    ck_ok(rig_read(&rig, vol, 0, back, BLOCK * 3));
    ck_assert_int_eq(memcmp(back, buf, 100), 0);
    for (unsigned i = 100; i < 100 + BLOCK * 2; i++)
        ck_assert_uint_eq(back[i], 0);
    ck_assert_int_eq(memcmp(back + 100 + BLOCK * 2, buf + 100 + BLOCK * 2, 1000), 0);
}
END_TEST

START_TEST(a_commit_comes_by_itself_after_the_interval)
{
    ck_ok(rig_write(&rig, vol, 0, buf, 4096));
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 2 * NS_PER_SEC);
    cut();
    check_reads(0, buf, 4096);
}
END_TEST

START_TEST(an_idle_pool_does_nothing_at_its_devices)
{
    uint64_t before;

    ck_ok(rig_write(&rig, vol, 0, buf, 4096));
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 3 * NS_PER_SEC);
    before = ios();
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 600 * NS_PER_SEC);
    ck_assert_uint_eq(ios(), before);
    /* Nor does a flush, or a read of a hole, when there is nothing to do. */
    ck_ok(rig_flush(&rig, vol));
    ck_ok(rig_read(&rig, vol, VOL_SIZE / 2, back, 4096));
    ck_assert_uint_eq(ios(), before);
    /* Overwrites change no metadata. */
    ck_ok(rig_write(&rig, vol, 0, buf, 4096));
    ck_ok(rig_flush(&rig, vol));
    ck_assert_uint_eq(ios(), before + 2);
}
END_TEST

static uint64_t
commits(void)
{
    struct pool_info info;

    pool_get_info(rig.pool, &info);
    return info.commits;
}

START_TEST(a_flush_commits_only_what_its_volume_changed)
{
    struct volume *other;
    uint64_t before;

    ck_ok(rig_create(&rig, "other", VOL_SIZE));
    ck_ok(rig_volume(&rig, "other", &other));
    ck_ok(rig_write(&rig, vol, 0, buf, 4096));
    ck_ok(rig_write(&rig, other, 0, buf, 4096));
    ck_ok(rig_commit(&rig));
    before = commits();
    /* A first write of the one, an overwrite of the other. */
    ck_ok(rig_write(&rig, vol, 5 * BLOCK, buf, 4096));
    ck_ok(rig_write(&rig, other, 0, buf, 4096));
    ck_ok(rig_flush(&rig, other));
    ck_assert_uint_eq(commits(), before);
    ck_ok(rig_flush(&rig, vol));
    ck_assert_uint_eq(commits(), before + 1);
    ck_ok(rig_flush(&rig, vol));
    ck_ok(rig_flush(&rig, other));
    ck_assert_uint_eq(commits(), before + 1);
    volume_close(other);
}
END_TEST

/* Writes one new block, and waits so many milliseconds: how many commits came? */
static uint64_t
commits_in(uint64_t vblock, uint64_t ms)
{
    uint64_t before = commits();

    ck_ok(rig_write(&rig, vol, vblock * BLOCK, buf, 4096));
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + ms * NS_PER_MS);
    return commits() - before;
}

START_TEST(the_interval_and_the_number_of_dirty_blocks_change_while_it_runs)
{
    struct pool_info info;

    pool_get_info(rig.pool, &info);
    ck_assert_uint_eq(info.config.commit_interval_ms, 1000);
    ck_assert_uint_eq(commits_in(0, 900), 0);
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + NS_PER_SEC);

    info.config.commit_interval_ms = 10000;
    pool_set_config(rig.pool, &info.config);
    ck_assert_uint_eq(commits_in(1, 9000), 0);
    /* A shorter one counts for what waits already. */
    info.config.commit_interval_ms = 50;
    pool_set_config(rig.pool, &info.config);
    ck_assert_uint_eq(commits_in(2, 100), 1);

    info.config.commit_interval_ms = 3600000;
    info.config.commit_max_dirty = 12;
    pool_set_config(rig.pool, &info.config);
    ck_assert_uint_eq(commits_in(3, 1000), 0);
    for (unsigned i = 0; i < 60; i++)
        (void)commits_in(4 + i, 10);
    ck_assert_uint_ge(commits(), 4);
}
END_TEST

START_TEST(flushes_share)
{
    static struct rig_io w[64], f[64];
    uint64_t before;

    for (unsigned i = 0; i < 64; i++)
        ck_ok(rig_write(&rig, vol, i * BLOCK, buf, 4096));
    ck_ok(rig_flush(&rig, vol));
    before = flushes();
    for (unsigned i = 0; i < 64; i++)
        rig_io_start(&rig, vol, &w[i], VOLUME_WRITE, 0, i * BLOCK, buf, 4096);
    for (unsigned i = 0; i < 64; i++)
        ck_ok(rig_io_wait(&w[i]));
    for (unsigned i = 0; i < 64; i++)
        rig_io_start(&rig, vol, &f[i], VOLUME_FLUSH, 0, 0, NULL, 0);
    for (unsigned i = 0; i < 64; i++)
        ck_ok(rig_io_wait(&f[i]));
    ck_assert_uint_le(flushes(), before + 2);
}
END_TEST

START_TEST(provisioning_goes_on_during_a_commit)
{
    static struct rig_io w[32], f;

    device_fault_order(meta, FAULT_HOLD, FAULT_OP(DEVICE_FLUSH), 1, 1, 0, 0);
    ck_ok(rig_write(&rig, vol, 0, buf, 4096));
    rig_io_start(&rig, vol, &f, VOLUME_FLUSH, 0, 0, NULL, 0);
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 100 * NS_PER_MS);
    ck_assert_uint_eq(device_fault_nr_held(meta), 1);
    for (unsigned i = 0; i < 32; i++) {
        rig_io_start(&rig, vol, &w[i], VOLUME_WRITE, 0, (i + 4) * BLOCK, buf, 4096);
        ck_ok(rig_io_wait(&w[i]));
    }
    ck_assert(!f.done);
    device_fault_release(meta);
    ck_ok(rig_io_wait(&f));
    ck_ok(rig_flush(&rig, vol));
    cut();
    for (unsigned i = 0; i < 32; i++)
        check_reads((i + 4) * BLOCK, buf, 4096);
}
END_TEST

static uint64_t
incarnation(enum pool_mode *ret_mode)
{
    struct pool_info info;

    pool_get_info(rig.pool, &info);
    *ret_mode = info.mode;
    return info.incarnation;
}

/* After whatever failed: reads and writes of the handle tell it; the durable is there. */
static void
check_rolled_back(uint64_t before)
{
    struct volume *again;
    enum pool_mode mode;

    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + NS_PER_SEC);
    ck_code(rig_read(&rig, vol, 0, back, 512), ROLLED_BACK);
    ck_code(rig_flush(&rig, vol), ROLLED_BACK);
    ck_assert_uint_ne(incarnation(&mode), before);
    ck_assert_int_eq(mode, POOL_READ_ONLY);
    ck_ok(rig_volume(&rig, "vol", &again));
    volume_close(vol);
    vol = again;
    ck_code(rig_write(&rig, vol, 0, buf, 512), READ_ONLY);
    check_reads(0, buf, 4096);
    /* Opened anew, it is whole, and in service again. */
    close_pool();
    open_pool(false);
    check_reads(0, buf, 4096);
    ck_ok(rig_write(&rig, vol, 5 * BLOCK, buf, 4096));
    ck_ok(rig_flush(&rig, vol));
}

START_TEST(a_failed_data_flush_is_never_a_success)
{
    enum pool_mode mode;
    uint64_t before = incarnation(&mode);

    ck_ok(rig_write(&rig, vol, 0, buf, 4096));
    ck_ok(rig_flush(&rig, vol));
    ck_ok(rig_write(&rig, vol, BLOCK, buf, 4096));
    crash_disk_fail_nth(data_disk, 1u << DEVICE_FLUSH, 1, -EIO);
    ck_code(rig_flush(&rig, vol), ROLLED_BACK);
    check_rolled_back(before);
}
END_TEST

START_TEST(each_failure_of_a_commit_rolls_back)
{
    const unsigned masks[] = {1u << DEVICE_WRITE, 1u << DEVICE_FLUSH};

    for (unsigned m = 0; m < 2; m++) {
        for (unsigned nth = 1; nth < 12; nth++) {
            enum pool_mode mode;
            uint64_t before = incarnation(&mode);
            int r;

            ck_ok(rig_write(&rig, vol, 0, buf, 4096));
            ck_ok(rig_flush(&rig, vol));
            for (unsigned i = 0; i < 20; i++)
                ck_ok(rig_write(&rig, vol, (10 + i + nth) * BLOCK, buf + 512, 4096));
            crash_disk_fail_nth(meta_disk, masks[m], nth, -EIO);
            r = rig_flush(&rig, vol);
            if (!crash_disk_failed(meta_disk)) {
                crash_disk_fail_nth(meta_disk, 0, 0, 0);
                ck_ok(r);
                break;
            }
            ck_code(r, ROLLED_BACK);
            check_rolled_back(before);
        }
    }
}
END_TEST

START_TEST(a_volume_that_lost_nothing_goes_on)
{
    struct volume *other;

    ck_ok(rig_create(&rig, "other", VOL_SIZE));
    ck_ok(rig_volume(&rig, "other", &other));
    ck_ok(rig_write(&rig, vol, 0, buf, 4096));
    ck_ok(rig_flush(&rig, vol));
    /* Read once, so that it is clean and known to be. */
    check_reads(0, buf, 4096);
    ck_ok(rig_write(&rig, other, 0, buf, 4096));
    crash_disk_fail_nth(data_disk, 1u << DEVICE_FLUSH, 1, -EIO);
    ck_code(rig_flush(&rig, other), ROLLED_BACK);
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + NS_PER_SEC);
    ck_code(rig_read(&rig, other, 0, back, 512), ROLLED_BACK);
    check_reads(0, buf, 4096);
    ck_ok(rig_flush(&rig, vol));
    close_pool();
    volume_close(other);
    rig.pool = NULL;
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("commit");
    TCase *tcase = tcase_create("commit");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, what_was_flushed_survives_a_power_cut);
    tcase_add_test(tcase, what_was_written_with_fua_survives_a_power_cut);
    tcase_add_test(tcase, fua_over_a_mapping_that_is_not_durable_waits_for_it);
    tcase_add_test(tcase, zeroes_with_fua_survive_a_power_cut);
    tcase_add_test(tcase, a_commit_comes_by_itself_after_the_interval);
    tcase_add_test(tcase, an_idle_pool_does_nothing_at_its_devices);
    tcase_add_test(tcase, a_flush_commits_only_what_its_volume_changed);
    tcase_add_test(tcase,
                   the_interval_and_the_number_of_dirty_blocks_change_while_it_runs);
    tcase_add_test(tcase, flushes_share);
    tcase_add_test(tcase, provisioning_goes_on_during_a_commit);
    tcase_add_test(tcase, a_failed_data_flush_is_never_a_success);
    tcase_add_test(tcase, each_failure_of_a_commit_rolls_back);
    tcase_add_test(tcase, a_volume_that_lost_nothing_goes_on);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
