/*
 * Many volumes and snapshots in one pool: 10,000, and 100,000 with THIN_TEST_LONG. The
 * last thousand creations touch at most twice the metadata nodes of the first thousand;
 * when all are deleted, in random order, the free space is the start's, exactly.
 * SEED= repeats a run, VOLUMES= sets the number.
 */
#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/random.h"
#include "tests/lib/check_codes.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/recount.h"
#include "tests/lib/sim_loop.h"

#define BLOCK     65536u
#define NR_BLOCKS 8192u
#define META_SIZE (512ull << 20)
#define ROUND     1000u

static struct pool_rig rig;
static struct thin_random rng;
static struct device *meta;

static uint32_t
number(const char *name, uint32_t otherwise)
{
    const char *text = getenv(name);

    return text ? (uint32_t)strtoul(text, NULL, 0) : otherwise;
}

static void
open_pool(void)
{
    struct pool_params params;
    struct device *data;

    rig.loop = sim_loop_create(3);
    ck_assert_int_eq(device_mem_open(rig.loop, (uint64_t)NR_BLOCKS * BLOCK, &data), 0);
    ck_assert_int_eq(device_mem_open(rig.loop, META_SIZE, &meta), 0);
    rig_params(&rig, &params, data, meta);
    params.format = true;
    ck_ok(rig_open(&rig, &params));
}

static void
settle(void)
{
    sim_loop_run_until_idle(rig.loop, UINT64_MAX);
    ck_ok(rig_commit(&rig));
    sim_loop_run_until_idle(rig.loop, UINT64_MAX);
}

/* Nodes that were looked at since the last call. */
static uint64_t
nodes_touched(void)
{
    static uint64_t before;
    struct pool_info info;
    uint64_t now, ret;

    pool_get_info(rig.pool, &info);
    now = info.cache_hits + info.cache_misses;
    ret = now - before;
    before = now;
    return ret;
}

static void
name_of(uint32_t i, char name[32])
{
    snprintf(name, 32, "v%" PRIu32, i);
}

/* Every other one is a snapshot, of a volume or of a snapshot. */
static void
create_one(uint32_t i)
{
    char name[32], origin[32];

    name_of(i, name);
    if (i % 2 == 0) {
        ck_ok(rig_create(&rig, name, 4 * BLOCK));
        return;
    }
    name_of((uint32_t)random_below(&rng, i), origin);
    ck_ok(rig_snapshot(&rig, origin, name));
}

/* Some volumes have something in them, so that snapshots share. */
static void
write_some(uint32_t nr)
{
    static unsigned char buf[BLOCK];
    struct volume *vol;
    char name[32];

    for (unsigned i = 0; i < 20; i++) {
        name_of((uint32_t)random_below(&rng, nr), name);
        ck_ok(rig_volume(&rig, name, &vol));
        ck_ok(rig_write(&rig, vol, random_below(&rng, 4) * BLOCK, buf, BLOCK));
        volume_close(vol);
    }
}

START_TEST(many_volumes_cost_no_more_each_and_leave_nothing)
{
    uint32_t nr = number("VOLUMES", getenv("THIN_TEST_LONG") ? 100000 : 10000);
    uint32_t *order = malloc(nr * sizeof(*order));
    uint64_t first = 0, last = 0;
    struct pool_info start, end;
    struct recount re;

    ck_assert_ptr_nonnull(order);
    thin_log_set_level(THIN_LOG_ERROR);
    random_seed(&rng, number("SEED", 21));
    printf("SEED=%" PRIu32 " VOLUMES=%" PRIu32 "\n", number("SEED", 21), nr);
    open_pool();
    /* The catalogue has its room once there was something in it. */
    ck_ok(rig_create(&rig, "first", BLOCK));
    ck_ok(rig_delete(&rig, "first"));
    settle();
    pool_get_info(rig.pool, &start);
    (void)nodes_touched();
    for (uint32_t i = 0; i < nr; i++) {
        create_one(i);
        order[i] = i;
        if (i % ROUND != ROUND - 1)
            continue;
        last = nodes_touched();
        if (first == 0)
            first = last;
        write_some(i + 1);
        (void)nodes_touched();
    }
    printf("%" PRIu64 " nodes for the first thousand, %" PRIu64 " for the last\n", first,
           last);
    ck_assert_uint_le(last, 2 * first);

    for (uint32_t i = nr; i > 1; i--) {
        uint32_t k = (uint32_t)random_below(&rng, i), other = order[k];

        order[k] = order[i - 1];
        order[i - 1] = other;
    }
    for (uint32_t i = 0; i < nr; i++) {
        char name[32];

        name_of(order[i], name);
        ck_ok(rig_delete(&rig, name));
    }
    settle();
    ck_assert_int_eq(recount_image(meta, NULL, &re), 0);
    ck_assert_uint_eq(re.nr_devices, 1); /* the catalogue's own */
    pool_get_info(rig.pool, &end);
    printf("free: %" PRIu64 " and %" PRIu64 " blocks, then %" PRIu64 " and %" PRIu64 "\n",
           start.data_blocks_free, start.metadata_blocks_free, end.data_blocks_free,
           end.metadata_blocks_free);
    ck_assert_uint_eq(end.data_blocks_free, start.data_blocks_free);
    ck_assert_uint_eq(end.metadata_blocks_free, start.metadata_blocks_free);
    ck_ok(rig_close(&rig, false));
    sim_loop_run_until_idle(rig.loop, UINT64_MAX);
    sim_loop_destroy(rig.loop);
    free(order);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("many volumes");
    TCase *tcase = tcase_create("many");
    SRunner *runner;
    int failures;

    tcase_set_timeout(tcase, 280);
    tcase_add_test(tcase, many_volumes_cost_no_more_each_and_leave_nothing);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
