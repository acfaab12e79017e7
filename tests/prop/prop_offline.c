/*
 * Random pools, random damage. A pool that was just built has no older versions of its
 * nodes, so whatever repair brings back must be a part of what was there, at the same
 * place; and what it writes must be a pool without fault. What the check calls whole
 * must have lost nothing.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/random.h"
#include "core/offline/build.h"
#include "core/offline/check.h"
#include "core/offline/repair.h"

#define NR_BLOCKS  400u
#define BYTES      ((size_t)NR_BLOCKS * METADATA_BLOCK_SIZE)
#define DEVS_MAX   12u
#define VIRT_MAX   3000u
#define DATA_MAX   100000u
#define NR_ROUNDS  50
#define NOT_MAPPED 0

/* What each device maps: data block and time as one value, plus 1. */
struct model {
    size_t nr;
    uint64_t ids[DEVS_MAX];
    uint64_t map[DEVS_MAX][VIRT_MAX];
};

struct rig {
    struct thin_random rng;
    uint8_t *image, *output;
    struct model model;
    struct model *seen; /* what a walk feeds */
    size_t at;
};

static int
mem_read(void *arg, uint64_t offset, void *buf, size_t len)
{
    ck_assert_uint_le(offset + len, BYTES);
    memcpy(buf, (uint8_t *)arg + offset, len);
    return 0;
}

static int
mem_write(void *arg, uint64_t offset, const void *buf, size_t len)
{
    ck_assert_uint_le(offset + len, BYTES);
    memcpy((uint8_t *)arg + offset, buf, len);
    return 0;
}

static int
mem_flush(void *arg)
{
    (void)arg;
    return 0;
}

static struct meta_source *
open_mem(uint8_t *bytes)
{
    static const struct source_ops ops = {
        .read = mem_read, .write = mem_write, .flush = mem_flush};
    struct meta_source *src = NULL;

    ck_assert_int_eq(source_open_ops(&ops, bytes, BYTES, true, &src), 0);
    return src;
}

/* A device with runs and gaps; some share data blocks with others. */
static void
make_device(struct rig *rig, struct builder *b, size_t d)
{
    struct ir_device dev = {.dev_id = rig->model.ids[d], .snap_time = 5};
    uint64_t v = random_below(&rig->rng, 10);
    uint64_t end = random_below(&rig->rng, VIRT_MAX);

    ck_assert_int_eq(builder_visitor.device_begin(b, &dev), 0);
    while (v < end) {
        struct ir_run run = {v, random_below(&rig->rng, DATA_MAX - 8),
                             1 + random_below(&rig->rng, 6),
                             (uint32_t)random_below(&rig->rng, 6)};

        if (run.virt + run.len > end)
            run.len = end - run.virt;
        ck_assert_int_eq(builder_visitor.run(b, &run), 0);
        for (uint64_t i = 0; i < run.len; i++)
            rig->model.map[d][v + i] = 1 + ((run.data + i) << 24 | run.time);
        v += run.len + random_below(&rig->rng, 3);
    }
    ck_assert_int_eq(builder_visitor.device_end(b), 0);
}

static void
make_pool(struct rig *rig)
{
    struct ir_superblock sb = {
        .time = 5, .version = 2, .data_block_size = 128, .nr_data_blocks = DATA_MAX};
    struct meta_source *dst = open_mem(rig->image);
    struct builder b;

    memset(rig->image, 0, BYTES);
    memset(&rig->model, 0, sizeof(rig->model));
    rig->model.nr = 1 + random_below(&rig->rng, DEVS_MAX);
    ck_assert_int_eq(builder_init(&b, dst, NULL, NULL), 0);
    ck_assert_int_eq(builder_visitor.superblock(&b, &sb), 0);
    for (size_t d = 0; d < rig->model.nr; d++) {
        rig->model.ids[d] =
            (d ? rig->model.ids[d - 1] : 0) + 1 + random_below(&rig->rng, 1000);
        make_device(rig, &b, d);
    }
    ck_assert_int_eq(builder_visitor.end(&b), 0);
    builder_fini(&b);
    source_close(dst);
}

/* Zeros, noise, or another block's contents, in a few blocks. */
static void
do_damage(struct rig *rig)
{
    uint64_t n = random_below(&rig->rng, 6);

    for (uint64_t i = 0; i < n; i++) {
        uint8_t *victim = rig->image + METADATA_BLOCK_SIZE *
                                           (1 + random_below(&rig->rng, NR_BLOCKS - 1));

        switch (random_below(&rig->rng, 3)) {
        case 0:
            memset(victim, 0, METADATA_BLOCK_SIZE);
            break;
        case 1:
            for (unsigned j = 0; j < METADATA_BLOCK_SIZE; j += 8)
                store_le64(victim + j, random_u64(&rig->rng));
            break;
        default:
            memcpy(victim,
                   rig->image + METADATA_BLOCK_SIZE * random_below(&rig->rng, NR_BLOCKS),
                   METADATA_BLOCK_SIZE);
            break;
        }
    }
}

