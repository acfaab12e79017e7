/* What outlives a restart in good order, and what a power cut ends. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/base/random.h"
#include "core/ondisk/block.h"
#include "core/ondisk/superblock.h"
#include "tests/lib/check_codes.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/sim_loop.h"

#define BLOCK     65536u
#define NR_BLOCKS 64u
#define META_SIZE (4u << 20)

static struct pool_rig rig;
static struct thin_random rng;
static struct crash_disk *data_disk, *meta_disk;
static unsigned char buf[4096], back[4096];

static int
try_open(bool format)
{
    struct pool_params params;

    rig_params(&rig, &params, crash_disk_open(data_disk, rig.loop),
               crash_disk_open(meta_disk, rig.loop));
    params.format = format;
    params.seed = random_u64(&rng); /* as the server does: another one each time */
    return rig_open(&rig, &params);
}

static void
set_up(void)
{
    struct volume *vol;

    rig.loop = sim_loop_create(3);
    random_seed(&rng, 7);
    data_disk = crash_disk_create(&rng, NR_BLOCKS * BLOCK, NULL);
    meta_disk = crash_disk_create(&rng, META_SIZE, NULL);
    memset(buf, 'x', sizeof(buf));
    ck_ok(try_open(true));
    ck_ok(rig_create(&rig, "vol", 8 * BLOCK));
    ck_ok(rig_volume(&rig, "vol", &vol));
    ck_ok(rig_write(&rig, vol, 0, buf, sizeof(buf)));
    volume_close(vol);
}

static void
tear_down(void)
{
    if (rig.pool)
        ck_ok(rig_close(&rig, true));
    crash_disk_destroy(data_disk);
    crash_disk_destroy(meta_disk);
    sim_loop_destroy(rig.loop);
}

static void
restart(void)
{
    ck_ok(rig_close(&rig, false));
    ck_ok(try_open(false));
}

static void
power_cut(void)
{
    int r;

    crash_disk_cut(data_disk);
    crash_disk_cut(meta_disk);
    r = rig_close(&rig, true);
    (void)r;
    ck_ok(try_open(false));
}

static struct pool_marks
marks(void)
{
    struct pool_marks m;

    pool_get_marks(rig.pool, &m);
    return m;
}

static uint64_t
writes(void)
{
    return crash_disk_nr_op(meta_disk, DEVICE_WRITE) +
           crash_disk_nr_op(data_disk, DEVICE_WRITE);
}

START_TEST(a_restart_in_good_order_keeps_it_and_the_changes_rise)
{
    struct pool_marks before = marks(), after;
    struct volume *vol;

    for (unsigned i = 0; i < 4; i++) {
        restart();
        after = marks();
        ck_assert_uint_eq(after.incarnation, before.incarnation);
        /* All that was answered before is stable; what comes has higher numbers. */
        ck_assert_uint_ge(after.stable, before.change);
        ck_assert_uint_gt(after.change, after.stable);
        ck_ok(rig_volume(&rig, "vol", &vol));
        memset(buf, 'a' + (int)i, sizeof(buf));
        ck_ok(rig_write(&rig, vol, 0, buf, sizeof(buf)));
        before = marks();
        ck_assert_uint_gt(before.change, after.stable);
        volume_close(vol);
    }
    restart();
    ck_ok(rig_volume(&rig, "vol", &vol));
    ck_ok(rig_read(&rig, vol, 0, back, sizeof(back)));
    ck_assert_mem_eq(back, buf, sizeof(buf));
    volume_close(vol);
}
END_TEST

START_TEST(also_if_the_volumes_were_taken_away)
{
    struct pool_marks before = marks();
    struct volume *vol;

    ck_ok(rig_volume(&rig, "vol", &vol));
    ck_ok(rig_write(&rig, vol, 3 * BLOCK, buf, sizeof(buf)));
    ck_ok(rig_close(&rig, true));
    volume_close(vol);
    ck_ok(try_open(false));
    ck_assert_uint_eq(marks().incarnation, before.incarnation);
    ck_ok(rig_volume(&rig, "vol", &vol));
    ck_ok(rig_read(&rig, vol, 3 * BLOCK, back, sizeof(back)));
    ck_assert_mem_eq(back, buf, sizeof(buf));
    volume_close(vol);
}
END_TEST

START_TEST(a_power_cut_ends_it)
{
    uint64_t before = marks().incarnation, again;

    power_cut();
    again = marks().incarnation;
    ck_assert_uint_ne(again, before);
    power_cut();
    ck_assert_uint_ne(marks().incarnation, before);
    ck_assert_uint_ne(marks().incarnation, again);
}
END_TEST

