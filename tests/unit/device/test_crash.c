/* The disk that crashes does what its header says, and all of it can be seen to happen. */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/cleanup.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/sim_loop.h"

enum { SIZE = 64 * 1024, SECTORS = SIZE / 512, ROUNDS = 300 };

static uint64_t seed;
static struct thin_random rng;
static struct thin_loop *loop;
static struct crash_disk *disk;
static struct device *dev;

static void
setup(void)
{
    const char *text = getenv("SEED");

    seed = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL);
    printf("SEED=%" PRIu64 "\n", seed);
    random_seed(&rng, seed);
}

static void
begin(void)
{
    loop = sim_loop_create(random_u64(&rng));
    disk = crash_disk_create(&rng, SIZE, NULL);
    dev = crash_disk_open(disk, loop);
}

static void
end(void)
{
    device_close_wait(dev);
    sim_loop_run_until_idle(loop, 0);
    sim_loop_destroy(loop);
    crash_disk_destroy(disk);
}

static void
cut_and_reopen(void)
{
    crash_disk_cut(disk);
    device_close_wait(dev);
    dev = crash_disk_open(disk, loop);
}

struct request {
    struct device_io io;
    struct iovec iov;
    bool done;
    int result;
};

static struct request *order[64];
static unsigned nr_order;

static void
request_done(struct device_io *io, int result)
{
    struct request *q = container_of(io, struct request, io);

    ck_assert(!q->done);
    q->done = true;
    q->result = result;
    if (nr_order < 64)
        order[nr_order++] = q;
}

static void
start(struct request *q, enum device_op op, uint64_t offset, void *buf, uint64_t len,
      unsigned flags)
{
    *q = (struct request){.iov = {buf, len},
                          .io = {.op = op,
                                 .offset = offset,
                                 .len = len,
                                 .flags = flags,
                                 .nr_iov = 1,
                                 .done = request_done}};
    q->io.iov = &q->iov;
    device_submit(dev, &q->io);
}

static void
write_all(int byte, uint64_t offset, uint64_t len, unsigned flags)
{
    static char buf[SIZE];

    memset(buf, byte, len);
    ck_assert_int_eq(device_write_wait(dev, offset, buf, len, flags), 0);
}

/* Counts the sectors of [offset, offset + len) that are full of `byte`. */
static unsigned
count(int byte, uint64_t offset, uint64_t len)
{
    char sector[512];
    unsigned n = 0;

    for (uint64_t at = 0; at < len; at += 512) {
        bool same = true;

        crash_disk_read(disk, offset + at, sector, 512);
        for (unsigned i = 0; i < 512; i++)
            same = same && sector[i] == byte;
        n += same;
    }
    return n;
}

START_TEST(a_flush_protects_what_had_completed)
{
    for (int i = 0; i < ROUNDS; i++) {
        begin();
        write_all(1, 0, 16384, 0);
        ck_assert_int_eq(device_flush_wait(dev), 0);
        ck_assert_uint_eq(crash_disk_nr_kept(disk), 0);
        cut_and_reopen();
        ck_assert_uint_eq(count(1, 0, 16384), 32);
        end();
    }
}
END_TEST

START_TEST(an_unflushed_write_may_stay_vanish_or_tear)
{
    unsigned stayed = 0, vanished = 0, torn = 0;

    for (int i = 0; i < ROUNDS; i++) {
        unsigned n;

        begin();
        write_all(1, 4096, 8192, 0);
        ck_assert_uint_eq(count(1, 4096, 8192), 16);
        cut_and_reopen();
        n = count(1, 4096, 8192);
        ck_assert_uint_eq(n + count(0, 4096, 8192), 16);
        stayed += n == 16;
        vanished += n == 0;
        torn += n > 0 && n < 16;
        end();
    }
    ck_assert_uint_gt(stayed, ROUNDS / 10);
    ck_assert_uint_gt(vanished, ROUNDS / 10);
    ck_assert_uint_gt(torn, ROUNDS / 10);
}
END_TEST

