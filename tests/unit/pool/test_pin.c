/* Pinned views: what they keep, what they cost, and when they are taken back; counters. */
#include <check.h>
#include <errno.h>
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

#define BLOCK       65536u
#define NR_BLOCKS   1024u
#define META_SIZE   (16u << 20)
#define VOL_SIZE    (8u << 20)
#define PINS        5u
#define FULL_ENOUGH 70u /* free blocks of 256; 25 of them are the reserve */

static struct pool_rig rig;
static struct thin_random rng;
static struct device *meta_mem, *meta; /* the store, and the wrapper around it */
static struct volume *vol;
static unsigned char buf[4 * BLOCK];

struct view {
    struct pool_pin *pin;
    const void *superblock;
    bool called;
    int result, lost;
    uint64_t sum; /* of all that it maps, when it was pinned */
};

static void
set_up_sized(uint64_t meta_size)
{
    const char *seed = getenv("SEED");
    struct pool_params params;
    struct device *data;

    rig.loop = sim_loop_create(3);
    random_seed(&rng, seed ? strtoull(seed, NULL, 0) : 17);
    printf("SEED=%s\n", seed ? seed : "17");
    ck_assert_int_eq(device_mem_open(rig.loop, (uint64_t)NR_BLOCKS * BLOCK, &data), 0);
    ck_assert_int_eq(device_mem_open(rig.loop, meta_size, &meta_mem), 0);
    meta = device_fault_open(meta_mem);
    rig_params(&rig, &params, data, meta);
    params.format = true;
    params.leaf_max = params.internal_max = 6;
    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_create(&rig, "vol", VOL_SIZE));
    ck_ok(rig_volume(&rig, "vol", &vol));
}

static void
set_up(void)
{
    set_up_sized(META_SIZE);
}

static void
tear_down(void)
{
    if (rig.pool) {
        int r = rig_close(&rig, true);

        (void)r;
    }
    volume_close(vol);
    sim_loop_destroy(rig.loop);
}

/* ---- views ---------------------------------------------------------------------------- */

static void
pinned(void *arg, const void *superblock, int result, const struct thin_error *err)
{
    struct view *v = arg;

    (void)err;
    ck_assert(!v->called);
    v->called = true;
    v->result = result;
    v->superblock = superblock;
    if (result < 0)
        v->pin = NULL;
}

static void
lost(void *arg, int why)
{
    struct view *v = arg;

    ck_assert_int_eq(v->lost, 0);
    v->lost = why;
}

static int
pin(struct view *v)
{
    int r;

    memset(v, 0, sizeof(*v));
    r = pool_pin(rig.pool, pinned, lost, v, &v->pin, &rig.err);
    ck_assert(!v->called);
    while (r == 0 && !v->called && sim_loop_step(rig.loop))
        ;
    return r < 0 ? r : v->result;
}

static void
unpin(struct view *v)
{
    pool_unpin(v->pin);
    v->pin = NULL;
}

/* Block 0 is the view's, all others as they stand on the device. */
static const void *
view_page(void *arg, uint64_t index)
{
    const struct view *v = arg;

    return index == 0 ? v->superblock : device_mem_page(meta_mem, index);
}

static void
add_mapping(void *arg, bool held, uint32_t id, uint64_t vblock, uint64_t value)
{
    uint64_t *sum = arg;

    (void)held;
    *sum = (*sum ^ id ^ vblock << 24 ^ value) * 0x9e3779b97f4a7c15ull;
}

/* Everything that the view reaches is whole and counted right. */
static uint64_t
view_sum(struct view *v)
{
    uint64_t sum = 1;
    const struct recount_visitor visitor = {.mapping = add_mapping, .arg = &sum};
    const struct recount_source source = {
        .page = view_page, .arg = v, .size = meta_mem->size};
    struct recount found;

    ck_assert_msg(recount_pages(&source, &visitor, &found) == 0, "%s", found.why);
    return sum;
}

/* ---- changes -------------------------------------------------------------------------- */

