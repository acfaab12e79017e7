/*
 * Data and metadata grow in any steps, with writes going on. Up to the format's limit the
 * metadata grows in test_metadata, without a disk of 16 GiB.
 */
#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/random.h"
#include "core/ondisk/bitmap.h"
#include "core/ondisk/superblock.h"
#include "tests/lib/check_codes.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/recount.h"
#include "tests/lib/sim_loop.h"

#define BLOCK       65536u
#define DATA_BLOCKS 40u
#define META_BLOCKS 256u
#define VOL_BLOCKS  16384u

static struct pool_rig rig;
static struct thin_random rng;
static struct device *data, *meta;
static struct volume *vol;
static unsigned char buf[BLOCK], back[BLOCK];

static void
open_pool(uint64_t meta_blocks)
{
    const char *seed = getenv("SEED");
    struct pool_params params;

    thin_log_set_level(THIN_LOG_ERROR);
    random_seed(&rng, seed ? strtoull(seed, NULL, 0) : 9);
    printf("SEED=%s\n", seed ? seed : "9");
    rig.loop = sim_loop_create(3);
    ck_assert_int_eq(device_mem_open(rig.loop, (uint64_t)DATA_BLOCKS * BLOCK, &data), 0);
    ck_assert_int_eq(device_mem_open(rig.loop, meta_blocks * 4096, &meta), 0);
    rig_params(&rig, &params, data, meta);
    params.format = true;
    params.config.extend_metadata = false;
    params.config.on_full = POOL_ERROR;
    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_create(&rig, "vol", (uint64_t)VOL_BLOCKS * BLOCK));
    ck_ok(rig_volume(&rig, "vol", &vol));
}

static void
close_pool(void)
{
    struct recount re;

    ck_ok(rig_commit(&rig));
    sim_loop_run_until_idle(rig.loop, 0);
    ck_assert_msg(recount_image(meta, NULL, &re) == 0, "%s", re.why);
    volume_close(vol);
    ck_ok(rig_close(&rig, false));
    sim_loop_run_until_idle(rig.loop, 0);
    sim_loop_destroy(rig.loop);
}

static bool told;
static int outcome;

static void
done(void *arg, int result, const struct thin_error *err)
{
    (void)arg;
    told = true;
    outcome = result;
    if (err)
        rig.err = *err;
}

static void
grow_start(uint64_t data_bytes, uint64_t metadata_bytes)
{
    told = false;
    pool_grow(rig.pool, data_bytes, metadata_bytes, (struct pool_done){done, NULL});
}

static int
grow_wait(void)
{
    while (!told)
        ck_assert(sim_loop_step(rig.loop));
    return outcome;
}

static int
grow(uint64_t data_bytes, uint64_t metadata_bytes)
{
    grow_start(data_bytes, metadata_bytes);
    return grow_wait();
}

static void
mark(uint64_t vblock)
{
    memset(buf, (int)(vblock % 251) + 1, BLOCK);
    memcpy(buf, &vblock, sizeof(vblock));
}

/* Steps of one block, a few, or over the end of a bitmap. */
static uint64_t
some_step(void)
{
    switch (random_below(&rng, 4)) {
    case 0:
        return 1;
    case 1:
        return 1 + random_below(&rng, 20);
    case 2:
        return 1 + random_below(&rng, 1000);
    default:
        return BITMAP_ENTRIES - 2 + random_below(&rng, 5);
    }
}

