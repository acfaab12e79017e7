/*
 * The power goes between a pass-down and every request around it. A small, nearly full
 * pool frees blocks (discards, a snapshot's delete), passes them down and uses them again,
 * on disks that end their requests in any order; all that is asked of the disks is written
 * down. Then the power is cut before each request near a pass-down: of what no flush
 * protects, all is kept or lost, or just one request is kept or lost, and what a discard
 * leaves behind is rubbish. Each of these disks is recounted and opened, and every block
 * must hold what was promised.
 *
 * SEED= begins elsewhere; THIN_TEST_LONG: more seeds.
 */
#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "tests/lib/check_codes.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/device_log.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/recount.h"
#include "tests/lib/sim_loop.h"

#define BLOCK       65536u
#define DATA_BLOCKS 24u
#define META_SIZE   (1u << 20)
#define VBLOCKS     20u
#define FULL        18u /* virtual blocks that are mapped at the most */
#define ROUNDS      6u
#define PER_ROUND   4u /* discards, and writes, of one round */
#define EVENTS_MAX  64u
#define NEAR        4u /* a cut so many requests before or after a discard is tried */
#define SEEDS       1u
#define SEEDS_LONG  60u
#define STEPS_MAX   1000000u

/* What a virtual block was made to hold, in order. Places are lengths of the log. */
struct event {
    uint64_t stamp; /* 0: zeros */
    size_t begun, acked, durable;
};

struct block {
    struct event events[EVENTS_MAX];
    unsigned nr;
    bool mapped, busy;
};

static struct block blocks[VBLOCKS];
static struct thin_random rng;
static struct pool_rig rig;
static struct volume *vol;
static struct device_log *log_;
static uint64_t next_stamp;
static uint64_t snap_stamps[VBLOCKS];
static size_t snap_begun, snap_acked, delete_begun, delete_acked, set_up_ends;
static uint64_t nr_cuts, nr_discards,
    nr_beside; /* beside: a discard with open neighbours */

static unsigned char images[2][DATA_BLOCKS * BLOCK]; /* as large as the larger */
static unsigned char base[2][DATA_BLOCKS * BLOCK];
static const uint64_t sizes[2] = {(uint64_t)DATA_BLOCKS * BLOCK, META_SIZE};
static unsigned char buf[VBLOCKS][BLOCK], back[BLOCK];

static void
stamp(unsigned char *bytes, uint64_t value)
{
    for (unsigned at = 0; at < BLOCK; at += 8)
        memcpy(bytes + at, &value, 8);
}

/* ---- the work ---------------------------------------------------------------------------- */

struct work {
    struct rig_io io;
    unsigned v;
    struct event *event; /* NULL: a flush */
    size_t begun;
};

static struct work works[2 * PER_ROUND + 2];
static unsigned nr_works;

static void
begin_change(unsigned v, enum volume_op op)
{
    struct work *w = &works[nr_works++];
    struct block *b = &blocks[v];

    ck_assert_uint_lt(b->nr, EVENTS_MAX);
    w->v = v;
    w->event = &b->events[b->nr++];
    *w->event = (struct event){.stamp = op == VOLUME_WRITE ? next_stamp++ : 0,
                               .begun = device_log_length(log_),
                               .acked = SIZE_MAX,
                               .durable = SIZE_MAX};
    b->busy = true;
    b->mapped = op == VOLUME_WRITE;
    if (op == VOLUME_WRITE)
        stamp(buf[v], w->event->stamp);
    rig_io_start(&rig, vol, &w->io, op, 0, (uint64_t)v * BLOCK,
                 op == VOLUME_WRITE ? buf[v] : NULL, BLOCK);
}

static void
begin_flush(void)
{
    struct work *w = &works[nr_works++];

    w->event = NULL;
    w->begun = device_log_length(log_);
    rig_io_start(&rig, vol, &w->io, VOLUME_FLUSH, 0, 0, NULL, 0);
}

static void
ended(struct work *w)
{
    size_t now = device_log_length(log_);

    ck_assert_msg(w->io.result == 0, "a request: %s", thin_error_name(w->io.result));
    if (w->event) {
        w->event->acked = now;
        blocks[w->v].busy = false;
        return;
    }
    /* It covers what was answered before it began. */
    for (unsigned v = 0; v < VBLOCKS; v++)
        for (unsigned i = 0; i < blocks[v].nr; i++) {
            struct event *e = &blocks[v].events[i];

            if (e->acked < w->begun && e->durable == SIZE_MAX)
                e->durable = now;
        }
}

