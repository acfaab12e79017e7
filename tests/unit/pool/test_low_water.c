/* What is told before space is gone, and what becomes of a growth by itself that fails. */
#include <errno.h>

#include "tests/unit/pool/admin_rig.h"

#define NR_BLOCKS 200u

static uint8_t bytes[4096];
static char told[16][512];
static unsigned nr_told;

static void
on_event(void *arg, struct pool *pool, const char *event, const char *words)
{
    (void)arg;
    (void)pool;
    if (strcmp(event, "low-water") != 0)
        return;
    ck_assert_uint_lt(nr_told, 16);
    snprintf(told[nr_told++], sizeof(told[0]), "%s", words);
}

static void
set_up(void)
{
    struct crash_params *p;

    rig_init(NR_BLOCKS, 1024);
    nr_told = 0;
    rig.params.config.on_full = POOL_ERROR;
    rig.params.event = on_event;
    /* A slow disk, so that rates can be told. */
    p = crash_disk_params(rig.data);
    p->latency_min_ns = 100 * NS_PER_MS;
    p->latency_max_ns = 110 * NS_PER_MS;
}

static void
tear_down(void)
{
    struct recount rc;

    rig_close();
    rig_recount(&rc);
    rig_fini();
}

static struct volume *
open_volume(const char *name)
{
    const struct volume_spec spec = {.name = name, .size = 1000 * RIG_BLOCK};

    rig_ok(pool_volume_create(rig.pool, &spec, RIG_DONE));
    return rig_open_volume(name);
}

/* Writes single blocks [from, to), each with a commit. */
static int
fill(struct volume *volume, unsigned from, unsigned to)
{
    int r = 0;

    for (unsigned i = from; i < to && r == 0; i++) {
        r = rig_io(volume, VOLUME_WRITE, (uint64_t)i * RIG_BLOCK, 4096, bytes, 0);
        rig_ok(pool_commit(rig.pool, RIG_DONE));
    }
    return r;
}

static uint64_t
now_s(void)
{
    return loop_now_ns(rig.loop) / NS_PER_SEC;
}

START_TEST(each_level_is_told_once_with_the_time_that_is_left)
{
    struct volume *volume;
    struct pool_info info;
    uint64_t at, lasted;
    unsigned begin, seconds = 0;
    const char *words;

    rig_open(true);
    volume = open_volume("vol");
    pool_get_info(rig.pool, &info);
    begin = (unsigned)info.data_blocks_free;
    ck_assert_int_eq(fill(volume, 0, begin - 20), 0);
    ck_assert_uint_eq(nr_told, 0);
    ck_assert_int_eq(fill(volume, begin - 20, begin - 18), 0);
    ck_assert_uint_eq(nr_told, 1);
    words = strstr(told[0], "at the present rate for ");
    ck_assert_msg(words, "%s", told[0]);
    ck_assert_int_eq(sscanf(words, "at the present rate for %u seconds", &seconds), 1);
    ck_assert_ptr_nonnull(strstr(told[0], " of 12.5 MiB are free"));
    ck_assert_ptr_nonnull(strstr(told[0], "auto_extend is off"));
    /* It comes true. */
    at = now_s();
    ck_assert_int_eq(fill(volume, begin - 18, begin + 1), -THIN_E_NO_DATA_SPACE);
    lasted = now_s() - at;
    ck_assert_msg(seconds >= lasted / 2 && seconds <= 2 * lasted + 2,
                  "told were %u seconds, it lasted %" PRIu64, seconds, lasted);
    ck_assert_uint_ge(nr_told, 3);
    ck_assert_uint_le(nr_told, 4);

    /* Room again, and then again none: told anew. */
    nr_told = 0;
    ck_assert_int_eq(rig_io(volume, VOLUME_DISCARD, 0, 100 * RIG_BLOCK, NULL, 0), 0);
    rig_settle();
    ck_assert_int_eq(fill(volume, 0, 10), 0);
    ck_assert_uint_eq(nr_told, 0);
    ck_assert_int_eq(fill(volume, 10, 95), 0);
    ck_assert_uint_ge(nr_told, 1);
    volume_close(volume);
}
END_TEST