START_TEST(a_flush_does_not_protect_what_runs_beside_it)
{
    static char buf[4096];
    unsigned lost = 0, n = 0;

    memset(buf, 1, sizeof(buf));
    for (int i = 0; i < ROUNDS; i++) {
        struct request w, f;

        begin();
        start(&w, DEVICE_WRITE, 0, buf, sizeof(buf), 0);
        start(&f, DEVICE_FLUSH, 0, NULL, 0, 0);
        sim_loop_run_until_idle(loop, 0);
        ck_assert(w.done && f.done && w.result == 0 && f.result == 0);
        ck_assert_uint_eq(crash_disk_nr_kept(disk), 1);
        cut_and_reopen();
        lost += count(1, 0, 4096) < 8;
        n++;
        end();
    }
    ck_assert_uint_gt(lost, n / 4);
}
END_TEST

START_TEST(a_fua_write_is_durable_and_not_overtaken)
{
    for (int i = 0; i < ROUNDS; i++) {
        begin();
        write_all(1, 0, 8192, 0);
        write_all(2, 2048, 4096, DEVICE_FUA);
        if (i % 2)
            ck_assert_int_eq(device_flush_wait(dev), 0);
        cut_and_reopen();
        ck_assert_uint_eq(count(2, 2048, 4096), 8);
        end();
    }
}
END_TEST

START_TEST(later_writes_may_survive_earlier_ones)
{
    unsigned overtaken = 0;

    for (int i = 0; i < ROUNDS; i++) {
        begin();
        write_all(1, 0, 512, 0);
        write_all(2, 512, 512, 0);
        cut_and_reopen();
        overtaken += count(1, 0, 512) == 0 && count(2, 512, 512) == 1;
        end();
    }
    ck_assert_uint_gt(overtaken, 0);
}
END_TEST

START_TEST(a_failed_flush_may_lose_and_the_next_succeeds)
{
    unsigned lost = 0;

    for (int i = 0; i < ROUNDS; i++) {
        begin();
        write_all(1, 0, 4096, 0);
        crash_disk_fail_nth(disk, 1u << DEVICE_FLUSH, 1, -EIO);
        ck_assert_int_eq(device_flush_wait(dev), -EIO);
        ck_assert(crash_disk_failed(disk));
        ck_assert_int_eq(device_flush_wait(dev), 0);
        cut_and_reopen();
        lost += count(1, 0, 4096) < 8;
        end();
    }
    ck_assert_uint_gt(lost, ROUNDS / 4);
}
END_TEST

START_TEST(writes_in_flight_may_have_happened)
{
    static char buf[4096];
    unsigned there = 0, absent = 0;

    memset(buf, 1, sizeof(buf));
    for (int i = 0; i < ROUNDS; i++) {
        struct request w;
        unsigned n;

        begin();
        start(&w, DEVICE_WRITE, 0, buf, sizeof(buf), DEVICE_FUA);
        cut_and_reopen();
        ck_assert(w.done);
        ck_assert_int_eq(w.result, -THIN_E_LOST);
        n = count(1, 0, 4096);
        there += n == 8;
        absent += n == 0;
        end();
    }
    ck_assert_uint_gt(there, 0);
    ck_assert_uint_gt(absent, 0);
}
END_TEST

START_TEST(requests_complete_in_any_order)
{
    static char buf[8][512];
    unsigned first[8] = {0};

    for (int i = 0; i < ROUNDS; i++) {
        struct request q[8];

        begin();
        nr_order = 0;
        for (unsigned j = 0; j < 8; j++)
            start(&q[j], DEVICE_WRITE, j * 512u, buf[j], 512, 0);
        sim_loop_run_until_idle(loop, 0);
        ck_assert_uint_eq(nr_order, 8);
        first[order[0] - q]++;
        end();
    }
    for (unsigned j = 0; j < 8; j++)
        ck_assert_uint_gt(first[j], 0);
}
END_TEST

START_TEST(random_errors_come_at_their_rate_and_tear)
{
    unsigned failed = 0, torn = 0;

    begin();
    crash_disk_params(disk)->write_error_ppm = 500000;
    for (int i = 1; i <= ROUNDS; i++) {
        static char buf[4096];
        unsigned n;

        memset(buf, 1 + i % 100, sizeof(buf));
        if (device_write_wait(dev, 0, buf, sizeof(buf), 0) == 0)
            continue;
        failed++;
        n = count(1 + i % 100, 0, 4096);
        torn += n > 0 && n < 8;
    }
    ck_assert_uint_gt(failed, ROUNDS / 4);
    ck_assert_uint_lt(failed, ROUNDS * 3 / 4);
    ck_assert_uint_gt(torn, 0);
    end();
}
END_TEST