static void
end_all(void)
{
    bool told[sizeof(works) / sizeof(works[0])] = {false};

    for (unsigned left = nr_works, steps = 0; left > 0; steps++) {
        ck_assert_uint_lt(steps, STEPS_MAX);
        ck_assert_msg(sim_loop_step(rig.loop), "a request is never answered");
        for (unsigned i = 0; i < nr_works; i++)
            if (works[i].io.done && !told[i]) {
                told[i] = true;
                left--;
                ended(&works[i]);
            }
    }
    nr_works = 0;
}

/* One that may be changed: mapped or not. */
static unsigned
pick(bool mapped)
{
    for (unsigned tries = 0; tries < 1000; tries++) {
        unsigned v = (unsigned)random_below(&rng, VBLOCKS);

        if (!blocks[v].busy && blocks[v].mapped == mapped)
            return v;
    }
    return VBLOCKS;
}

static unsigned
nr_mapped(void)
{
    unsigned nr = 0;

    for (unsigned v = 0; v < VBLOCKS; v++)
        nr += blocks[v].mapped;
    return nr;
}

/* Frees some blocks, and beside that writes where the room for it is only coming back. */
static void
work_round(void)
{
    for (unsigned i = 0; i < PER_ROUND; i++) {
        unsigned v = pick(true);

        if (v < VBLOCKS && random_below(&rng, 3))
            begin_change(v, VOLUME_DISCARD);
        else if (v < VBLOCKS)
            begin_change(v, VOLUME_WRITE);
    }
    begin_flush();
    for (unsigned i = 0; i < PER_ROUND; i++) {
        unsigned v = pick(false);

        if (v < VBLOCKS && nr_mapped() < FULL)
            begin_change(v, VOLUME_WRITE);
    }
    if (random_below(&rng, 2))
        begin_flush();
    end_all();
}

static void
flush_all(void)
{
    begin_flush();
    end_all();
}

static void
small_caches(struct pool_params *params)
{
    params->config.metadata_cache_blocks = 64;
    params->config.mapping_cache_pages = 4;
    params->config.commit_interval_ms = 20;
}

static void
run_work(uint64_t seed)
{
    /* Slow, so that pass-downs reach into the next commit. */
    struct crash_params slow = {.discard = CRASH_DISCARD_RUBBISH,
                                .latency_min_ns = 10000,
                                .latency_max_ns = 8000000};
    struct crash_disk *disks[2];
    struct pool_params params;
    struct device *data, *meta;

    random_seed(&rng, seed);
    memset(blocks, 0, sizeof(blocks));
    next_stamp = 1;
    log_ = device_log_create();
    rig.loop = sim_loop_create(seed);
    disks[0] = crash_disk_create(&rng, sizes[0], &slow);
    disks[1] = crash_disk_create(&rng, sizes[1], NULL);
    data = device_log_open(log_, crash_disk_open(disks[0], rig.loop));
    meta = device_log_open(log_, crash_disk_open(disks[1], rig.loop));
    rig_params(&rig, &params, data, meta);
    small_caches(&params);
    params.format = true;
    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_create(&rig, "vol", (uint64_t)VBLOCKS * BLOCK));
    ck_ok(rig_volume(&rig, "vol", &vol));
    while (nr_mapped() < FULL / 2) {
        begin_change(pick(false), VOLUME_WRITE);
        end_all();
    }
    flush_all();
    set_up_ends = device_log_length(log_);

    snap_begun = set_up_ends;
    for (unsigned v = 0; v < VBLOCKS; v++)
        snap_stamps[v] = blocks[v].nr ? blocks[v].events[blocks[v].nr - 1].stamp : 0;
    ck_ok(rig_snapshot(&rig, "vol", "snap"));
    snap_acked = device_log_length(log_);
    for (unsigned i = 0; i < 3; i++) {
        begin_change(pick(true), VOLUME_WRITE); /* breaks sharing */
        end_all();
    }
    delete_begun = device_log_length(log_);
    ck_ok(rig_delete(&rig, "snap"));
    delete_acked = device_log_length(log_);
    for (unsigned i = 0; i < ROUNDS; i++)
        work_round();
    flush_all();
    volume_close(vol);
    ck_assert_int_eq(rig_close(&rig, true), 0);
    sim_loop_destroy(rig.loop);
    crash_disk_destroy(disks[0]);
    crash_disk_destroy(disks[1]);
}

/* ---- a disk after the cut ----------------------------------------------------------------- */

static bool
changes(const struct device_log_entry *e)
{
    return e->op == DEVICE_WRITE || e->op == DEVICE_WRITE_ZEROES ||
           e->op == DEVICE_DISCARD;
}

