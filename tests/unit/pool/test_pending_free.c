/*
 * A block that was freed is handed out again only when (a) the transaction that freed it
 * is durable, (b) no request that found it through its old mapping is in flight, (c) its
 * pass-down has ended, (d) no pinned view reaches it. One test for each rule, in a pool
 * that has no other free block: a first write has to wait. `make check-seeded-bugs`
 * takes each rule away and wants these tests to fail.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/check_codes.h"
#include "tests/lib/device_fault.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/sim_loop.h"

#define BLOCK     65536u
#define NR_BLOCKS 40u
#define META_SIZE (4u << 20)
#define VOL_SIZE  (80ull * BLOCK)
#define BEYOND    (70ull * BLOCK) /* nothing is mapped there */

static struct pool_rig rig;
static struct device *data, *meta; /* wrapped, for orders */
static struct volume *vol;
static unsigned char buf[BLOCK], back[BLOCK];
static uint64_t
    nr_mapped; /* blocks 0 to nr_mapped - 1 of the volume are, then it is full */

static void
set_up(void)
{
    struct pool_params params;
    struct device *mem;

    rig.loop = sim_loop_create(3);
    ck_assert_int_eq(device_mem_open(rig.loop, (uint64_t)NR_BLOCKS * BLOCK, &mem), 0);
    data = device_fault_open(mem);
    ck_assert_int_eq(device_mem_open(rig.loop, META_SIZE, &mem), 0);
    meta = device_fault_open(mem);
    rig_params(&rig, &params, data, meta);
    params.format = true;
    params.config.on_full = POOL_ERROR;
    params.config.commit_interval_ms = 3600000; /* only when it is asked for */
    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_create(&rig, "vol", VOL_SIZE));
    ck_ok(rig_volume(&rig, "vol", &vol));
    for (nr_mapped = 0;; nr_mapped++) {
        memset(buf, (int)nr_mapped + 1, BLOCK);
        if (rig_write(&rig, vol, nr_mapped * BLOCK, buf, BLOCK) < 0)
            break;
    }
    ck_assert_uint_ge(nr_mapped, 10);
    ck_ok(rig_commit(&rig));
    memset(buf, 0xbb, BLOCK);
}

static void
tear_down(void)
{
    ck_assert_int_eq(rig_close(&rig, true), 0);
    volume_close(vol);
    sim_loop_run_until_idle(rig.loop, 0);
    sim_loop_destroy(rig.loop);
}

static void
run_on(void)
{
    for (unsigned i = 0; i < 2000 && sim_loop_step(rig.loop); i++)
        ;
}

/* Waits for as long as `held` of the device are; then it goes on. */
static void
waits_for_release(struct rig_io *write, struct device *dev)
{
    run_on();
    ck_assert_msg(!write->done, "a freed block was used too early: %s",
                  thin_error_name(write->result));
    device_fault_clear(dev);
    ck_assert_uint_gt(device_fault_release(dev), 0);
    ck_ok(rig_io_wait(write));
}

static bool committed;

static void
commit_done(void *arg, int result, const struct thin_error *err)
{
    (void)arg;
    (void)err;
    ck_assert_int_eq(result, 0);
    committed = true;
}

START_TEST(a_write_waits_until_the_free_is_durable)
{
    struct rig_io write = {.done = false};

    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 3 * BLOCK, NULL, BLOCK));
    /* The cut is made, the superblock does not get there. */
    device_fault_order(meta, FAULT_HOLD, FAULT_OP(DEVICE_FLUSH), 1, 0, 0, 0);
    committed = false;
    pool_commit(rig.pool, (struct pool_done){commit_done, NULL});
    run_on();
    ck_assert_uint_eq(device_fault_nr_held(meta), 1);
    rig_io_start(&rig, vol, &write, VOLUME_WRITE, 0, BEYOND, buf, BLOCK);
    waits_for_release(&write, meta);
    ck_assert(committed);
}
END_TEST

