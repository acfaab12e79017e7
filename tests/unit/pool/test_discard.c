/* Discards of large ranges: in bounded steps, with others served in between. */
#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/random.h"
#include "tests/lib/check_codes.h"
#include "tests/lib/device_fault.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/recount.h"
#include "tests/lib/sim_loop.h"

#define BLOCK     65536u
#define NR_BLOCKS 6000u
#define NR_MAPPED 5000u
#define META_SIZE (64u << 20)
#define TERABYTE  (1ull << 40)

static struct pool_rig rig;
static struct thin_random rng;
static struct device *data, *meta;
static struct volume *vol, *small;
static unsigned char buf[BLOCK], back[BLOCK];

static void
set_up(void)
{
    struct pool_params params;
    struct device *mem;

    random_seed(&rng, 31);
    rig.loop = sim_loop_create(3);
    ck_assert_int_eq(device_mem_open(rig.loop, (uint64_t)NR_BLOCKS * BLOCK, &mem), 0);
    data = device_fault_open(mem);
    ck_assert_int_eq(device_mem_open(rig.loop, META_SIZE, &meta), 0);
    rig_params(&rig, &params, data, meta);
    params.format = true;
    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_create(&rig, "vol", TERABYTE));
    ck_ok(rig_create(&rig, "small", 16 * BLOCK));
    ck_ok(rig_volume(&rig, "vol", &vol));
    ck_ok(rig_volume(&rig, "small", &small));
    memset(buf, 7, BLOCK);
    ck_ok(rig_write(&rig, small, 0, buf, 4096));
    /* Runs of blocks all over the terabyte. */
    for (unsigned i = 0; i < NR_MAPPED / 50; i++) {
        uint64_t at = random_below(&rng, TERABYTE / BLOCK - 50);

        for (unsigned k = 0; k < 50; k++)
            ck_ok(rig_write(&rig, vol, (at + k) * BLOCK, buf, 512));
    }
    ck_ok(rig_commit(&rig));
}

static void
tear_down(void)
{
    struct recount re;

    ck_ok(rig_commit(&rig));
    sim_loop_run_until_idle(rig.loop, 0);
    ck_assert_msg(recount_image(meta, NULL, &re) == 0, "%s", re.why);
    volume_close(vol);
    volume_close(small);
    ck_ok(rig_close(&rig, false));
    sim_loop_run_until_idle(rig.loop, 0);
    sim_loop_destroy(rig.loop);
}

static uint64_t
data_used(void)
{
    struct pool_info info;

    pool_get_info(rig.pool, &info);
    return info.data_used / BLOCK;
}

static void
discard_all(enum volume_op op)
{
    uint64_t before = data_used();
    struct rig_io all = {.done = false};
    unsigned nr_between = 0;

    ck_assert_uint_ge(before, NR_MAPPED / 2);
    rig_io_start(&rig, vol, &all, op, 0, 0, NULL, TERABYTE);
    /* A neighbour is served again and again before it has ended. */
    while (!all.done) {
        ck_ok(rig_read(&rig, small, 0, back, 4096));
        ck_assert_int_eq(memcmp(buf, back, 4096), 0);
        nr_between += !all.done;
        ck_assert(all.done || sim_loop_step(rig.loop));
    }
    ck_ok(rig_io_wait(&all));
    ck_assert_uint_ge(nr_between, 20);
    ck_ok(rig_commit(&rig));
    sim_loop_run_until_idle(rig.loop, 0);
    ck_assert_uint_lt(data_used(), 10);
}

START_TEST(a_terabyte_is_discarded_in_steps)
{
    discard_all(VOLUME_DISCARD);
}
END_TEST

START_TEST(a_terabyte_is_zeroed_in_steps)
{
    discard_all(VOLUME_WRITE_ZEROES);
    memset(back, 1, sizeof(back));
    ck_ok(rig_read(&rig, vol, TERABYTE - BLOCK, back, BLOCK));
    for (unsigned i = 0; i < BLOCK; i++)
        ck_assert_uint_eq(back[i], 0);
}
END_TEST

START_TEST(a_discard_past_or_across_the_end_is_refused)
{
    uint64_t used = data_used();

    ck_code(rig_io(&rig, vol, VOLUME_DISCARD, 0, 0, NULL, TERABYTE + BLOCK), RANGE);
    ck_code(rig_io(&rig, vol, VOLUME_DISCARD, 0, TERABYTE - BLOCK, NULL, 2 * BLOCK),
            RANGE);
    ck_code(rig_io(&rig, vol, VOLUME_DISCARD, 0, TERABYTE, NULL, 512), RANGE);
    ck_code(rig_io(&rig, vol, VOLUME_DISCARD, 0, UINT64_MAX - 511, NULL, 1024), RANGE);
    ck_code(rig_io(&rig, vol, VOLUME_WRITE_ZEROES, 0, 0, NULL, TERABYTE + 512), RANGE);
    ck_assert_uint_eq(data_used(), used);
}
END_TEST

/* All that was freed is passed down once, whatever it lay in, also more runs than can be
   remembered at a time. */
START_TEST(every_freed_block_is_passed_down)
{
    struct pool_info info;
    uint64_t nr = device_fault_nr_op(data, DEVICE_DISCARD), used = data_used();

    for (unsigned i = 0; i < 12; i++)
        ck_ok(rig_write(&rig, small, i * BLOCK, buf, BLOCK));
    for (unsigned i = 0; i < 12; i += 2) /* no two neighbours */
        ck_ok(rig_io(&rig, small, VOLUME_DISCARD, 0, i * BLOCK, NULL, BLOCK));
    ck_ok(rig_commit(&rig));
    sim_loop_run_until_idle(rig.loop, 0);
    ck_assert_uint_eq(device_fault_nr_op(data, DEVICE_DISCARD) - nr, 6);
    /* Neighbours are joined. */
    nr = device_fault_nr_op(data, DEVICE_DISCARD);
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 0, NULL, TERABYTE));
    ck_ok(rig_commit(&rig));
    sim_loop_run_until_idle(rig.loop, 0);
    ck_assert_uint_gt(device_fault_nr_op(data, DEVICE_DISCARD), nr);
    ck_assert_uint_lt(device_fault_nr_op(data, DEVICE_DISCARD) - nr, used / 4);
    /* Off means off. */
    pool_get_info(rig.pool, &info);
    info.config.discards = POOL_DISCARD_UNMAP;
    pool_set_config(rig.pool, &info.config);
    nr = device_fault_nr_op(data, DEVICE_DISCARD);
    ck_ok(rig_io(&rig, small, VOLUME_DISCARD, 0, BLOCK, NULL, BLOCK));
    ck_ok(rig_commit(&rig));
    sim_loop_run_until_idle(rig.loop, 0);
    ck_assert_uint_eq(device_fault_nr_op(data, DEVICE_DISCARD), nr);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("discard");
    TCase *tcase = tcase_create("discard");
    SRunner *runner;
    int failures;

    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, a_terabyte_is_discarded_in_steps);
    tcase_add_test(tcase, a_terabyte_is_zeroed_in_steps);
    tcase_add_test(tcase, a_discard_past_or_across_the_end_is_refused);
    tcase_add_test(tcase, every_freed_block_is_passed_down);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