START_TEST(a_fork_leaves_the_original_alone)
{
    unsigned differs = 0;

    begin();
    write_all(1, 0, 8192, 0);
    for (int i = 0; i < ROUNDS; i++) {
        struct crash_disk *fork = crash_disk_fork_cut(disk, &rng);
        char byte;

        crash_disk_read(fork, 0, &byte, 1);
        differs += byte != 1;
        crash_disk_destroy(fork);
    }
    ck_assert_uint_gt(differs, 0);
    ck_assert_uint_eq(count(1, 0, 8192), 16);
    ck_assert_uint_eq(crash_disk_nr_kept(disk), 1);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    cut_and_reopen();
    ck_assert_uint_eq(count(1, 0, 8192), 16);
    end();
}
END_TEST

START_TEST(a_finished_grow_is_durable_and_one_in_flight_may_be)
{
    unsigned grown = 0;

    for (int i = 0; i < ROUNDS; i++) {
        struct request g;

        begin();
        ck_assert_int_eq(device_grow_wait(dev, 2 * SIZE), 0);
        write_all(1, SIZE, 512, DEVICE_FUA);
        start(&g, DEVICE_GROW, 3 * SIZE, NULL, 0, 0);
        cut_and_reopen();
        ck_assert(dev->size == 2 * SIZE || dev->size == 3 * SIZE);
        grown += dev->size == 3 * SIZE;
        ck_assert_uint_eq(count(1, SIZE, 512), 1);
        end();
    }
    ck_assert(grown > 0 && grown < ROUNDS);
}
END_TEST

START_TEST(no_more_is_kept_than_allowed)
{
    begin();
    crash_disk_params(disk)->max_kept = 4;
    for (int i = 0; i < 10; i++)
        write_all(1 + i, i * 512u, 512, 0);
    ck_assert_uint_eq(crash_disk_nr_kept(disk), 4);
    cut_and_reopen();
    for (int i = 0; i < 6; i++)
        ck_assert_uint_eq(count(1 + i, i * 512u, 512), 1);
    end();
}
END_TEST

START_TEST(a_buffer_changed_in_flight_stops_the_test)
{
    static char buf[512];
    struct request w;

    begin();
    start(&w, DEVICE_WRITE, 0, buf, 512, 0);
    buf[100] = 1;
    sim_loop_run_until_idle(loop, 0);
}
END_TEST

/*
 * Any mixture: after a cut, each sector holds its last protected value or a value of a
 * write that came later, whether completed or not.
 */
struct slot {
    struct request q;
    char buf[8 * 512];
    bool busy;
    uint64_t first, nr;
    uint8_t value;
};

static uint8_t durable[SECTORS];         /* protected for certain */
static bool possible[SECTORS][256];      /* also possible after a cut */
static uint8_t newest[SECTORS];          /* what a read gives */
static uint64_t unflushed_from[SECTORS]; /* number of the last completed write */

static uint64_t nr_ended;

static void
slot_settle(struct slot *s)
{
    s->busy = false;
    nr_ended++;
    for (uint64_t i = s->first; i < s->first + s->nr; i++) {
        newest[i] = s->value;
        unflushed_from[i] = nr_ended;
    }
}

/* A flush has protected everything up to that place; what is in flight stays possible. */
static void
model_protect(uint64_t up_to, const struct slot *slots, unsigned n)
{
    for (unsigned i = 0; i < SECTORS; i++)
        if (unflushed_from[i] > 0 && unflushed_from[i] <= up_to) {
            durable[i] = newest[i];
            memset(possible[i], 0, sizeof(possible[i]));
            unflushed_from[i] = 0;
        }
    for (unsigned j = 0; j < n; j++)
        for (uint64_t i = 0; slots[j].busy && i < slots[j].nr; i++)
            possible[slots[j].first + i][slots[j].value] = true;
}

/* Writes that overlap in flight may end in either order: not this test's question. */
static bool
overlaps_busy(const struct slot *slots, unsigned n, uint64_t first, uint64_t nr)
{
    for (unsigned i = 0; i < n; i++)
        if (slots[i].busy && slots[i].first < first + nr &&
            first < slots[i].first + slots[i].nr)
            return true;
    return false;
}

