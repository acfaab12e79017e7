/* Reservations and quotas: what is promised is there, whatever others do. */
#include <errno.h>

#include "tests/unit/pool/admin_rig.h"

#define NR_BLOCKS 200u

static uint8_t bytes[RIG_BLOCK];

static void
set_up(void)
{
    rig_init(NR_BLOCKS, 1024);
    rig.params.config.on_full = POOL_ERROR;
    rig_open(true);
    memset(bytes, 0x5a, sizeof(bytes));
}

static void
tear_down(void)
{
    struct recount rc;

    rig_close();
    rig_recount(&rc);
    rig_fini();
}

static void
create_async(const char *name, uint64_t blocks, uint64_t reserve, uint64_t quota,
             struct pool_done done)
{
    const struct volume_spec spec = {.name = name,
                                     .size = blocks * RIG_BLOCK,
                                     .reserve = reserve * RIG_BLOCK,
                                     .quota = quota * RIG_BLOCK};

    pool_volume_create(rig.pool, &spec, done);
}
#define create(name, blocks, reserve, quota) \
    rig_ok(create_async(name, blocks, reserve, quota, RIG_DONE))

/* Writes single blocks from `from` on until one fails; how many went. */
static unsigned
fill_from(struct volume *volume, unsigned from, unsigned max, int *ret_code)
{
    unsigned nr = 0;

    *ret_code = 0;
    while (nr < max) {
        *ret_code = rig_io(volume, VOLUME_WRITE, (uint64_t)(from + nr) * RIG_BLOCK, 4096,
                           bytes, 0);
        if (*ret_code < 0)
            break;
        nr++;
    }
    return nr;
}

static uint64_t
reserved(void)
{
    struct pool_info info;

    pool_get_info(rig.pool, &info);
    return info.data_reserved / RIG_BLOCK;
}

static uint64_t
nr_free(void)
{
    struct pool_info info;

    pool_get_info(rig.pool, &info);
    return info.data_blocks_free;
}

START_TEST(others_cannot_have_what_is_reserved)
{
    struct volume *safe, *greedy;
    int code;

    create("safe", 100, 60, 0);
    create("greedy", 400, 0, 0);
    safe = rig_open_volume("safe");
    greedy = rig_open_volume("greedy");
    ck_assert_uint_eq(fill_from(safe, 0, 10, &code), 10);
    ck_assert_uint_eq(reserved(), 50);
    (void)fill_from(greedy, 0, 400, &code);
    ck_assert_int_eq(code, -THIN_E_NO_DATA_SPACE);
    ck_assert_uint_eq(nr_free(), 50);
    /* All of what was promised, and not a block more. */
    ck_assert_uint_eq(fill_from(safe, 10, 90, &code), 50);
    ck_assert_int_eq(code, -THIN_E_NO_DATA_SPACE);
    ck_assert_uint_eq(nr_free(), 0);
    ck_assert_uint_eq(reserved(), 0);
    volume_close(safe);
    volume_close(greedy);
}
END_TEST

START_TEST(a_reservation_that_does_not_fit_is_refused_saying_what_is_missing)
{
    uint64_t left = nr_free();
    char words[64];

    rig_fails(create_async("vol", 1000, left + 10, 0, RIG_DONE), NO_DATA_SPACE);
    /* The catalogue may have taken a block or two before. */
    snprintf(words, sizeof(words), "needs %" PRIu64 " more bytes",
             (left + 10 - nr_free()) * RIG_BLOCK);
    ck_assert_msg(strstr(rig.err.text, words) != NULL, "%s", rig.err.text);
    create("vol", 1000, 50, 0);
    rig_fails(
        pool_volume_set(rig.pool, "vol", VOLUME_RESERVE, 1000ull * RIG_BLOCK, RIG_DONE),
        NO_DATA_SPACE);
    rig_ok(
        pool_volume_set(rig.pool, "vol", VOLUME_RESERVE, 100ull * RIG_BLOCK, RIG_DONE));
    ck_assert_uint_eq(reserved(), 100);
    rig_ok(pool_volume_set(rig.pool, "vol", VOLUME_RESERVE, 0, RIG_DONE));
    ck_assert_uint_eq(reserved(), 0);
    rig_fails(
        pool_volume_set(rig.pool, "vol", VOLUME_RESERVE, 2000ull * RIG_BLOCK, RIG_DONE),
        INVALID);
    rig_fails(create_async("new", 10, 11, 0, RIG_DONE), INVALID);
    rig_fails(create_async("new", 10, 5, 4, RIG_DONE), INVALID);
}
END_TEST