START_TEST(a_power_cut_after_an_overwrite_alone_ends_it)
{
    struct volume *vol;
    uint64_t before;

    restart();
    before = marks().incarnation;
    ck_ok(rig_volume(&rig, "vol", &vol));
    /* In place: nothing in the metadata changes. */
    ck_ok(rig_write(&rig, vol, 0, buf, sizeof(buf)));
    crash_disk_cut(data_disk);
    crash_disk_cut(meta_disk);
    ck_assert_int_ne(rig_close(&rig, true), 0);
    volume_close(vol);
    ck_ok(try_open(false));
    ck_assert_uint_ne(marks().incarnation, before);
}
END_TEST

START_TEST(wherever_the_cut_falls_no_answered_write_is_lost_within_one)
{
    unsigned kept = 0, ended = 0;

    for (uint64_t steps = 0; steps < 120; steps += 3) {
        struct volume *vol = NULL;
        struct rig_io rio;
        uint64_t before;
        int r;

        restart();
        before = marks().incarnation;
        crash_disk_fail_nth(meta_disk, 1u << DEVICE_WRITE, steps / 3 + 1, -EIO);
        r = rig_volume(&rig, "vol", &vol);
        memset(&rio, 0, sizeof(rio));
        memset(buf, (int)('A' + steps % 26), sizeof(buf));
        if (r == 0) {
            rig_io_start(&rig, vol, &rio, VOLUME_WRITE, 0, 0, buf, sizeof(buf));
            for (uint64_t i = 0; i < steps && sim_loop_step(rig.loop); i++)
                ;
        }
        crash_disk_cut(data_disk);
        crash_disk_cut(meta_disk);
        r = rig_close(&rig, true);
        volume_close(vol);
        crash_disk_fail_nth(meta_disk, 0, 0, 0);
        ck_ok(try_open(false));
        if (marks().incarnation == before) {
            kept++;
            ck_assert(!rio.done || rio.result < 0);
        } else {
            ended++;
        }
    }
    ck_assert_uint_gt(ended, 0);
    ck_assert_uint_gt(kept, 0);
}
END_TEST

static int
open_and_write(void)
{
    struct volume *vol;
    int r = rig_volume(&rig, "vol", &vol);

    if (r == 0)
        r = rig_write(&rig, vol, 0, buf, sizeof(buf));
    if (r == 0)
        volume_close(vol);
    return r;
}

START_TEST(an_open_pool_that_nobody_changes_writes_nothing)
{
    uint64_t nr;

    restart();
    nr = writes();
    restart();
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 10 * NS_PER_SEC);
    restart();
    ck_assert_uint_eq(writes(), nr);
    ck_ok(open_and_write());
    restart();
    ck_assert_uint_gt(writes(), nr);
}
END_TEST

START_TEST(what_another_one_committed_ends_it)
{
    uint64_t before = marks().incarnation;
    uint8_t block[METADATA_BLOCK_SIZE];
    struct superblock sb;

    ck_ok(rig_close(&rig, false));
    crash_disk_read(meta_disk, 0, block, sizeof(block));
    superblock_decode(&sb, block);
    sb.trans_id++;
    superblock_encode(&sb, block);
    block_seal(BLOCK_SUPERBLOCK, block, 0);
    crash_disk_write(meta_disk, 0, block, sizeof(block));
    ck_ok(try_open(false));
    ck_assert_uint_ne(marks().incarnation, before);
}
END_TEST

START_TEST(a_pool_that_rolled_back_does_not_claim_a_clean_end)
{
    uint64_t before;
    struct volume *vol;

    restart();
    before = marks().incarnation;
    ck_ok(rig_volume(&rig, "vol", &vol));
    ck_ok(rig_write(&rig, vol, 5 * BLOCK, buf, sizeof(buf)));
    crash_disk_fail_nth(data_disk, 1u << DEVICE_FLUSH, 1, -EIO);
    ck_assert_int_ne(rig_flush(&rig, vol), 0);
    volume_close(vol);
    restart();
    ck_assert_uint_ne(marks().incarnation, before);
}
END_TEST

static Suite *
suite(void)
{
    Suite *s = suite_create("incarnation");
    TCase *tc = tcase_create("incarnation");

    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_restart_in_good_order_keeps_it_and_the_changes_rise);
    tcase_add_test(tc, also_if_the_volumes_were_taken_away);
    tcase_add_test(tc, a_power_cut_ends_it);
    tcase_add_test(tc, a_power_cut_after_an_overwrite_alone_ends_it);
    tcase_add_test(tc, wherever_the_cut_falls_no_answered_write_is_lost_within_one);
    tcase_add_test(tc, an_open_pool_that_nobody_changes_writes_nothing);
    tcase_add_test(tc, what_another_one_committed_ends_it);
    tcase_add_test(tc, a_pool_that_rolled_back_does_not_claim_a_clean_end);
    suite_add_tcase(s, tc);
    return s;
}

int
main(void)
{
    SRunner *sr = srunner_create(suite());
    int failed;

    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