/* ---- what repair feeds, held against the model --------------------------------------------- */

static int
on_superblock(void *arg, const struct ir_superblock *sb)
{
    (void)arg;
    ck_assert_uint_eq(sb->nr_data_blocks, DATA_MAX);
    return 0;
}

static int
on_device(void *arg, const struct ir_device *dev)
{
    struct rig *rig = arg;

    rig->at = 0;
    while (rig->at < rig->model.nr && rig->model.ids[rig->at] != dev->dev_id)
        rig->at++;
    ck_assert_msg(rig->at < rig->model.nr, "device %lu was never there",
                  (unsigned long)dev->dev_id);
    return 0;
}

static int
on_run(void *arg, const struct ir_run *run)
{
    struct rig *rig = arg;

    for (uint64_t i = 0; i < run->len; i++) {
        ck_assert_uint_lt(run->virt + i, VIRT_MAX);
        ck_assert_uint_eq(rig->model.map[rig->at][run->virt + i],
                          1 + ((run->data + i) << 24 | run->time));
        rig->seen->map[rig->at][run->virt + i] = 1;
    }
    return 0;
}

static int
on_end(void *arg)
{
    (void)arg;
    return 0;
}

static const struct ir_visitor model_visitor = {
    .superblock = on_superblock,
    .device_begin = on_device,
    .run = on_run,
    .device_end = on_end,
    .end = on_end,
};

/* The lost ranges must cover all that is missing. */
static void
assert_lost_is_told(struct rig *rig, const struct repair_plan *plan)
{
    for (size_t d = 0; d < rig->model.nr; d++)
        for (uint64_t v = 0; v < VIRT_MAX; v++) {
            bool told = false;

            if (rig->model.map[d][v] == NOT_MAPPED || rig->seen->map[d][v])
                continue;
            for (size_t i = 0; i < plan->lost.nr_affected && !told; i++) {
                const struct affected *a = &plan->lost.affected[i];

                told = a->dev_id == rig->model.ids[d] && v >= a->begin && v <= a->last;
            }
            /* A device of which nothing at all is left cannot be told of. */
            ck_assert_msg(told || !live_find(&plan->pool, rig->model.ids[d]),
                          "device %lu, block %lu is lost and not told",
                          (unsigned long)rig->model.ids[d], (unsigned long)v);
        }
}

static uint64_t
check_image(uint8_t *image)
{
    static const struct check_options opts;
    struct meta_source *src = open_mem(image);
    struct check_result res;
    struct report rep;
    uint64_t damage;

    report_init(&rep);
    ck_assert_int_eq(check_run(src, &opts, &rep, &res, NULL), 0);
    damage = rep.nr_class[REPORT_DAMAGE];
    check_result_fini(&res);
    report_fini(&rep);
    source_close(src);
    return damage;
}

static void
repair_round(struct rig *rig)
{
    struct meta_source *src = open_mem(rig->image), *dst = open_mem(rig->output);
    struct repair_plan plan;
    struct builder b;
    struct thin_error err;
    int r;

    thin_error_init(&err);
    memset(rig->output, 0, BYTES);
    memset(rig->seen, 0, sizeof(*rig->seen));
    r = repair_plan_make(&plan, src, NULL, NULL, &err);
    ck_assert_msg(r == 0, "%s", err.text);
    ck_assert_int_eq(repair_plan_feed(&plan, &model_visitor, rig, &err), 0);
    assert_lost_is_told(rig, &plan);
    ck_assert_int_eq(builder_init(&b, dst, NULL, &err), 0);
    r = repair_plan_feed(&plan, &builder_visitor, &b, &err);
    ck_assert_msg(r == 0, "%s", err.text);
    builder_fini(&b);
    ck_assert_uint_eq(check_image(rig->output), 0);
    if (check_image(rig->image) == 0)
        ck_assert(plan.trees_whole);
    repair_plan_fini(&plan);
    source_close(src);
    source_close(dst);
}

START_TEST(what_repair_brings_back_was_there)
{
    const char *given = getenv("SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    struct rig *rig = calloc(1, sizeof(*rig));

    printf("SEED=%lu\n", (unsigned long)seed);
    fflush(stdout);
    ck_assert_ptr_nonnull(rig);
    random_seed(&rig->rng, seed);
    rig->image = malloc(BYTES);
    rig->output = malloc(BYTES);
    rig->seen = calloc(1, sizeof(*rig->seen));
    ck_assert(rig->image && rig->output && rig->seen);
    for (int i = 0; i < (getenv("THIN_TEST_LONG") ? 20 : 1) * NR_ROUNDS; i++) {
        make_pool(rig);
        do_damage(rig);
        repair_round(rig);
    }
    free(rig->image);
    free(rig->output);
    free(rig->seen);
    free(rig);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("prop offline");
    TCase *tc = tcase_create("repair");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 600);
    tcase_add_test(tc, what_repair_brings_back_was_there);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