START_TEST(a_snapshot_needs_the_reservation_again)
{
    struct volume *safe, *greedy;
    struct volume_info info;
    int code;

    create("safe", 100, 60, 0);
    create("greedy", 400, 0, 0);
    safe = rig_open_volume("safe");
    greedy = rig_open_volume("greedy");
    ck_assert_uint_eq(fill_from(safe, 0, 60, &code), 60);
    ck_assert_uint_eq(reserved(), 0);
    rig_snap("safe", "one");
    ck_assert(pool_volume_peek(rig.pool, "one", &info));
    ck_assert_uint_eq(info.reserve, 0);
    ck_assert_uint_eq(reserved(), 60);
    (void)fill_from(greedy, 0, 400, &code);
    ck_assert_int_eq(code, -THIN_E_NO_DATA_SPACE);
    ck_assert_uint_eq(nr_free(), 60);
    /* Every block of it can be written anew, in any order. */
    ck_assert_uint_eq(fill_from(safe, 0, 60, &code), 60);
    rig_fails(rig_snap_async("safe", "two", RIG_DONE), NO_DATA_SPACE);
    ck_assert_ptr_nonnull(strstr(rig.err.text, "3932160 more bytes"));
    ck_assert_uint_eq(reserved(), 0);
    /* With the room given back it goes. */
    ck_assert_int_eq(rig_io(greedy, VOLUME_DISCARD, 0, 400ull * RIG_BLOCK, NULL, 0), 0);
    rig_settle();
    rig_snap("safe", "two");
    volume_close(safe);
    volume_close(greedy);
}
END_TEST

START_TEST(what_is_reserved_is_known_after_an_open)
{
    struct volume *safe, *greedy;
    int code;

    create("safe", 100, 60, 0);
    create("greedy", 400, 0, 0);
    safe = rig_open_volume("safe");
    ck_assert_uint_eq(fill_from(safe, 0, 40, &code), 40);
    volume_close(safe);
    rig_snap("safe", "one");
    safe = rig_open_volume("safe");
    ck_assert_uint_eq(fill_from(safe, 30, 20, &code), 20);
    ck_assert_uint_eq(reserved(), 40);
    volume_close(safe);
    for (unsigned i = 0; i < 3; i++) {
        rig_reopen();
        /* At first too much is held back, never too little. */
        ck_assert_uint_ge(reserved(), 40);
        rig_settle();
        ck_assert_uint_eq(reserved(), 40);
    }
    greedy = rig_open_volume("greedy");
    (void)fill_from(greedy, 0, 400, &code);
    safe = rig_open_volume("safe");
    ck_assert_uint_eq(fill_from(safe, 0, 30, &code), 30);
    ck_assert_uint_eq(fill_from(safe, 50, 50, &code), 10);
    volume_close(safe);
    volume_close(greedy);
}
END_TEST