static int
change(unsigned step)
{
    uint64_t at = random_u64(&rng) % (VOL_SIZE / BLOCK) * BLOCK;
    char name[32];

    switch (random_u64(&rng) % 12) {
    case 0:
        snprintf(name, sizeof(name), "s%u", step % 4);
        return rig_snapshot(&rig, "vol", name) == -THIN_E_EXISTS ? rig_delete(&rig, name)
                                                                 : 0;
    case 1:
    case 2:
        return rig_io(&rig, vol, VOLUME_DISCARD, 0, at, NULL,
                      VOL_SIZE - at < 8 * BLOCK ? VOL_SIZE - at : 8 * BLOCK);
    case 3:
    case 4:
        return rig_commit(&rig);
    default:
        return rig_write(&rig, vol, at, buf,
                         VOL_SIZE - at < sizeof(buf) ? BLOCK : sizeof(buf));
    }
}

START_TEST(a_view_stays_as_it_was_while_everything_changes)
{
    struct view views[PINS] = {0};

    for (unsigned i = 0; i < 600; i++) {
        struct view *v = &views[random_u64(&rng) % PINS];

        ck_ok(change(i));
        if (random_u64(&rng) % 8 == 0) {
            if (v->pin) {
                ck_assert_int_eq(v->lost, 0);
                ck_assert(view_sum(v) == v->sum);
                unpin(v);
            } else {
                ck_ok(pin(v));
                v->sum = view_sum(v);
            }
        }
        for (unsigned k = 0; i % 16 == 0 && k < PINS; k++)
            if (views[k].pin)
                ck_assert(view_sum(&views[k]) == views[k].sum);
    }
    for (unsigned k = 0; k < PINS; k++)
        unpin(&views[k]);
}
END_TEST

START_TEST(a_view_taken_while_a_commit_runs_is_whole)
{
    for (unsigned i = 0; i < 60; i++) {
        struct rig_io write;
        struct view v = {0};

        /* Stopped anywhere between the change and the end of its commit. */
        rig_io_start(&rig, vol, &write, VOLUME_WRITE, VOLUME_FUA,
                     (uint64_t)(i % 100) * BLOCK, buf, BLOCK);
        for (unsigned k = 0; k < i && sim_loop_step(rig.loop); k++)
            ;
        ck_ok(pin(&v));
        v.sum = view_sum(&v);
        ck_ok(rig_io_wait(&write));
        ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 0, NULL, VOL_SIZE));
        ck_ok(rig_commit(&rig));
        ck_assert(view_sum(&v) == v.sum);
        unpin(&v);
    }
}
END_TEST

static uint64_t
nr_free(void)
{
    struct pool_info info;

    pool_get_info(rig.pool, &info);
    return info.metadata_blocks_free;
}

static uint64_t
metadata_size(void)
{
    struct pool_info info;

    pool_get_info(rig.pool, &info);
    return info.metadata_size;
}

START_TEST(what_a_view_held_back_is_free_again_behind_it)
{
    struct view v;
    uint64_t before, during, after;

    for (unsigned i = 0; i < 40; i++)
        ck_ok(rig_write(&rig, vol, (uint64_t)i * BLOCK, buf, BLOCK));
    ck_ok(rig_commit(&rig));
    ck_ok(rig_commit(&rig));
    before = nr_free();
    ck_ok(pin(&v));
    for (unsigned i = 0; i < 10; i++) {
        ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 0, NULL, 40 * BLOCK));
        ck_ok(rig_commit(&rig));
        for (unsigned k = 0; k < 40; k++)
            ck_ok(rig_write(&rig, vol, (uint64_t)k * BLOCK, buf, BLOCK));
        ck_ok(rig_commit(&rig));
    }
    during = nr_free();
    unpin(&v);
    sim_loop_run_until_idle(rig.loop, 0); /* it is let go in steps */
    after = nr_free();
    ck_assert_uint_lt(during, before);
    ck_assert_uint_gt(after, during);
    ck_assert_uint_ge(after + 8, before); /* but for the last commit's own */
}
END_TEST