static void
start_write_slot(struct slot *s, const struct slot *slots, unsigned n)
{
    uint64_t first = random_below(&rng, SECTORS - 8), nr = 1 + random_below(&rng, 8);

    if (overlaps_busy(slots, n, first, nr))
        return;
    s->first = first;
    s->nr = nr;
    s->value = (uint8_t)random_below(&rng, 256);
    memset(s->buf, s->value, nr * 512);
    for (uint64_t i = first; i < first + nr; i++)
        possible[i][s->value] = true;
    start(&s->q, DEVICE_WRITE, first * 512, s->buf, nr * 512, 0);
    s->busy = true;
}

/* One step of the mixture. */
static void
mix(struct slot *slots, unsigned n, struct request *flush, uint64_t *covers)
{
    struct slot *s = &slots[random_below(&rng, n)];

    if (!s->busy && random_below(&rng, 2)) {
        start_write_slot(s, slots, n);
    } else if (flush->done && random_below(&rng, 8) == 0) {
        *covers = nr_ended;
        start(flush, DEVICE_FLUSH, 0, NULL, 0, 0);
    } else {
        sim_loop_step(loop);
    }
    for (unsigned i = 0; i < n; i++)
        if (slots[i].busy && slots[i].q.done)
            slot_settle(&slots[i]);
    if (flush->done && *covers > 0) {
        ck_assert_int_eq(flush->result, 0);
        model_protect(*covers, slots, n);
        *covers = 0;
    }
}

START_TEST(each_sector_is_old_or_new)
{
    enum { N = 6 };
    static struct slot slots[N];

    for (int round = 0; round < ROUNDS; round++) {
        struct request flush = {.done = true};
        uint64_t covers = 0;

        begin();
        memset(durable, 0, sizeof(durable));
        memset(possible, 0, sizeof(possible));
        memset(newest, 0, sizeof(newest));
        memset(unflushed_from, 0, sizeof(unflushed_from));
        memset(slots, 0, sizeof(slots));
        nr_ended = 0;
        for (uint64_t steps = 20 + random_below(&rng, 200); steps > 0; steps--)
            mix(slots, N, &flush, &covers);
        cut_and_reopen();
        for (unsigned i = 0; i < SECTORS; i++) {
            uint8_t got[512];

            crash_disk_read(disk, i * 512u, got, 512);
            ck_assert_mem_eq(got, got + 1, 511);
            ck_assert_msg(got[0] == durable[i] || possible[i][got[0]],
                          "sector %u holds %u, round %d", i, got[0], round);
        }
        end();
    }
}
END_TEST

START_TEST(crashes_are_cheap)
{
    struct timespec a, b;
    double s;
    enum { N = 2000 };

    begin();
    write_all(1, 0, SIZE, DEVICE_FUA);
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < N; i++) {
        for (unsigned j = 0; j < 10; j++)
            write_all(i & 0x7f, 4096 * j, 4096, 0);
        if (i % 3 == 0)
            ck_assert_int_eq(device_flush_wait(dev), 0);
        cut_and_reopen();
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    s = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9;
    printf("%.0f crashes of ten writes a second\n", N / s);
    end();
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("crash");
    TCase *tc = tcase_create("crash");
    SRunner *sr;
    int failed;

    setup();
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_flush_protects_what_had_completed);
    tcase_add_test(tc, an_unflushed_write_may_stay_vanish_or_tear);
    tcase_add_test(tc, a_flush_does_not_protect_what_runs_beside_it);
    tcase_add_test(tc, a_fua_write_is_durable_and_not_overtaken);
    tcase_add_test(tc, later_writes_may_survive_earlier_ones);
    tcase_add_test(tc, a_failed_flush_may_lose_and_the_next_succeeds);
    tcase_add_test(tc, writes_in_flight_may_have_happened);
    tcase_add_test(tc, requests_complete_in_any_order);
    tcase_add_test(tc, random_errors_come_at_their_rate_and_tear);
    tcase_add_test(tc, a_fork_leaves_the_original_alone);
    tcase_add_test(tc, a_finished_grow_is_durable_and_one_in_flight_may_be);
    tcase_add_test(tc, no_more_is_kept_than_allowed);
    tcase_add_test_raise_signal(tc, a_buffer_changed_in_flight_stops_the_test, SIGABRT);
    tcase_add_test(tc, each_sector_is_old_or_new);
    tcase_add_test(tc, crashes_are_cheap);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