START_TEST(a_discard_gives_the_promise_back)
{
    struct volume *safe;
    int code;

    create("safe", 100, 60, 0);
    safe = rig_open_volume("safe");
    ck_assert_uint_eq(fill_from(safe, 0, 40, &code), 40);
    ck_assert_int_eq(rig_io(safe, VOLUME_DISCARD, 0, 10 * RIG_BLOCK, NULL, 0), 0);
    ck_assert_uint_eq(reserved(), 30);
    rig_snap("safe", "one");
    ck_assert_uint_eq(fill_from(safe, 10, 5, &code), 5);
    ck_assert_uint_eq(reserved(), 55);
    /* Own and shared ones: counted anew. */
    ck_assert_int_eq(
        rig_io(safe, VOLUME_DISCARD, 13 * RIG_BLOCK, 10 * RIG_BLOCK, NULL, 0), 0);
    rig_settle();
    ck_assert_uint_eq(reserved(), 57);
    volume_close(safe);
    rig_ok(pool_volume_resize(rig.pool, "safe", 50 * RIG_BLOCK, true, RIG_DONE));
    rig_settle();
    ck_assert_uint_eq(reserved(), 47);
    rig_ok(pool_volume_rollback(rig.pool, "safe", "one", RIG_DONE));
    rig_settle();
    ck_assert_uint_eq(reserved(), 50);
    rig_ok(pool_volume_delete(rig.pool, "safe", RIG_DONE));
    ck_assert_uint_eq(reserved(), 0);
}
END_TEST

/* The format's held root keeps what is discarded: the promise of new blocks for it must be
   covered before one is reserved. */
START_TEST(a_held_root_needs_the_reservation_again)
{
    struct volume *safe, *greedy;
    char words[64];
    uint64_t left;
    int code;

    create("safe", 100, 60, 0);
    create("greedy", 400, 0, 0);
    safe = rig_open_volume("safe");
    greedy = rig_open_volume("greedy");
    ck_assert_uint_eq(fill_from(safe, 0, 60, &code), 60);
    ck_assert_uint_eq(reserved(), 0);
    rig_ok(pool_reserve_snap(rig.pool, RIG_DONE));
    ck_assert_uint_eq(reserved(), 60);
    (void)fill_from(greedy, 0, 400, &code);
    ck_assert_int_eq(code, -THIN_E_NO_DATA_SPACE);
    ck_assert_uint_eq(nr_free(), 60);
    /* What the held root keeps is not given back by a discard; there is room all the same. */
    ck_assert_int_eq(rig_io(safe, VOLUME_DISCARD, 0, 60 * RIG_BLOCK, NULL, 0), 0);
    rig_settle();
    ck_assert_uint_eq(nr_free(), 60);
    ck_assert_uint_eq(reserved(), 60);
    ck_assert_int_eq(fill_from(greedy, 300, 1, &code), 0);
    ck_assert_uint_eq(fill_from(safe, 0, 30, &code), 30);
    rig_settle();
    ck_assert_uint_eq(reserved(), 30);
    /* What became its own since comes back, and counts again. */
    ck_assert_int_eq(rig_io(safe, VOLUME_DISCARD, 0, 10 * RIG_BLOCK, NULL, 0), 0);
    rig_settle();
    ck_assert_uint_eq(reserved(), 40);
    ck_assert_int_eq(fill_from(greedy, 300, 1, &code), 0);
    /* The same is known after an open. */
    volume_close(safe);
    volume_close(greedy);
    rig_reopen();
    rig_settle();
    ck_assert_uint_eq(reserved(), 40);
    safe = rig_open_volume("safe");
    ck_assert_uint_eq(fill_from(safe, 0, 60, &code), 40 + 20);
    ck_assert_uint_eq(reserved(), 0);
    rig_ok(pool_release_snap(rig.pool, RIG_DONE));
    rig_settle();
    ck_assert_uint_eq(reserved(), 0);
    ck_assert_uint_eq(nr_free(), 60);

    /* One that does not fit is refused, saying what is missing. */
    greedy = rig_open_volume("greedy");
    left = nr_free();
    ck_assert_uint_eq(fill_from(greedy, 200, 10, &code), 10);
    rig_fails(pool_reserve_snap(rig.pool, RIG_DONE), NO_DATA_SPACE);
    snprintf(words, sizeof(words), "need %u more bytes",
             (unsigned)(60 - (left - 10)) * RIG_BLOCK);
    ck_assert_msg(strstr(rig.err.text, words) != NULL, "%s", rig.err.text);
    ck_assert_int_eq(
        rig_io(greedy, VOLUME_DISCARD, 200 * RIG_BLOCK, 10 * RIG_BLOCK, NULL, 0), 0);
    rig_settle();
    rig_ok(pool_reserve_snap(rig.pool, RIG_DONE));
    ck_assert_uint_eq(reserved(), 60);
    /* Released, all of what it maps is its own again. */
    rig_ok(pool_release_snap(rig.pool, RIG_DONE));
    rig_settle();
    ck_assert_uint_eq(reserved(), 0);
    volume_close(safe);
    volume_close(greedy);
}
END_TEST