static void
grow_at_random(bool with_writes)
{
    uint64_t nr_data = DATA_BLOCKS, nr_meta = META_BLOCKS, written = 0;
    struct pool_info info;

    open_pool(META_BLOCKS);
    for (unsigned i = 0; i < 60; i++) {
        struct rig_io io = {.done = false};
        bool of_data = random_below(&rng, 2);

        *(of_data ? &nr_data : &nr_meta) += some_step();
        grow_start(of_data ? nr_data * BLOCK : 0, of_data ? 0 : nr_meta * 4096);
        for (unsigned k = 0; with_writes && k < 4 && written + 8 < nr_data / 2; k++) {
            mark(written);
            ck_ok(rig_write(&rig, vol, written++ * BLOCK, buf, BLOCK));
        }
        if (with_writes)
            rig_io_start(&rig, vol, &io, VOLUME_FLUSH, 0, 0, NULL, 0);
        ck_ok(grow_wait());
        if (with_writes)
            ck_ok(rig_io_wait(&io));
        pool_get_info(rig.pool, &info);
        ck_assert_uint_eq(info.data_size, nr_data * BLOCK);
        ck_assert_uint_eq(info.metadata_size, nr_meta * 4096);
    }
    ck_code(grow((nr_data - 1) * BLOCK, 0), INVALID);
    for (uint64_t i = 0; i < written; i++) {
        mark(i);
        ck_ok(rig_read(&rig, vol, i * BLOCK, back, BLOCK));
        ck_assert_int_eq(memcmp(buf, back, BLOCK), 0);
    }
    ck_assert(!with_writes || written > 100);
    close_pool();
}

START_TEST(both_devices_grow_in_any_steps)
{
    grow_at_random(false);
}
END_TEST

START_TEST(both_devices_grow_while_writes_go_on)
{
    grow_at_random(true);
}
END_TEST

START_TEST(metadata_beyond_the_format_s_limit_is_refused)
{
    struct pool_info info;

    open_pool(META_BLOCKS);
    ck_assert_int_lt(grow(0, (METADATA_BLOCKS_MAX + 1ull) * 4096), 0);
    printf("refused: %s\n", rig.err.text);
    ck_assert_ptr_nonnull(strstr(rig.err.text, "at most"));
    /* Nothing has changed by that. */
    ck_ok(rig_write(&rig, vol, 0, buf, 4096));
    ck_ok(rig_flush(&rig, vol));
    pool_get_info(rig.pool, &info);
    ck_assert_uint_eq(info.metadata_size, META_BLOCKS * 4096ull);
    ck_assert_int_eq(info.mode, POOL_WRITE);
    close_pool();
}
END_TEST

START_TEST(data_beyond_the_format_s_limit_is_refused)
{
    open_pool(META_BLOCKS);
    ck_assert_int_lt(grow(UINT64_MAX - BLOCK + 1, 0), 0);
    printf("refused: %s\n", rig.err.text);
    ck_ok(rig_write(&rig, vol, 0, buf, 4096));
    ck_ok(rig_flush(&rig, vol));
    close_pool();
}
END_TEST

START_TEST(a_pool_with_too_small_metadata_is_grown)
{
    struct pool_info info;
    uint64_t v = 0;
    int r = 0;

    open_pool(48);
    ck_ok(grow(4096ull * BLOCK, 0));
    /* Far apart, and more than fits: until the metadata is full. */
    while (r == 0 && v < 4000)
        r = rig_write(&rig, vol, (v++ * 4) % VOL_BLOCKS * BLOCK, buf, 4096);
    ck_code(r, NO_METADATA_SPACE);
    ck_ok(grow(0, 1024 * 4096));
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_WRITE);
    for (unsigned i = 0; i < 500; i++)
        ck_ok(rig_write(&rig, vol, (v++ * 4) % VOL_BLOCKS * BLOCK, buf, 4096));
    close_pool();
}
END_TEST

/* ---- growth by itself ------------------------------------------------------------------- */

#define BURST 40u

static struct pool_config
config_now(void)
{
    struct pool_info info;

    pool_get_info(rig.pool, &info);
    return info.config;
}

static void
let_grow(bool on)
{
    struct pool_config config = config_now();

    config.extend_metadata = on;
    pool_set_config(rig.pool, &config);
}

/* Volumes until there is no metadata left for one more. */
static void
fill_metadata_with_volumes(void)
{
    char name[32];
    int r = 0;

    for (unsigned i = 0; r == 0; i++) {
        ck_assert_uint_lt(i, 20000);
        snprintf(name, sizeof(name), "filler%u", i);
        r = rig_create(&rig, name, BLOCK);
    }
    ck_code(r, NO_METADATA_SPACE);
}

