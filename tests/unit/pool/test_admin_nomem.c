/*
 * The n-th allocation fails, for each n until none does, through the opening of a pool and
 * changes of every kind: each call is answered, and the metadata is sound.
 */
#include "tests/lib/nomem.h"
#include "tests/lib/test_cache.h"
#include "tests/unit/pool/admin_rig.h"

#ifdef NOMEM

static struct device *metadata;

/* Memory devices, whose own failures are I/O errors; the simulated disks would abort. */
static void
open_fresh(void)
{
    ck_assert_int_eq(device_mem_open(rig.loop, 300ull * RIG_BLOCK, &rig.params.data), 0);
    ck_assert_int_eq(device_mem_open(rig.loop, 512ull * 4096, &metadata), 0);
    rig.params.metadata = metadata;
    rig.params.loop = rig.loop;
    rig.params.name = "tank";
    rig.params.format = true;
    rig.params.data_block_sectors = RIG_BLOCK / 512;
    rig.params.seed = 5;
    rig.params.wall_clock_s = 1700000000;
    rig_begin();
    pool_open(&rig.params, rig_opened, NULL);
    ck_assert_int_eq(rig_wait(), 0);
}

/*
 * Outcomes are not asked for: an error where memory was missing, and what follows from
 * it; but that each call is answered, and once. Check itself allocates in its asserts, so
 * these are plain.
 */
static unsigned nr_told;

static void
any_done(void *arg, int result, const struct thin_error *err)
{
    (void)arg;
    (void)result;
    (void)err;
    nr_told++;
}

static void
any_listed(void *arg, int result, const struct thin_error *err,
           const struct volume_info *infos, uint32_t nr)
{
    (void)infos;
    (void)nr;
    any_done(arg, result, err);
}

static void
any_wait(void)
{
    while (nr_told == 0)
        if (!sim_loop_step(rig.loop))
            abort();
    if (nr_told != 1)
        abort();
}

#define DONE ((struct pool_done){any_done, NULL})
#define ANY(call)    \
    do {             \
        nr_told = 0; \
        call;        \
        any_wait();  \
    } while (0)

static void
change_everything(void)
{
    const struct volume_spec spec = {.name = "a", .size = 4 * RIG_BLOCK};
    const struct pool_attachment attachment = {.epoch = 1, .holder = "cert:x"};
    const char *origin = "a", *snap = "s";

    ANY(pool_volume_create(rig.pool, &spec, DONE));
    ANY(pool_volume_snapshot(rig.pool, &origin, &snap, 1, DONE));
    ANY(pool_volume_rename(rig.pool, "a", "b", DONE));
    ANY(pool_volume_resize(rig.pool, "b", 5 * RIG_BLOCK, false, DONE));
    ANY(pool_volume_resize(rig.pool, "b", RIG_BLOCK + 512, true, DONE));
    ANY(pool_volume_attach(rig.pool, "b", &attachment, DONE));
    ANY(pool_volume_set(rig.pool, "b", VOLUME_PROTECTED, 1, DONE));
    ANY(pool_volume_rollback(rig.pool, "s", "b", DONE));
    ANY(pool_volume_list(rig.pool, NULL, 10, true, any_listed, NULL));
    ANY(pool_volume_show(rig.pool, "b", false, any_listed, NULL));
    for (int i = 0; i < 12; i++)
        ANY(pool_volume_set(rig.pool, "s", VOLUME_READ_ONLY, i & 1, DONE));
    ANY(pool_reserve_snap(rig.pool, DONE));
    ANY(pool_release_snap(rig.pool, DONE));
    ANY(pool_grow(rig.pool, 400ull * RIG_BLOCK, 600ull * 4096, DONE));
    ANY(pool_volume_delete(rig.pool, "s", DONE));
    ANY(pool_volume_delete(rig.pool, "a", DONE));
    rig_settle();
}

START_TEST(each_failed_allocation_is_an_error_and_nothing_more)
{
    struct recount re;
    unsigned n = 0;
    long before = 0, lost;
    bool failed;

    thin_log_set_level(THIN_LOG_ERROR);
    memset(&rig, 0, sizeof(rig));
    rig.loop = sim_loop_create(1);
    pool_config_default(&rig.params.config);
    rig.params.config.metadata_cache_blocks = 256;
    rig.params.cache_clean = test_cache_clean();
    rig.params.config.mapping_cache_pages = 16;
    do {
        /* The first round warms up what lives on, as the loop's room for timers. */
        if (n == 1)
            before = nomem.live;
        open_fresh();
        nomem_arm(n++);
        change_everything();
        failed = nomem_disarm();
        ck_assert_msg(recount_image(metadata, NULL, &re) == 0, "n %u: %s", n - 1, re.why);
        ANY(pool_close(rig.pool, true, DONE));
        sim_loop_run_until_idle(rig.loop, 0);
        lost = nomem.live - before;
        ck_assert_msg(n == 1 || lost == 0, "n %u: %ld pieces of memory are lost", n - 1,
                      lost);
        before = nomem.live; /* asserts may keep something */
    } while (failed);
    ck_assert_uint_ge(n, 50);
    printf("%u allocations failed\n", n - 1);
    sim_loop_destroy(rig.loop);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("admin without memory");
    TCase *tcase = tcase_create("allocations");
    SRunner *runner;
    int failures;

    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, each_failed_allocation_is_an_error_and_nothing_more);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}

#else

int
main(void)
{
    return EXIT_SUCCESS;
}

#endif