START_TEST(want_of_metadata_space_takes_the_oldest_view_first)
{
    struct view first, second, third;
    uint64_t size;
    unsigned i;

    tear_down();
    set_up_sized(1u << 20);
    for (i = 0; i < 2000; i++)
        ck_ok(change(i));
    size = metadata_size();
    ck_ok(pin(&first));
    ck_ok(pin(&second));
    for (i = 0; i < 20000 && !first.lost; i++)
        ck_ok(change(i)); /* who writes notices nothing */
    ck_code(first.lost, NO_METADATA_SPACE);
    for (; i < 40000 && !second.lost; i++)
        ck_ok(change(i));
    ck_code(second.lost, NO_METADATA_SPACE);
    ck_assert_uint_eq(metadata_size(), size); /* readers do not make it grow */
    ck_ok(pin(&third));
    third.sum = view_sum(&third);
    ck_assert_int_eq(third.lost, 0);
    unpin(&first);
    unpin(&third);
    unpin(&second);
}
END_TEST

START_TEST(a_change_that_finds_no_block_takes_views_back_before_it_fails)
{
    struct view views[3];
    struct pool_info info;
    unsigned nr_lost = 0;
    char name[32];

    tear_down();
    set_up_sized(1u << 20);
    pool_get_info(rig.pool, &info);
    info.config.extend_metadata = false;
    info.config.commit_interval_ms = 1000000;
    pool_set_config(rig.pool, &info.config);
    /* Little is free, and the views hold back what commits would free. */
    for (unsigned i = 0; i < 128; i++)
        ck_ok(rig_write(&rig, vol, (uint64_t)i * BLOCK, buf, BLOCK));
    for (unsigned i = 0; nr_free() > FULL_ENOUGH; i++) {
        if (i % 128 == 0) {
            snprintf(name, sizeof(name), "f%u", i);
            ck_ok(rig_snapshot(&rig, "vol", name));
        }
        ck_ok(rig_write(&rig, vol, (uint64_t)i % 128 * BLOCK, buf, BLOCK));
    }
    ck_ok(rig_commit(&rig));
    for (unsigned i = 0; i < 3; i++)
        ck_ok(pin(&views[i]));
    for (unsigned i = 0; i < 400; i++)
        ck_ok(rig_write(&rig, vol, random_u64(&rng) % 128 * BLOCK, buf, BLOCK));
    for (unsigned k = 0; k < 3; k++)
        nr_lost += views[k].lost == -THIN_E_NO_METADATA_SPACE;
    ck_assert_uint_eq(nr_lost, 3);
    for (unsigned i = 0; i < 3; i++)
        unpin(&views[i]);
}
END_TEST

START_TEST(a_close_takes_all_views_back)
{
    struct view held, coming = {0};

    ck_ok(pin(&held));
    ck_ok(pool_pin(rig.pool, pinned, lost, &coming, &coming.pin, &rig.err));
    ck_ok(rig_close(&rig, true));
    ck_code(held.lost, SHUTDOWN);
    ck_assert(coming.called);
    ck_code(coming.result, SHUTDOWN);
    ck_assert_int_eq(coming.lost, 0);
    unpin(&held); /* the pool is gone */
}
END_TEST

START_TEST(a_roll_back_takes_all_views_back)
{
    struct view v, later;

    ck_ok(rig_write(&rig, vol, 0, buf, BLOCK));
    ck_ok(rig_commit(&rig));
    ck_ok(pin(&v));
    ck_ok(rig_write(&rig, vol, BLOCK, buf, BLOCK));
    device_fault_order(meta, FAULT_FAIL, FAULT_OP(DEVICE_FLUSH), 1, 1, -EIO, 0);
    ck_code(rig_flush(&rig, vol), ROLLED_BACK);
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + NS_PER_SEC);
    ck_code(v.lost, ROLLED_BACK);
    /* Read-only now, but what is durable can be looked at. */
    ck_ok(pin(&later));
    later.sum = view_sum(&later);
    unpin(&later);
    unpin(&v);
}
END_TEST