START_TEST(a_roll_back_to_a_reserved_snapshot_needs_both)
{
    struct volume *vol;
    int code;

    create("vol", 100, 40, 0);
    vol = rig_open_volume("vol");
    ck_assert_uint_eq(fill_from(vol, 0, 40, &code), 40);
    volume_close(vol);
    rig_snap("vol", "snap");
    vol = rig_open_volume("vol");
    ck_assert_uint_eq(fill_from(vol, 0, 40, &code), 40);
    volume_close(vol);
    rig_ok(pool_volume_set(rig.pool, "snap", VOLUME_RESERVE, 40 * RIG_BLOCK, RIG_DONE));
    vol = rig_open_volume("snap");
    ck_assert_uint_eq(fill_from(vol, 0, 40, &code), 40);
    volume_close(vol);
    ck_assert_uint_eq(reserved(), 0);
    /* 120 of 200 are taken: there is cover for one of them, not for both. */
    rig_fails(pool_volume_rollback(rig.pool, "vol", "snap", RIG_DONE), NO_DATA_SPACE);
    rig_ok(pool_volume_set(rig.pool, "snap", VOLUME_RESERVE, 0, RIG_DONE));
    rig_settle();
}
END_TEST

struct crowd {
    struct volume_io io;
    struct iovec iov;
    unsigned *left, *went;
};

static void
crowd_done(struct volume_io *io, int result)
{
    struct crowd *one = container_of(io, struct crowd, io);

    ck_assert(result == 0 || result == -THIN_E_NO_DATA_SPACE);
    *one->went += result == 0;
    --*one->left;
}

/* Writes [from, from + nr) all at the same time; how many went. */
static unsigned
crowd(struct volume *volume, unsigned from, unsigned nr)
{
    static struct crowd all[NR_BLOCKS];
    unsigned left = nr, went = 0;

    for (unsigned i = 0; i < nr; i++) {
        all[i] = (struct crowd){
            .iov = {.iov_base = bytes, .iov_len = 4096}, .left = &left, .went = &went};
        all[i].io = (struct volume_io){.op = VOLUME_WRITE,
                                       .offset = (uint64_t)(from + i) * RIG_BLOCK,
                                       .len = 4096,
                                       .iov = &all[i].iov,
                                       .nr_iov = 1,
                                       .done = crowd_done};
        volume_submit(volume, &all[i].io);
    }
    while (left > 0)
        ck_assert_msg(sim_loop_step(rig.loop), "writes are never answered");
    return went;
}

/* While the blocks of a volume are being counted it must not take, beyond its own
   reservation, what another one was promised; nor may that one be refused. */