/* Had it ended when request `k` was made? */
static bool
has_ended(const struct device_log_entry *e, size_t k)
{
    size_t delivered =
        k < device_log_length(log_) ? device_log_get(log_, k)->submitted_after : SIZE_MAX;

    return e->completed_as > 0 && e->completed_as <= delivered;
}

static bool
is_protected(size_t i, size_t k)
{
    const struct device_log_entry *e = device_log_get(log_, i), *f;

    for (size_t j = i; j < k; j++) {
        f = device_log_get(log_, j);
        if (f->source == e->source && has_ended(f, k) && f->result == 0 &&
            device_log_covers(log_, j, i))
            return true;
    }
    return false;
}

static void
apply(size_t i)
{
    const struct device_log_entry *e = device_log_get(log_, i);
    unsigned char *at = images[e->source] + e->offset;

    ck_assert_uint_lt(e->source, 2);
    ck_assert_uint_le(e->offset + e->len, sizes[e->source]);
    if (e->op == DEVICE_WRITE)
        memcpy(at, e->data, e->len);
    else if (e->op == DEVICE_WRITE_ZEROES)
        memset(at, 0, e->len);
    else
        memset(at, 0xd5, e->len);
}

static struct device *
device_of(unsigned source)
{
    struct device *dev;

    ck_assert_int_eq(device_mem_open(rig.loop, sizes[source], &dev), 0);
    ck_assert_int_eq(device_write_wait(dev, 0, images[source], sizes[source], 0), 0);
    return dev;
}

static void
check_block(unsigned v, size_t k, const char *how, size_t which)
{
    const struct block *b = &blocks[v];
    unsigned from = 0;
    uint64_t value;
    bool good = false;

    memcpy(&value, back, 8);
    for (unsigned at = 0; at < BLOCK; at += 512)
        ck_assert_msg(memcmp(back + at, &value, 8) == 0,
                      "cut before request %zu, %s %zu: block %u is torn at %u", k, how,
                      which, v, at);
    for (unsigned i = 0; i < b->nr; i++)
        if (b->events[i].durable <= k)
            from = i;
    if (b->nr == 0 || b->events[from].durable > k)
        good = value == 0;
    for (unsigned i = from; i < b->nr; i++)
        if (b->events[i].begun <= k && b->events[i].stamp == value)
            good = true;
    ck_assert_msg(good,
                  "cut before request %zu, %s %zu: block %u holds %016" PRIx64
                  ", which it cannot",
                  k, how, which, v, value);
}

static void
open_and_check(size_t k, const char *how, size_t which)
{
    struct pool_params params;
    struct recount rc;
    struct device *data, *meta;
    struct volume *volume;
    int r;

    nr_cuts++;
    rig.loop = sim_loop_create(k);
    data = device_of(0);
    meta = device_of(1);
    ck_assert_msg(recount_image(meta, NULL, &rc) == 0,
                  "cut before request %zu, %s %zu: %s", k, how, which, rc.why);
    rig_params(&rig, &params, data, meta);
    small_caches(&params);
    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_volume(&rig, "vol", &volume));
    for (unsigned v = 0; v < VBLOCKS; v++) {
        ck_ok(rig_read(&rig, volume, (uint64_t)v * BLOCK, back, BLOCK));
        check_block(v, k, how, which);
    }
    volume_close(volume);
    r = rig_volume(&rig, "snap", &volume);
    if (r < 0) {
        ck_assert_msg(snap_acked > k || delete_begun <= k,
                      "cut before request %zu, %s %zu: the snapshot is gone", k, how,
                      which);
    } else {
        ck_assert_msg(snap_begun <= k && delete_acked > k,
                      "cut before request %zu, %s %zu: the deleted snapshot is back", k,
                      how, which);
        for (unsigned v = 0; v < VBLOCKS; v++) {
            uint64_t value;

            ck_ok(rig_read(&rig, volume, (uint64_t)v * BLOCK, back, BLOCK));
            memcpy(&value, back, 8);
            ck_assert_msg(value == snap_stamps[v],
                          "cut before request %zu, %s %zu: block %u of the snapshot", k,
                          how, which, v);
        }
        volume_close(volume);
    }
    ck_assert_int_eq(rig_close(&rig, true), 0);
    sim_loop_destroy(rig.loop);
}

enum keep { KEEP_NONE, KEEP_ALL, KEEP_DISCARDS, KEEP_WRITES, KEEP_ONLY, KEEP_ALL_BUT };

static const char *const keep_names[] = {
    "nothing kept,",     "all kept,",    "only discards kept,",
    "no discards kept,", "only kept is", "all kept but",
};

