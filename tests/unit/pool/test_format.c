/* A pool made over an old one: at each moment of a power cut there is one pool, or none. */
#include <errno.h>

#include "tests/unit/pool/admin_rig.h"

#define CUTS_MAX 400u

/* A pool with something in it, closed. */
static void
old_pool(void)
{
    rig_open(true);
    rig_create("old", 64 * RIG_BLOCK);
    rig_fill("old", 0, 48 * RIG_BLOCK, 0xab);
    rig_snap("old", "older");
    rig_close();
}

static bool
block_0_is_blank(void)
{
    uint8_t block[4096];

    crash_disk_read(rig.metadata, 0, block, sizeof(block));
    for (unsigned i = 0; i < sizeof(block); i++)
        if (block[i])
            return false;
    return true;
}

/* Formats anew and cuts the power after `steps`. True: the format had ended before. */
static bool
format_and_cut(unsigned steps)
{
    rig.params.loop = rig.loop;
    rig.params.data = crash_disk_open(rig.data, rig.loop);
    rig.params.metadata = crash_disk_open(rig.metadata, rig.loop);
    rig.params.format = true;
    rig.params.seed = random_u64(&rig.rng);
    rig_begin();
    pool_open(&rig.params, rig_opened, NULL);
    while (steps-- > 0 && !rig.told)
        sim_loop_step(rig.loop);
    crash_disk_cut(rig.data);
    crash_disk_cut(rig.metadata);
    /* It may have been durable, and nobody told yet. */
    if (rig_wait() == 0) {
        rig_cut();
        return true;
    }
    sim_loop_run_until_idle(rig.loop, 0);
    return false;
}

START_TEST(a_cut_in_a_format_leaves_the_old_pool_none_or_the_new_one)
{
    unsigned nr_old = 0, nr_blank = 0, nr_new = 0, turn = 0;
    bool ended = false;

    for (unsigned steps = 1; steps < CUTS_MAX && !ended; steps += turn++ % 4 == 0) {
        struct recount rc;

        rig_init(200, 1024);
        /* Another luck each time. */
        for (unsigned i = 0; i < turn; i++)
            (void)random_u64(&rig.rng);
        old_pool();
        ended = format_and_cut(steps);
        if (block_0_is_blank()) {
            ck_assert(!ended);
            ck_assert_int_eq(rig_try_open(false), -THIN_E_NOT_THIN);
            ck_assert_ptr_null(rig.pool);
            sim_loop_run_until_idle(rig.loop, 0);
            nr_blank++;
        } else {
            struct volume_info info;

            rig_recount(&rc);
            rig_open(false);
            if (pool_volume_peek(rig.pool, "old", &info)) {
                ck_assert(!ended);
                ck_assert(rig_holds("old", 0, 48 * RIG_BLOCK, 0xab));
                ck_assert(rig_holds("older", 0, 48 * RIG_BLOCK, 0xab));
                nr_old++;
            } else {
                rig_list(NULL, 10);
                ck_assert_uint_eq(rig.nr_infos, 0);
                nr_new++;
            }
        }
        rig_fini();
    }
    ck_assert(ended);
    printf("old %u, none %u, new %u\n", nr_old, nr_blank, nr_new);
    ck_assert_uint_gt(nr_old, 0);
    ck_assert_uint_gt(nr_blank, 0);
    ck_assert_uint_gt(nr_new, 0);
}
END_TEST

START_TEST(a_format_that_is_refused_leaves_the_old_pool)
{
    rig_init(200, 1024);
    old_pool();
    rig.params.loop = rig.loop;
    rig.params.data = crash_disk_open(rig.data, rig.loop);
    rig.params.metadata = crash_disk_open(rig.metadata, rig.loop);
    rig.params.format = true;
    rig.params.data_block_sectors = 100;
    rig_begin();
    pool_open(&rig.params, rig_opened, NULL);
    ck_assert_int_eq(rig_wait(), -THIN_E_INVALID);
    sim_loop_run_until_idle(rig.loop, 0);
    rig_open(false);
    ck_assert(rig_holds("old", 0, 48 * RIG_BLOCK, 0xab));
    rig_fini();
}
END_TEST

START_TEST(a_format_fails_where_the_old_superblock_cannot_be_wiped)
{
    static const unsigned ops[] = {1u << DEVICE_WRITE, 1u << DEVICE_FLUSH};

    for (unsigned i = 0; i < 2; i++) {
        rig_init(200, 1024);
        old_pool();
        crash_disk_fail_nth(rig.metadata, ops[i], 1, -EIO);
        ck_assert_int_eq(rig_try_open(true), -EIO);
        ck_assert_ptr_nonnull(strstr(rig.err.text, "wipe"));
        ck_assert_uint_eq(crash_disk_nr_op(rig.data, DEVICE_WRITE_ZEROES), 0);
        sim_loop_run_until_idle(rig.loop, 0);
        rig_fini();
    }
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("format");
    TCase *tcase = tcase_create("format");
    SRunner *runner;
    int failed;

    thin_log_set_level(THIN_LOG_ERROR);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_cut_in_a_format_leaves_the_old_pool_none_or_the_new_one);
    tcase_add_test(tcase, a_format_that_is_refused_leaves_the_old_pool);
    tcase_add_test(tcase, a_format_fails_where_the_old_superblock_cannot_be_wiped);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