START_TEST(a_volume_not_counted_yet_takes_nothing_from_another_s_promise)
{
    for (unsigned first = 0; first < 2; first++) {
        struct volume *full, *other, *greedy;
        uint64_t more;
        int code;

        if (first > 0) {
            tear_down();
            set_up();
        }
        rig_close();
        rig.params.leaf_max = rig.params.internal_max = 6; /* counting takes its time */
        crash_disk_destroy(rig.metadata);
        rig.metadata = crash_disk_create(&rig.rng, 2048 * 4096, NULL);
        rig_open(true);
        create("full", 200, 90, 0);
        create("other", 100, 60, 0);
        create("greedy", 400, 0, 0);
        full = rig_open_volume("full");
        ck_assert_uint_eq(fill_from(full, 0, 90, &code), 90);
        volume_close(full);
        greedy = rig_open_volume("greedy");
        (void)fill_from(greedy, 0, 400, &code);
        ck_assert_int_eq(code, -THIN_E_NO_DATA_SPACE);
        volume_close(greedy);
        ck_assert_uint_eq(nr_free(), 60);
        rig_reopen();
        full = rig_open_volume("full");
        other = rig_open_volume("other");
        more = reserved();
        ck_assert_msg(more > 60, "all was counted before the test began");
        if (first == 0)
            ck_assert_uint_eq(crowd(full, 90, 100), 0);
        ck_assert_uint_eq(crowd(other, 0, 60), 60);
        ck_assert_uint_eq(crowd(full, 90, 100), 0);
        volume_close(full);
        volume_close(other);
    }
}
END_TEST

START_TEST(a_quota_is_its_volume_s_alone)
{
    struct volume *small, *other;
    struct pool_info info;
    int code;

    create("small", 100, 0, 10);
    create("other", 100, 0, 0);
    small = rig_open_volume("small");
    other = rig_open_volume("other");
    ck_assert_uint_eq(fill_from(small, 0, 20, &code), 10);
    ck_assert_int_eq(code, -THIN_E_QUOTA);
    ck_assert_int_eq(thin_error_errno(code), ENOSPC);
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_WRITE);
    ck_assert_uint_eq(fill_from(other, 0, 30, &code), 30);
    /* What is mapped may be written, also anew after a snapshot. */
    ck_assert_uint_eq(fill_from(small, 0, 10, &code), 10);
    rig_snap("small", "one");
    ck_assert_uint_eq(fill_from(small, 0, 10, &code), 10);
    ck_assert_int_eq(fill_from(small, 10, 1, &code), 0);
    ck_assert_int_eq(rig_io(small, VOLUME_DISCARD, 0, 3 * RIG_BLOCK, NULL, 0), 0);
    ck_assert_uint_eq(fill_from(small, 20, 5, &code), 3);
    ck_assert_int_eq(code, -THIN_E_QUOTA);
    volume_close(small);
    rig_settle();
    volume_close(other);
    rig_reopen();
    small = rig_open_volume("small");
    ck_assert_int_eq(fill_from(small, 30, 5, &code), 0);
    rig_ok(pool_volume_set(rig.pool, "small", VOLUME_QUOTA, 12 * RIG_BLOCK, RIG_DONE));
    ck_assert_uint_eq(fill_from(small, 30, 5, &code), 2);
    rig_ok(pool_volume_set(rig.pool, "small", VOLUME_QUOTA, 0, RIG_DONE));
    ck_assert_uint_eq(fill_from(small, 32, 5, &code), 5);
    volume_close(small);
}
END_TEST