static void
try_cut(size_t k, const bool *open, enum keep keep, size_t which)
{
    memcpy(images, base, sizeof(images));
    for (size_t i = set_up_ends; i < k; i++) {
        const struct device_log_entry *e = device_log_get(log_, i);
        bool discard = e->op == DEVICE_DISCARD, kept = true;

        if (!changes(e))
            continue;
        if (open[i])
            kept = keep == KEEP_ALL || (keep == KEEP_DISCARDS && discard) ||
                   (keep == KEEP_WRITES && !discard) ||
                   (keep == KEEP_ONLY && i == which) ||
                   (keep == KEEP_ALL_BUT && i != which);
        if (kept)
            apply(i);
    }
    open_and_check(k, keep_names[keep], which);
}

static bool
is_near_a_discard(size_t k)
{
    size_t length = device_log_length(log_);

    for (size_t i = k > NEAR ? k - NEAR : 0; i < k + NEAR && i < length; i++)
        if (device_log_get(log_, i)->op == DEVICE_DISCARD)
            return true;
    return false;
}

/* While a block is passed down, nobody reads it or writes to it: the disk may do the
   discard at any moment until it ends. */
static void
check_alone(void)
{
    size_t length = device_log_length(log_);

    for (size_t i = 0; i < length; i++) {
        const struct device_log_entry *d = device_log_get(log_, i);

        if (d->op != DEVICE_DISCARD)
            continue;
        for (size_t j = i + 1; j < length; j++) {
            const struct device_log_entry *e = device_log_get(log_, j);

            if (e->source == d->source && e->submitted_after < d->completed_as &&
                (changes(e) || e->op == DEVICE_READ) && e->offset < d->offset + d->len &&
                e->offset + e->len > d->offset)
                ck_abort_msg("request %zu meets pass-down %zu in flight", j, i);
        }
    }
}

static void
cut_everywhere(void)
{
    size_t length = device_log_length(log_);
    bool *open = calloc(length, sizeof(*open));

    ck_assert_ptr_nonnull(open);
    memset(images, 0, sizeof(images));
    for (size_t i = 0; i < set_up_ends; i++)
        if (changes(device_log_get(log_, i)))
            apply(i);
    memcpy(base, images, sizeof(base));
    for (size_t i = 0; i < length; i++)
        nr_discards += device_log_get(log_, i)->op == DEVICE_DISCARD;
    for (size_t k = set_up_ends; k <= length; k++) {
        bool discard = false;
        unsigned others = 0;

        for (size_t i = set_up_ends; i < k; i++) {
            const struct device_log_entry *e = device_log_get(log_, i);

            open[i] = changes(e) && !is_protected(i, k);
            discard = discard || (open[i] && e->op == DEVICE_DISCARD);
            others += open[i] && e->op != DEVICE_DISCARD;
        }
        nr_beside += discard && others;
        if (!discard && !is_near_a_discard(k))
            continue;
        for (enum keep keep = KEEP_NONE; keep <= KEEP_WRITES; keep++)
            try_cut(k, open, keep, 0);
        for (size_t i = set_up_ends; i < k; i++)
            if (open[i]) {
                try_cut(k, open, KEEP_ONLY, i);
                try_cut(k, open, KEEP_ALL_BUT, i);
            }
    }
    free(open);
}

START_TEST(nothing_is_lost_between_a_pass_down_and_its_neighbours)
{
    const char *text = getenv("SEED");
    uint64_t seed = (text ? strtoull(text, NULL, 0) : 2) + (uint64_t)_i;

    printf("SEED=%" PRIu64 "\n", seed);
    fflush(stdout);
    nr_cuts = nr_discards = nr_beside = 0;
    run_work(seed);
    check_alone();
    cut_everywhere();
    printf("%zu requests, %" PRIu64 " pass-downs, %" PRIu64
           " moments with one beside unflushed writes, %" PRIu64 " disks\n",
           device_log_length(log_), nr_discards, nr_beside, nr_cuts);
    ck_assert_uint_ge(nr_discards, 5);
    ck_assert_uint_ge(nr_beside, 5);
    ck_assert_uint_ge(nr_cuts, 200);
    device_log_destroy(log_);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("crash_passdown");
    TCase *tc = tcase_create("cuts");
    SRunner *sr;
    int failed;

    thin_log_set_level(THIN_LOG_ERROR);
    tcase_set_timeout(tc, 250);
    tcase_add_loop_test(tc, nothing_is_lost_between_a_pass_down_and_its_neighbours, 0,
                        getenv("THIN_TEST_LONG") ? (int)SEEDS_LONG : (int)SEEDS);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
