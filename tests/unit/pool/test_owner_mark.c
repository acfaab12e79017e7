/* Whose the pool is: what an open finds when another machine, or another boot, had it. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/random.h"
#include "core/ondisk/superblock.h"
#include "core/ondisk/trailer.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/sim_loop.h"

#define BLOCK     65536u
#define NR_BLOCKS 64u
#define META_SIZE (4u << 20)

static struct pool_rig rig;
static struct thin_random rng;
static struct crash_disk *data_disk, *meta_disk;

static int
open_as(uint8_t host, uint8_t boot, bool format, bool takeover)
{
    struct pool_params params;

    rig_params(&rig, &params, crash_disk_open(data_disk, rig.loop),
               crash_disk_open(meta_disk, rig.loop));
    params.format = format;
    params.seed = random_u64(&rng);
    params.takeover = takeover;
    memset(params.owner_host, host, sizeof(params.owner_host));
    memset(params.owner_boot, boot, sizeof(params.owner_boot));
    return rig_open(&rig, &params);
}

static void
die(void)
{
    int r;

    crash_disk_cut(data_disk);
    crash_disk_cut(meta_disk);
    r = rig_close(&rig, true);
    (void)r;
}

static struct catalogue_trailer
mark(void)
{
    const uint8_t *block = crash_disk_page(meta_disk, 0);
    struct catalogue_trailer t;
    bool found = false;

    ck_assert_ptr_nonnull(block);
    ck_assert_int_eq(
        catalogue_trailer_decode(block + SUPERBLOCK_TRAILER_OFFSET, &t, &found, NULL), 0);
    ck_assert(found);
    return t;
}

static void
set_up(void)
{
    rig.loop = sim_loop_create(3);
    random_seed(&rng, 7);
    data_disk = crash_disk_create(&rng, NR_BLOCKS * BLOCK, NULL);
    meta_disk = crash_disk_create(&rng, META_SIZE, NULL);
    ck_assert_int_eq(open_as(1, 1, true, false), 0);
}

static void
tear_down(void)
{
    if (rig.pool)
        ck_assert_int_eq(rig_close(&rig, true), 0);
    crash_disk_destroy(data_disk);
    crash_disk_destroy(meta_disk);
    sim_loop_destroy(rig.loop);
}

START_TEST(same_machine_takes_over_in_silence)
{
    die();
    ck_assert_int_eq(open_as(1, 1, false, false), 0); /* the lock has decided */
    die();
    ck_assert_int_eq(open_as(1, 2, false, false), 0);
    ck_assert_uint_eq(mark().owner_boot[5], 2);
}
END_TEST

START_TEST(another_machine_is_refused_until_it_takes_over)
{
    die();
    ck_assert_int_eq(open_as(2, 2, false, false), -THIN_E_BUSY);
    ck_assert_ptr_nonnull(strstr(rig.err.text, "another machine"));
    ck_assert_ptr_nonnull(strstr(rig.err.text, "--force-takeover"));
    ck_assert_uint_eq(mark().owner_host[0], 1); /* refused: nothing was written */
    ck_assert_int_eq(open_as(2, 2, false, true), 0);
    ck_assert_uint_eq(mark().owner_host[0], 2);
    die();
    /* Now it is the first one's turn to be refused. */
    ck_assert_int_eq(open_as(1, 1, false, false), -THIN_E_BUSY);
    ck_assert_int_eq(open_as(2, 2, false, false), 0);
}
END_TEST

/* An owner that has not written anything is seen all the same. */
START_TEST(mark_is_durable_before_the_pool_is_open)
{
    struct catalogue_trailer t;

    ck_assert_int_eq(rig_close(&rig, false), 0);
    ck_assert_int_eq(open_as(2, 2, false, false), 0);
    die();
    t = mark();
    ck_assert_uint_eq(t.owner_host[15], 2);
    ck_assert_uint_gt(t.owner_start, 0);
    ck_assert_int_eq(open_as(1, 1, false, false), -THIN_E_BUSY);
}
END_TEST

START_TEST(closing_in_good_order_releases_the_pool)
{
    struct catalogue_trailer t;
    static const uint8_t zeros[16];

    ck_assert_int_eq(rig_create(&rig, "vol", 8 * BLOCK), 0);
    ck_assert_int_eq(rig_close(&rig, false), 0);
    t = mark();
    ck_assert_mem_eq(t.owner_host, zeros, 16);
    ck_assert_mem_eq(t.owner_boot, zeros, 16);
    ck_assert_uint_eq(t.owner_start, 0);
    ck_assert_uint_ne(t.flags & CATALOGUE_CLEAN, 0);
    for (uint8_t host = 2; host < 5; host++) {
        ck_assert_int_eq(open_as(host, 9, false, false), 0);
        ck_assert_int_eq(rig_close(&rig, false), 0);
    }
}
END_TEST

/* The generation counts openings, so that two marks of one machine can be told apart. */
START_TEST(generation_rises_with_each_opening)
{
    uint64_t before = mark().generation;

    for (unsigned i = 0; i < 3; i++) {
        die();
        ck_assert_int_eq(open_as(1, 1, false, false), 0);
        ck_assert_uint_gt(mark().generation, before);
        before = mark().generation;
    }
}
END_TEST

/* Who has no id marks nothing and writes nothing at open; but a mark he heeds. */
START_TEST(machine_without_an_id_heeds_marks)
{
    die();
    ck_assert_int_eq(open_as(0, 0, false, false), -THIN_E_BUSY);
    ck_assert_int_eq(open_as(0, 0, false, true), 0);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("owner_mark");
    TCase *tc = tcase_create("owner_mark");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_add_test(tc, same_machine_takes_over_in_silence);
    tcase_add_test(tc, another_machine_is_refused_until_it_takes_over);
    tcase_add_test(tc, mark_is_durable_before_the_pool_is_open);
    tcase_add_test(tc, closing_in_good_order_releases_the_pool);
    tcase_add_test(tc, generation_rises_with_each_opening);
    tcase_add_test(tc, machine_without_an_id_heeds_marks);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