/* Random work; at the end what the engine counted is what a new count finds. */
START_TEST(what_is_counted_on_the_way_is_what_a_walk_finds)
{
    struct volume *vols[3];
    char name[8] = "v0", snap[16];
    uint64_t counted;
    uint8_t *big = calloc(1, 20 * RIG_BLOCK);

    for (unsigned i = 0; i < 3; i++) {
        name[1] = (char)('0' + i);
        create(name, 40, 10 + 5 * i, 0);
        vols[i] = rig_open_volume(name);
    }
    for (unsigned i = 0; i < 400; i++) {
        struct volume *v = vols[random_below(&rig.rng, 3)];
        uint64_t at = random_below(&rig.rng, 40) * RIG_BLOCK;
        uint64_t len = (1 + random_below(&rig.rng, 8)) * RIG_BLOCK;
        uint64_t dice = random_below(&rig.rng, 20);
        int r = 0;

        if (at + len > 40 * RIG_BLOCK)
            len = 40 * RIG_BLOCK - at;
        if (dice < 12)
            r = rig_io(v, VOLUME_WRITE, at, dice < 6 ? 4096 : len, big, 0);
        else if (dice < 18)
            r = rig_io(v, VOLUME_DISCARD, at, len, NULL, 0);
        else if (dice == 18 && i % 4 == 0) {
            const char *origin = volume_name(v), *made = snap;

            snprintf(snap, sizeof(snap), "s%u", i);
            r = rig_call(pool_volume_snapshot(rig.pool, &origin, &made, 1, RIG_DONE));
            if (r == 0)
                rig_ok(pool_volume_delete(rig.pool, snap, RIG_DONE));
        }
        ck_assert(r == 0 || r == -THIN_E_NO_DATA_SPACE);
    }
    for (unsigned i = 0; i < 3; i++)
        volume_close(vols[i]);
    rig_settle();
    counted = reserved();
    rig_reopen();
    rig_settle();
    ck_assert_uint_eq(reserved(), counted);
    free(big);
}
END_TEST

START_TEST(over_commit_can_be_limited)
{
    const char *origin = "a", *snap = "s";
    struct pool_config config = rig.params.config;

    config.overcommit_percent = 150; /* of 200 blocks */
    pool_set_config(rig.pool, &config);
    create("a", 200, 0, 0);
    rig_fails(create_async("b", 101, 0, 0, RIG_DONE), LIMIT);
    ck_assert_ptr_nonnull(strstr(rig.err.text, "150 %"));
    create("b", 100, 0, 0);
    rig_fails(pool_volume_resize(rig.pool, "b", 101 * RIG_BLOCK, false, RIG_DONE), LIMIT);
    rig_fails(pool_volume_snapshot(rig.pool, &origin, &snap, 1, RIG_DONE), LIMIT);
    rig_ok(pool_volume_resize(rig.pool, "b", 50 * RIG_BLOCK, true, RIG_DONE));
    rig_settle();
    rig_ok(pool_volume_resize(rig.pool, "b", 100 * RIG_BLOCK, false, RIG_DONE));
    config.overcommit_percent = 0;
    pool_set_config(rig.pool, &config);
    rig_ok(pool_volume_snapshot(rig.pool, &origin, &snap, 1, RIG_DONE));
    /* What is there already stays; a limit below it refuses more. */
    config.overcommit_percent = 10;
    pool_set_config(rig.pool, &config);
    rig_fails(create_async("c", 1, 0, 0, RIG_DONE), LIMIT);
    rig_ok(pool_volume_delete(rig.pool, "s", RIG_DONE));
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("limits");
    TCase *tcase = tcase_create("limits");
    SRunner *runner;
    int failed;

    thin_log_set_level(THIN_LOG_ERROR);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, others_cannot_have_what_is_reserved);
    tcase_add_test(tcase,
                   a_reservation_that_does_not_fit_is_refused_saying_what_is_missing);
    tcase_add_test(tcase, a_snapshot_needs_the_reservation_again);
    tcase_add_test(tcase, what_is_reserved_is_known_after_an_open);
    tcase_add_test(tcase, a_discard_gives_the_promise_back);
    tcase_add_test(tcase, a_held_root_needs_the_reservation_again);
    tcase_add_test(tcase, a_roll_back_to_a_reserved_snapshot_needs_both);
    tcase_add_test(tcase, a_volume_not_counted_yet_takes_nothing_from_another_s_promise);
    tcase_add_test(tcase, a_quota_is_its_volume_s_alone);
    tcase_add_test(tcase, over_commit_can_be_limited);
    tcase_add_test(tcase, what_is_counted_on_the_way_is_what_a_walk_finds);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