static struct burst {
    unsigned nr_told, nr_good, order[BURST + 1];
} burst;

static void
burst_done(void *arg, int result, const struct thin_error *err)
{
    const unsigned *i = arg;

    (void)err;
    burst.order[burst.nr_told++] = *i;
    burst.nr_good += result == 0;
}

START_TEST(changes_that_do_not_fit_wait_for_growth)
{
    static unsigned numbers[BURST + 1];
    struct pool_info info;

    open_pool(48);
    fill_metadata_with_volumes();
    pool_get_info(rig.pool, &info);
    ck_assert_uint_eq(info.metadata_size, 48 * 4096);
    let_grow(true);
    memset(&burst, 0, sizeof(burst));
    for (unsigned i = 0; i < BURST; i++) {
        char name[32];

        numbers[i] = i;
        snprintf(name, sizeof(name), "burst%u", i);
        pool_volume_create(rig.pool, &(struct volume_spec){.name = name, .size = BLOCK},
                           (struct pool_done){burst_done, &numbers[i]});
    }
    /* What is asked for behind one that waits does not overtake it. */
    numbers[BURST] = BURST;
    pool_volume_rename(rig.pool, "burst0", "renamed",
                       (struct pool_done){burst_done, &numbers[BURST]});
    while (burst.nr_told <= BURST)
        ck_assert(sim_loop_step(rig.loop));
    ck_assert_uint_eq(burst.nr_good, BURST + 1);
    for (unsigned i = 0; i <= BURST; i++)
        ck_assert_uint_eq(burst.order[i], i);
    pool_get_info(rig.pool, &info);
    ck_assert_uint_gt(info.metadata_size, 48 * 4096);
    ck_assert_int_eq(info.mode, POOL_WRITE);
    close_pool();
}
END_TEST

/* A device that cannot grow: refused, and once more when it is asked again. */
START_TEST(without_growth_they_are_refused)
{
    open_pool(48);
    fill_metadata_with_volumes();
    meta->limits.grows = false;
    let_grow(true);
    ck_code(rig_create(&rig, "one", BLOCK), NO_METADATA_SPACE);
    ck_code(rig_create(&rig, "two", BLOCK), NO_METADATA_SPACE);
    ck_ok(rig_delete(&rig, "filler0"));
    close_pool();
}
END_TEST

/* The pool is closed while one waits: it is answered, and nothing is lost. */
START_TEST(a_close_ends_the_wait)
{
    static unsigned number;

    for (unsigned steps = 0; steps < 60; steps++) {
        open_pool(48);
        fill_metadata_with_volumes();
        let_grow(true);
        memset(&burst, 0, sizeof(burst));
        pool_volume_create(rig.pool, &(struct volume_spec){.name = "late", .size = BLOCK},
                           (struct pool_done){burst_done, &number});
        for (unsigned i = 0; i < steps; i++)
            sim_loop_step(rig.loop);
        volume_close(vol);
        ck_ok(rig_close(&rig, true));
        ck_assert_uint_eq(burst.nr_told, 1);
        sim_loop_run_until_idle(rig.loop, 0);
        sim_loop_destroy(rig.loop);
    }
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("growth");
    TCase *tcase = tcase_create("growth");
    SRunner *runner;
    int failures;

    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, both_devices_grow_in_any_steps);
    tcase_add_test(tcase, both_devices_grow_while_writes_go_on);
    tcase_add_test(tcase, metadata_beyond_the_format_s_limit_is_refused);
    tcase_add_test(tcase, data_beyond_the_format_s_limit_is_refused);
    tcase_add_test(tcase, a_pool_with_too_small_metadata_is_grown);
    tcase_add_test(tcase, changes_that_do_not_fit_wait_for_growth);
    tcase_add_test(tcase, without_growth_they_are_refused);
    tcase_add_test(tcase, a_close_ends_the_wait);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