START_TEST(a_superblock_that_cannot_be_read_is_told_and_holds_nothing)
{
    struct view v;
    uint64_t before = nr_free();

    device_fault_order(meta, FAULT_FAIL, FAULT_OP(DEVICE_READ), 1, 1, -EIO, 0);
    ck_assert_int_eq(pin(&v), -EIO);
    device_fault_order(meta, FAULT_CORRUPT, FAULT_OP(DEVICE_READ), 1, 0, 0, 100);
    ck_code(pin(&v), CHECKSUM);
    device_fault_clear(meta);
    /* Met while it is being written: it is read again. */
    device_fault_order(meta, FAULT_CORRUPT, FAULT_OP(DEVICE_READ), 1, 2, 0, 100);
    ck_ok(pin(&v));
    v.sum = view_sum(&v);
    unpin(&v);
    ck_assert_uint_eq(nr_free(), before);
}
END_TEST

START_TEST(views_are_bounded_in_number)
{
    struct view views[POOL_PINS_MAX], more;

    for (unsigned i = 0; i < POOL_PINS_MAX; i++)
        ck_ok(pin(&views[i]));
    ck_code(pin(&more), LIMIT);
    for (unsigned i = 0; i < POOL_PINS_MAX; i++)
        unpin(&views[i]);
    ck_ok(pin(&more));
    unpin(&more);
    pool_unpin(NULL);
}
END_TEST

START_TEST(counters_outlive_handles_and_end_with_the_volume)
{
    struct volume_stats s;

    ck_ok(rig_write(&rig, vol, 0, buf, 2 * BLOCK));
    ck_ok(rig_write(&rig, vol, 512, buf, 512));
    ck_ok(rig_read(&rig, vol, 0, buf, 4096));
    ck_ok(rig_flush(&rig, vol));
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 0, NULL, BLOCK));
    ck_ok(rig_io(&rig, vol, VOLUME_WRITE_ZEROES, 0, BLOCK, NULL, 4096));
    volume_close(vol);
    ck_assert(pool_volume_stats(rig.pool, "vol", &s));
    ck_assert_uint_eq(s.writes, 2);
    ck_assert_uint_eq(s.written_bytes, 2 * BLOCK + 512);
    ck_assert_uint_eq(s.reads, 1);
    ck_assert_uint_eq(s.read_bytes, 4096);
    ck_assert_uint_eq(s.flushes, 1);
    ck_assert_uint_eq(s.discards, 1);
    ck_assert_uint_eq(s.zeroes, 1);
    ck_assert_uint_eq(s.errors, 0);
    ck_ok(rig_volume(&rig, "vol", &vol));
    ck_ok(rig_write(&rig, vol, 0, buf, 512));
    ck_assert(pool_volume_stats(rig.pool, "vol", &s));
    ck_assert_uint_eq(s.writes, 3);
    volume_close(vol);
    ck_ok(rig_delete(&rig, "vol"));
    ck_assert(!pool_volume_stats(rig.pool, "vol", &s));
    ck_ok(rig_create(&rig, "vol", VOL_SIZE));
    ck_assert(pool_volume_stats(rig.pool, "vol", &s));
    ck_assert_uint_eq(s.writes, 0);
    ck_ok(rig_volume(&rig, "vol", &vol));
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("pin");
    TCase *tcase = tcase_create("pin");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_view_stays_as_it_was_while_everything_changes);
    tcase_add_test(tcase, a_view_taken_while_a_commit_runs_is_whole);
    tcase_add_test(tcase, what_a_view_held_back_is_free_again_behind_it);
    tcase_add_test(tcase, want_of_metadata_space_takes_the_oldest_view_first);
    tcase_add_test(tcase, a_change_that_finds_no_block_takes_views_back_before_it_fails);
    tcase_add_test(tcase, a_close_takes_all_views_back);
    tcase_add_test(tcase, a_roll_back_takes_all_views_back);
    tcase_add_test(tcase, a_superblock_that_cannot_be_read_is_told_and_holds_nothing);
    tcase_add_test(tcase, views_are_bounded_in_number);
    tcase_add_test(tcase, counters_outlive_handles_and_end_with_the_volume);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
