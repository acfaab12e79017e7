/* A roll-back as those see it who come while it is on its way. */
#include <errno.h>

#include "tests/unit/pool/admin_rig.h"

static uint8_t bytes[RIG_BLOCK];
static struct volume_io flush_io;
static bool flush_told;

static void
flush_done(struct volume_io *io, int result)
{
    (void)io;
    ck_assert_int_lt(result, 0);
    flush_told = true;
}

static void
set_up(void)
{
    rig_init(100, 1024);
    rig_open(true);
    memset(bytes, 0x5a, sizeof(bytes));
    rig_create("a", 20 * RIG_BLOCK);
    rig_create("b", 20 * RIG_BLOCK);
    rig_fill("b", 0, RIG_BLOCK, 0x11);
}

static void
tear_down(void)
{
    rig_fini();
}

/* A flush of the data device fails; returns in the middle of the roll-back. */
static struct volume *
roll_back_begins(void)
{
    struct volume *volume = rig_open_volume("a");

    ck_assert_int_eq(rig_io(volume, VOLUME_WRITE, 0, RIG_BLOCK, bytes, 0), 0);
    crash_disk_fail_nth(rig.data, 1u << DEVICE_FLUSH, 1, -EIO);
    flush_told = false;
    flush_io = (struct volume_io){.op = VOLUME_FLUSH, .done = flush_done};
    volume_submit(volume, &flush_io);
    while (!rig.pool->rolling_back)
        ck_assert(sim_loop_step(rig.loop));
    crash_disk_fail_nth(rig.data, 0, 0, 0);
    return volume;
}

START_TEST(who_opens_a_volume_meanwhile_waits_for_its_end)
{
    struct volume *a = roll_back_begins(), *b;
    uint8_t back[4096];

    b = rig_open_volume("b");
    ck_assert(!rig.pool->rolling_back);
    ck_assert_int_eq(rig_io(b, VOLUME_READ, 0, sizeof(back), back, 0), 0);
    ck_assert_int_eq(back[0], 0x11);
    ck_assert_int_eq(rig_io(b, VOLUME_WRITE, 0, sizeof(back), back, 0),
                     -THIN_E_READ_ONLY);
    volume_close(b);
    while (!flush_told)
        ck_assert(sim_loop_step(rig.loop));
    volume_close(a);
}
END_TEST

/* The opening is on its way when the roll-back begins: at each of its steps. */
START_TEST(who_was_opening_one_before_it_begins_anew)
{
    struct volume *a = rig_open_volume("a");
    unsigned i = 0;

    ck_assert_int_eq(rig_io(a, VOLUME_WRITE, 0, RIG_BLOCK, bytes, 0), 0);
    crash_disk_fail_nth(rig.data, 1u << DEVICE_FLUSH, 1, -EIO);
    flush_told = false;
    flush_io = (struct volume_io){.op = VOLUME_FLUSH, .done = flush_done};
    volume_submit(a, &flush_io);
    while (!rig.pool->rolling_back && i++ < (unsigned)_i)
        ck_assert(sim_loop_step(rig.loop));
    rig_begin();
    pool_volume_open(rig.pool, "b", false, rig_volume_opened, NULL);
    ck_assert(!rig.told);
    ck_assert_msg(rig_wait() == 0, "%s: %s", thin_error_name(rig.result), rig.err.text);
    while (!flush_told)
        ck_assert(sim_loop_step(rig.loop));
    volume_close(rig.volume);
    volume_close(a);
}
END_TEST

static void
closed(void *arg, int result, const struct thin_error *err)
{
    (void)arg;
    (void)result;
    (void)err;
}

START_TEST(who_waits_learns_that_the_pool_is_closed)
{
    struct volume *a = roll_back_begins();

    rig_begin();
    pool_volume_open(rig.pool, "b", false, rig_volume_opened, NULL);
    ck_assert(!rig.told);
    pool_close(rig.pool, true, (struct pool_done){closed, NULL});
    ck_assert_int_eq(rig_wait(), -THIN_E_SHUTDOWN);
    while (!flush_told)
        ck_assert(sim_loop_step(rig.loop));
    volume_close(a);
    sim_loop_run_until_idle(rig.loop, 0);
    rig.pool = NULL;
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("rollback");
    TCase *tcase = tcase_create("rollback");
    SRunner *runner;
    int failed;

    thin_log_set_level((enum thin_log_level) - 1);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, who_opens_a_volume_meanwhile_waits_for_its_end);
    tcase_add_loop_test(tcase, who_was_opening_one_before_it_begins_anew, 0, 12);
    tcase_add_test(tcase, who_waits_learns_that_the_pool_is_closed);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