START_TEST(a_write_waits_until_old_readers_have_ended)
{
    struct rig_io read = {.done = false}, write = {.done = false};

    device_fault_order(data, FAULT_HOLD, FAULT_OP(DEVICE_READ), 1, 0, 0, 0);
    rig_io_start(&rig, vol, &read, VOLUME_READ, 0, 3 * BLOCK, back, BLOCK);
    run_on();
    ck_assert_uint_eq(device_fault_nr_held(data), 1);
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 3 * BLOCK, NULL, BLOCK));
    ck_ok(rig_commit(&rig));
    rig_io_start(&rig, vol, &write, VOLUME_WRITE, 0, BEYOND, buf, BLOCK);
    waits_for_release(&write, data);
    ck_ok(rig_io_wait(&read));
    for (unsigned i = 0; i < BLOCK; i++)
        ck_assert_uint_eq(back[i], 4);
}
END_TEST

START_TEST(a_write_waits_until_the_block_is_passed_down)
{
    struct rig_io write = {.done = false};

    device_fault_order(data, FAULT_HOLD, FAULT_OP(DEVICE_DISCARD), 1, 0, 0, 0);
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 3 * BLOCK, NULL, BLOCK));
    ck_ok(rig_commit(&rig));
    run_on();
    ck_assert_uint_eq(device_fault_nr_held(data), 1);
    rig_io_start(&rig, vol, &write, VOLUME_WRITE, 0, BEYOND, buf, BLOCK);
    waits_for_release(&write, data);
    /* What is passed down late would have taken it away. */
    ck_ok(rig_read(&rig, vol, BEYOND, back, BLOCK));
    ck_assert_int_eq(memcmp(back, buf, BLOCK), 0);
}
END_TEST

/* ---- views --------------------------------------------------------------------------- */

static bool pinned;
static int lost;

static void
pin_done(void *arg, const void *superblock, int result, const struct thin_error *err)
{
    (void)arg;
    (void)superblock;
    (void)err;
    ck_assert_int_eq(result, 0);
    pinned = true;
}

static void
pin_lost(void *arg, int why)
{
    (void)arg;
    lost = why;
}

static struct pool_pin *
pin(void)
{
    struct pool_pin *ret = NULL;

    pinned = false;
    lost = 0;
    ck_ok(pool_pin(rig.pool, pin_done, pin_lost, NULL, &ret, &rig.err));
    run_on();
    ck_assert(pinned);
    return ret;
}

START_TEST(a_view_keeps_the_data_behind_it_as_long_as_there_is_other_room)
{
    struct pool_info before, after;
    struct pool_pin *view = pin();

    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 3 * BLOCK, NULL, BLOCK));
    ck_ok(rig_commit(&rig));
    run_on();
    pool_get_info(rig.pool, &before);
    ck_assert_uint_eq(before.data_blocks_free, 1); /* free, and not to be had */
    ck_assert_int_eq(lost, 0);
    /* A write comes before a reader: the view is taken back, and only then. */
    ck_ok(rig_write(&rig, vol, BEYOND, buf, BLOCK));
    ck_assert_int_ne(lost, 0);
    pool_unpin(view);
    pool_get_info(rig.pool, &after);
    ck_assert_uint_eq(after.data_blocks_free, 0);
}
END_TEST

START_TEST(what_a_view_held_back_is_had_behind_it)
{
    struct pool_pin *view = pin();

    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 3 * BLOCK, NULL, BLOCK));
    ck_ok(rig_commit(&rig));
    pool_unpin(view);
    ck_ok(rig_write(&rig, vol, BEYOND, buf, BLOCK));
    ck_assert_int_eq(lost, 0);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("pending free");
    TCase *tcase = tcase_create("rules");
    SRunner *runner;
    int failures;

    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_write_waits_until_the_free_is_durable);
    tcase_add_test(tcase, a_write_waits_until_old_readers_have_ended);
    tcase_add_test(tcase, a_write_waits_until_the_block_is_passed_down);
    tcase_add_test(tcase, a_view_keeps_the_data_behind_it_as_long_as_there_is_other_room);
    tcase_add_test(tcase, what_a_view_held_back_is_had_behind_it);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