/* Filled faster than commits come. */
START_TEST(between_two_commits_it_is_told_as_well)
{
    struct volume *volume;
    struct pool_info info;
    uint64_t nr_commits;
    unsigned begin;

    rig.params.config.commit_interval_ms = 3600000;
    rig_open(true);
    volume = open_volume("vol");
    pool_get_info(rig.pool, &info);
    begin = (unsigned)info.data_blocks_free;
    nr_commits = info.commits;
    for (unsigned i = 0; i < begin - 5; i++)
        ck_assert_int_eq(
            rig_io(volume, VOLUME_WRITE, (uint64_t)i * RIG_BLOCK, 4096, bytes, 0), 0);
    pool_get_info(rig.pool, &info);
    ck_assert_uint_eq(info.commits, nr_commits);
    ck_assert_uint_ge(nr_told, 2);
    volume_close(volume);
}
END_TEST

START_TEST(what_grows_by_itself_is_told_at_its_limit)
{
    struct volume *volume;
    struct pool_info info;

    rig.params.config.extend_data = (struct pool_auto_extend){
        .percent = 80, .step_bytes = 20 * RIG_BLOCK, .limit_bytes = 260 * RIG_BLOCK};
    rig_open(true);
    volume = open_volume("vol");
    ck_assert_int_eq(fill(volume, 0, 220), 0);
    ck_assert_uint_eq(nr_told, 0);
    ck_assert_int_eq(fill(volume, 220, 270), -THIN_E_NO_DATA_SPACE);
    ck_assert_uint_ge(nr_told, 1);
    ck_assert_ptr_nonnull(strstr(told[0], "grown to its limit"));
    pool_get_info(rig.pool, &info);
    ck_assert_uint_eq(info.data_size, 260 * RIG_BLOCK);
    volume_close(volume);
}
END_TEST

/* The file system below was full for a while: the pool grows when it is not. */
START_TEST(failed_growth_is_tried_again)
{
    struct volume *volume;
    uint64_t at;
    int r;

    rig.params.config.extend_data = (struct pool_auto_extend){
        .percent = 100, .step_bytes = 20 * RIG_BLOCK, .limit_bytes = 260 * RIG_BLOCK};
    rig.params.config.on_full = POOL_QUEUE;
    rig_open(true);
    volume = open_volume("vol");
    crash_disk_fail_nth(rig.data, 1u << DEVICE_GROW, 1, -ENOSPC);
    at = now_s();
    r = fill(volume, 0, 205); /* waits, and goes on */
    ck_assert_int_eq(r, 0);
    ck_assert(crash_disk_failed(rig.data));
    ck_assert_uint_ge(now_s() - at, 10);
    volume_close(volume);
}
END_TEST

/* A device that cannot grow says what is to be done. */
START_TEST(metadata_that_does_not_grow_is_told)
{
    char name[16];
    int r = 0;

    rig_fini();
    rig_init(NR_BLOCKS, 200);
    rig.params.event = on_event;
    rig.params.config.extend_metadata = false;
    rig_open(true);
    for (unsigned i = 0; i < 250 && nr_told == 0 && r == 0; i++) {
        const struct volume_spec spec = {.name = name, .size = 1000 * RIG_BLOCK};

        snprintf(name, sizeof(name), "v%u", i);
        r = rig_call(pool_volume_create(rig.pool, &spec, RIG_DONE));
        rig_ok(pool_commit(rig.pool, RIG_DONE));
    }
    ck_assert_uint_eq(nr_told, 1);
    ck_assert_ptr_nonnull(strstr(told[0], "--metadata"));
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("low_water");
    TCase *tcase = tcase_create("low_water");
    SRunner *runner;
    int failed;

    thin_log_set_level(THIN_LOG_ERROR);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, each_level_is_told_once_with_the_time_that_is_left);
    tcase_add_test(tcase, between_two_commits_it_is_told_as_well);
    tcase_add_test(tcase, what_grows_by_itself_is_told_at_its_limit);
    tcase_add_test(tcase, failed_growth_is_tried_again);
    tcase_add_test(tcase, metadata_that_does_not_grow_is_told);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
