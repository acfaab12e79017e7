/*
 * The engine alone, without network: inserts and lookups in the mapping tree, a snapshot
 * and an open of a pool with many mappings, after a clean stop and after a kill, the
 * memory that mappings take, and the longest step on the home loop under each kind of
 * work (processor time of one callback; what the disk takes is not in it).
 *
 *     engine [DIR [MAPPINGS]]      default: $TMPDIR or /tmp, 16777216
 *
 * Files are sparse and in the page cache: "cold" means not in the engine's cache.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/base/poll_loop.h"
#include "core/base/random.h"
#include "core/metadata/metadata.h"
#include "core/pool/pool.h"
#include "tests/lib/step_loop.h"

#define BLOCK         65536u
#define METADATA_SIZE (2ull << 30)
#define STEP_LIMIT_NS 200000u
#define DEPTH         32u
#define GAP           5u /* each fifth virtual block of the big volume is a hole */

static struct thin_loop *inner, *loop;
static struct thin_random rng;
static struct thin_error err;
static char data_path[4096], metadata_path[4096];
static uint64_t nr_mappings, nr_virtual, nr_data;
static uint32_t big_id;
static struct pool *pool;
static struct volume *volume;

#define CHECK(r, what)                                                                 \
    do {                                                                               \
        int check_r = (r);                                                             \
        if (check_r < 0) {                                                             \
            fprintf(stderr, "engine: %s: %s\n", what, thin_error_text(&err, check_r)); \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

static double
seconds_since(uint64_t began_ns)
{
    return (double)(loop_now_ns(inner) - began_ns) / 1e9;
}

static uint64_t
gap_key(uint64_t i) /* the i-th mapped block of the big volume */
{
    return i / (GAP - 1) * GAP + i % (GAP - 1);
}

/* ---- files ------------------------------------------------------------------------------ */

static struct device *
open_file(struct thin_loop *on, const char *path, enum device_file_way way)
{
    const struct device_file_params params = {.path = path, .way = way};
    struct device *dev = NULL;

    CHECK(device_file_open(on, &params, &dev, &err), path);
    return dev;
}

/* The pool's devices, with the processor time of the calls into them: reads and writes that
   the kernel does at once, from and to its page cache. */
static struct device_ops timed_ops;
static void (*untimed_submit)(struct device *dev, struct device_io *io);
static uint64_t io_ns;

static uint64_t
thread_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

static void
timed_submit(struct device *dev, struct device_io *io)
{
    uint64_t began = thread_ns();

    untimed_submit(dev, io);
    io_ns += thread_ns() - began;
}

static struct device *
open_timed(const char *path)
{
    struct device *dev = open_file(loop, path, DEVICE_WAY_AUTO);

    timed_ops = *dev->ops;
    if (timed_ops.submit != timed_submit)
        untimed_submit = timed_ops.submit;
    timed_ops.submit = timed_submit;
    dev->ops = &timed_ops;
    return dev;
}

static void
make_file(const char *path, uint64_t size)
{
    FILE *f = fopen(path, "w");

    if (!f || ftruncate(fileno(f), (off_t)size) < 0 || fclose(f) != 0) {
        perror(path);
        exit(1);
    }
}

static uint64_t
resident_bytes(void)
{
    AUTO_FILE FILE *f = fopen("/proc/self/statm", "r");
    unsigned long long size, resident;

    if (!f || fscanf(f, "%llu %llu", &size, &resident) != 2)
        return 0;
    return (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* ---- the mapping tree alone --------------------------------------------------------------- */

static struct device *md_dev;
static struct metadata *md;
static dblock_t next_data;

static void
metadata_up(uint32_t frames)
{
    struct metadata_params params = {.cache_blocks = frames, .waiting = true};

    md_dev = open_file(inner, metadata_path, DEVICE_WAY_INLINE);
    params.dev = md_dev;
    CHECK(metadata_create(&params, &md), "metadata");
    CHECK(metadata_load(md, &err), "load");
}

static void
metadata_down(void)
{
    CHECK(metadata_commit_wait(md, NULL, &err), "commit");
    metadata_destroy(md);
    device_close_wait(md_dev);
}

static int
insert_once(vblock_t v)
{
    uint64_t value, len;
    dblock_t b, next;
    int r = metadata_find_free(md, next_data, nr_data, 1, &b, &len, &next, &err);

    next_data = next;
    if (r < 0 || len == 0)
        return r < 0 ? r : 1;
    metadata_op_begin(md, TM_NORMAL);
    r = metadata_take_data(md, b, &err);
    if (r == 0)
        r = metadata_insert(md, big_id, v, b, &value, &err);
    if (r < 0) {
        metadata_op_undo(md);
        return r;
    }
    r = metadata_op_end(md, &err);
    next_data = b + (r == 0);
    return r;
}

static void
insert(vblock_t v)
{
    for (;;) {
        int r = insert_once(v);

        if (r == 0)
            return;
        if (r == -THIN_E_NEED_COMMIT || r == -THIN_E_CACHE_FULL)
            r = metadata_commit_wait(md, NULL, &err);
        CHECK(r, "insert");
    }
}

static double
rate_of_inserts(uint64_t nr, bool gaps)
{
    uint64_t began = loop_now_ns(inner);

    for (uint64_t i = 0; i < nr; i++)
        insert(gaps ? random_below(&rng, nr_mappings / (GAP - 1)) * GAP + GAP - 1
                    : gap_key(i));
    return (double)nr / seconds_since(began);
}

static double
rate_of_lookups(uint64_t nr)
{
    uint64_t began = loop_now_ns(inner), value;
    bool found;

    for (uint64_t i = 0; i < nr; i++)
        CHECK(metadata_lookup(md, big_id, random_below(&rng, nr_virtual), &value, &found,
                              &err),
              "lookup");
    return (double)nr / seconds_since(began);
}

static void
bench_tree(void)
{
    struct metadata_space space;
    uint64_t reserve, before = resident_bytes();
    uint64_t few = nr_mappings / 32;

    metadata_up((uint32_t)(METADATA_SIZE / METADATA_BLOCK_SIZE / 2));
    printf("%-44s %12.0f /s\n", "inserts, in order, hot",
           rate_of_inserts(nr_mappings, false));
    metadata_own_space(md, &space, &reserve);
    printf("%-44s %12.2f MiB on disk\n", "a million mappings, made in order",
           (double)(space.nr_blocks - space.nr_free - reserve) / 256.0 /
               ((double)nr_mappings / 1e6));
    printf("%-44s %12.0f /s\n", "inserts, at random, hot", rate_of_inserts(few, true));
    printf("%-44s %12.0f /s\n", "lookups, at random, hot", rate_of_lookups(few * 4));
    printf("%-44s %12.2f MiB\n", "memory to hold a million mappings' tree",
           (double)(resident_bytes() - before) / 1048576.0 / ((double)nr_mappings / 1e6));
    metadata_down();
    metadata_up(4096);
    printf("%-44s %12.0f /s\n", "inserts, at random, cold (16 MiB of cache)",
           rate_of_inserts(few / 4, true));
    printf("%-44s %12.0f /s\n", "lookups, at random, cold", rate_of_lookups(few / 2));
    metadata_down();
}

/* ---- the pool ------------------------------------------------------------------------------- */

static bool told;
static int outcome;

static void
done(void *arg, int result, const struct thin_error *words)
{
    (void)arg;
    told = true;
    outcome = result;
    if (words)
        err = *words;
}

static void
opened(void *arg, struct pool *ret_pool, int result, const struct thin_error *words)
{
    pool = ret_pool;
    done(arg, result, words);
}

static void
volume_opened(void *arg, struct volume *ret_volume, int result,
              const struct thin_error *words)
{
    volume = ret_volume;
    done(arg, result, words);
}

static void
wait_told(const char *what)
{
    while (!told)
        CHECK(loop_run_once(loop), what);
    CHECK(outcome, what);
}

#define DONE ((struct pool_done){done, NULL})
#define CALL(what, call)                       \
    do {                                       \
        struct step_cost call_began;           \
        told = false;                          \
        call_began = step_loop_begin(loop);    \
        call;                                  \
        step_loop_end(loop, call_began, what); \
        wait_told(what);                       \
    } while (0)

static void
pool_up(bool format)
{
    struct pool_params params = {.loop = loop, .name = "bench", .format = format};

    params.data = open_timed(data_path);
    params.metadata = open_timed(metadata_path);
    pool_config_default(&params.config);
    params.seed = 1;
    params.data_block_sectors = BLOCK / 512;
    params.wall_clock_s = 1700000000;
    CALL("open", pool_open(&params, opened, NULL));
}

static void
pool_down(void)
{
    CALL("close", pool_close(pool, false, DONE));
}

/* ---- work on the pool ------------------------------------------------------------------------- */

struct request {
    struct volume_io io;
    uint64_t began_ns;
    struct iovec iov;
    struct volume_extent extents[64];
};

static struct request requests[DEPTH];
static uint8_t buffer[4096];
static uint64_t nr_left, nr_running;
static enum volume_op op;
static uint64_t (*place)(void);

#define LATENCIES_MAX 50000u
static uint64_t latencies[LATENCIES_MAX];
static unsigned nr_latencies;

static void request_done(struct volume_io *io, int result);

static void
request_start(struct request *rq)
{
    nr_left--;
    nr_running++;
    memset(&rq->io, 0, sizeof(rq->io));
    rq->iov = (struct iovec){.iov_base = buffer, .iov_len = sizeof(buffer)};
    rq->io.op = op;
    rq->io.offset = place();
    rq->io.len = op == VOLUME_DISCARD ? BLOCK : sizeof(buffer);
    if (op == VOLUME_READ || op == VOLUME_WRITE) {
        rq->io.iov = &rq->iov;
        rq->io.nr_iov = 1;
    }
    rq->io.done = request_done;
    rq->began_ns = loop_now_ns(inner);
    volume_submit(volume, &rq->io);
}

static void
request_done(struct volume_io *io, int result)
{
    struct request *rq = container_of(io, struct request, io);

    nr_running--;
    CHECK(result, "request");
    if (nr_latencies < LATENCIES_MAX)
        latencies[nr_latencies++] = loop_now_ns(inner) - rq->began_ns;
    if (nr_left)
        request_start(rq);
}

static int
compare_latencies(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* Of the requests since the last call: so many of a thousand were answered sooner. */
static void
tell_latencies(const char *what)
{
    qsort(latencies, nr_latencies, sizeof(latencies[0]), compare_latencies);
    if (nr_latencies)
        printf("%-44s %8.0f us, p99 %.0f us, longest %.0f us\n", what,
               (double)latencies[nr_latencies / 2] / 1e3,
               (double)latencies[nr_latencies / 100 * 99] / 1e3,
               (double)latencies[nr_latencies - 1] / 1e3);
    nr_latencies = 0;
}

static bool committing;

/* One commit after the other, as long as `committing`. */
static void
commit_again(void *arg, int result, const struct thin_error *words)
{
    (void)arg;
    (void)words;
    CHECK(result, "commit");
    if (committing)
        pool_commit(pool, (struct pool_done){commit_again, NULL});
}

static void
run_requests(enum volume_op an_op, uint64_t nr, uint64_t (*a_place)(void))
{
    op = an_op;
    place = a_place;
    nr_left = nr;
    for (unsigned i = 0; i < DEPTH && nr_left; i++)
        request_start(&requests[i]);
    while (nr_running)
        CHECK(loop_run_once(loop), "requests");
}

static void
run_one(enum volume_op an_op, uint64_t offset, uint64_t len)
{
    struct request *rq = &requests[0];

    memset(&rq->io, 0, sizeof(rq->io));
    rq->io.op = an_op;
    rq->io.offset = offset;
    rq->io.len = len;
    rq->io.extents = rq->extents;
    rq->io.max_extents = 64;
    rq->io.done = request_done;
    nr_left = 0;
    nr_running = 1;
    volume_submit(volume, &rq->io);
    while (nr_running)
        CHECK(loop_run_once(loop), "request");
}

static uint64_t
any_mapped(void)
{
    return gap_key(random_below(&rng, nr_mappings)) * BLOCK;
}

static uint64_t
any_gap(void)
{
    return (random_below(&rng, nr_mappings / (GAP - 1)) * GAP + GAP - 1) * BLOCK;
}

static void
volume_up(const char *name)
{
    CALL("open a volume", pool_volume_open(pool, name, false, volume_opened, NULL));
}

static bool woken;

static void
wake(struct thin_timer *timer)
{
    (void)timer;
    woken = true;
}

/* Until the pool's background work has nothing left: the last commit included. */
static void
settle(uint64_t free_blocks)
{
    struct thin_timer timer = {.fire = wake};
    struct pool_info info;
    uint64_t txn = 0;

    for (;;) {
        woken = false;
        CHECK(loop_timer_set(inner, &timer, loop_now_ns(inner) + NS_PER_SEC / 10),
              "settle");
        while (!woken)
            CHECK(loop_run_once(loop), "settle");
        pool_get_info(pool, &info);
        if (info.data_blocks_free >= free_blocks && info.txn == txn)
            return;
        txn = info.txn;
        CALL("commit", pool_commit(pool, DONE));
    }
}

/*
 * What this machine takes away from a thread and yet counts as its processor time
 * (interrupts, other guests of the same processor): how often in a second of processor
 * time a spin of 20 us lasts more than the limit. So many long steps are no steps of ours.
 */
static double stolen_per_second;

static void
measure_machine(void)
{
    enum { SPINS = 100000, SPIN_NS = 20000 };
    uint64_t nr_long = 0, longest = 0, used = 0;

    for (unsigned i = 0; i < SPINS; i++) {
        struct step_cost began = step_loop_begin(loop), now;

        do
            now = step_loop_begin(loop);
        while (now.used_ns - began.used_ns < SPIN_NS);
        used += now.used_ns - began.used_ns;
        nr_long += now.used_ns - began.used_ns > STEP_LIMIT_NS;
        longest = max_u64(longest, now.used_ns - began.used_ns);
    }
    stolen_per_second = (double)nr_long / ((double)used / 1e9);
    printf("the machine: of %u spins of %u us %" PRIu64 " took over %u us, the longest "
           "%.0f us\n",
           SPINS, SPIN_NS / 1000, nr_long, STEP_LIMIT_NS / 1000, (double)longest / 1e3);
}

static uint64_t work_began;

static void
work_begin(void)
{
    work_began = loop_now_ns(inner);
    step_loop_reset(loop);
}

static double
us(uint64_t ns)
{
    return (double)ns / 1e3;
}

/* Which, of those that took long: since the pool was opened. */
static void
tell_steps(const struct step_loop_stats *steps)
{
    struct pool_step_info infos[POOL_STEPS_MAX];
    unsigned nr = pool ? pool_get_steps(pool, infos, POOL_STEPS_MAX) : 0;

    for (unsigned i = 0; i < STEP_LOOP_LONG_MAX && steps->longs[i].fn; i++) {
        const struct step_cost *longest = &steps->longs[i].longest;

        if (steps->longs[i].is_word)
            printf("    call to %s", (const char *)steps->longs[i].fn);
        else
            printf("    callback work_begin%+td",
                   (intptr_t)steps->longs[i].fn - (intptr_t)work_begin);
        printf(" %" PRIu64
               " times, longest %.0f us, %.0f of them in calls for I/O (%.0f on "
               "the clock, %" PRIu64 " pages first touched)\n",
               steps->longs[i].nr, us(longest->used_ns), us(longest->io_ns),
               us(longest->took_ns), longest->faults);
    }
    for (unsigned i = 0; i < nr; i++)
        if (infos[i].longest_ns > STEP_LIMIT_NS)
            printf("    %-32s %8" PRIu64 " times, longest %6" PRIu64 " us, %u locks\n",
                   infos[i].name, infos[i].count, infos[i].longest_ns / 1000,
                   infos[i].locks);
}

static void
work_end(const char *what, uint64_t nr)
{
    struct step_loop_stats steps;
    double took = seconds_since(work_began);

    step_loop_get(loop, &steps);
    printf("%-34s %9.3f s %10.0f /s\n", what, took, (double)nr / took);
    printf("    longest step %.0f us, %.0f of them in calls for I/O; of %" PRIu64
           " steps %" PRIu64 " over %u us, %" PRIu64
           " without that I/O, %.1f by chance\n",
           us(steps.longest.used_ns), us(steps.longest.io_ns), steps.nr_steps,
           steps.nr_long, STEP_LIMIT_NS / 1000, steps.nr_own_long,
           stolen_per_second * (double)steps.used_ns / 1e9);
    if (getenv("BENCH_STEPS"))
        tell_steps(&steps);
    fflush(stdout);
}

static void
bench_snapshots(void)
{
    const char *origin = "big";
    char name[32];
    const char *names = name;

    work_begin();
    snprintf(name, sizeof(name), "s0");
    CALL("snapshot", pool_volume_snapshot(pool, &origin, &names, 1, DONE));
    work_end("a snapshot of all that", 1);
    work_begin();
    for (unsigned i = 1; i <= 100; i++) {
        snprintf(name, sizeof(name), "s%u", i);
        CALL("snapshot", pool_volume_snapshot(pool, &origin, &names, 1, DONE));
    }
    work_end("100 more, one after another", 100);
}

static void
bench_many_volumes(unsigned nr)
{
    char name[32];
    struct volume_spec spec = {.name = name, .size = 1ull << 30};

    work_begin();
    for (unsigned i = 0; i < nr; i++) {
        snprintf(name, sizeof(name), "v%u", i);
        CALL("create", pool_volume_create(pool, &spec, DONE));
    }
    work_end("creating volumes", nr);
    work_begin();
    for (unsigned i = 0; i < nr; i++) {
        snprintf(name, sizeof(name), "v%u", i);
        CALL("delete", pool_volume_delete(pool, name, DONE));
    }
    settle(0);
    work_end("deleting them", nr);
}

static void
bench_io(void)
{
    uint64_t big = nr_virtual * BLOCK, nr_commits;
    struct pool_info info;

    volume_up("big");
    work_begin();
    run_requests(VOLUME_READ, 50000, any_mapped);
    work_end("4k random reads, cold", 50000);
    nr_latencies = 0;
    work_begin();
    run_requests(VOLUME_WRITE, 5000, any_gap);
    settle(0);
    work_end("first writes to blocks", 5000);
    tell_latencies("  a first write, median, depth 32");
    pool_get_info(pool, &info);
    nr_commits = info.commits;
    committing = true;
    work_begin();
    pool_commit(pool, (struct pool_done){commit_again, NULL});
    run_requests(VOLUME_WRITE, 5000, any_gap);
    committing = false;
    settle(0);
    work_end("first writes while commits run", 5000);
    tell_latencies("  a first write, median, while commits run");
    pool_get_info(pool, &info);
    printf("%-44s %8" PRIu64 "\n", "  commits meanwhile", info.commits - nr_commits);
    work_begin();
    run_requests(VOLUME_WRITE, 20000, any_gap);
    settle(0);
    work_end("overwrites and first writes", 20000);
    bench_snapshots();
    work_begin();
    run_requests(VOLUME_WRITE, 5000, any_mapped);
    settle(0);
    work_end("breaking sharing", 5000);
    work_begin();
    run_requests(VOLUME_DISCARD, 20000, any_mapped);
    settle(0);
    work_end("discards of single blocks", 20000);
    work_begin();
    run_one(VOLUME_STATUS, 0, big);
    work_end("status of all", 1);
    work_begin();
    run_one(VOLUME_DISCARD, 0, big / 4);
    settle(0);
    work_end("a discard of the first quarter", 1);
    volume_close(volume);
}

static void
bench_deletes(void)
{
    char name[32];

    work_begin();
    CALL("delete", pool_volume_delete(pool, "big", DONE));
    settle(0);
    work_end("deleting big, snapshots share it", 1);
    work_begin();
    for (unsigned i = 1; i <= 100; i++) {
        snprintf(name, sizeof(name), "s%u", i);
        CALL("delete", pool_volume_delete(pool, name, DONE));
    }
    settle(0);
    work_end("deleting 100 snapshots", 100);
    volume_up("s0");
    work_begin();
    run_one(VOLUME_DISCARD, 0, nr_virtual * BLOCK / 4);
    settle(nr_mappings / 5);
    work_end("a discard, the only holder", nr_mappings / 4);
    volume_close(volume);
    work_begin();
    CALL("delete", pool_volume_delete(pool, "s0", DONE));
    settle(nr_data - 4096);
    work_end("deleting the rest, the last holder", nr_mappings - nr_mappings / 4);
}

/* A process that writes to the pool and is killed in the middle. */
static void
killed_in_between(void)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        /* A loop of its own: nothing is shared with the parent but the files. */
        inner = poll_loop_create();
        loop = step_loop_create(inner, STEP_LIMIT_NS);
        step_loop_count_io(loop, &io_ns);
        pool_up(false);
        volume_up("big");
        run_requests(VOLUME_WRITE, 2000, any_gap);
        raise(SIGKILL);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status)) {
        fprintf(stderr, "engine: the process to be killed was not\n");
        exit(1);
    }
}

static void
bench_open(const char *what)
{
    work_begin();
    pool_up(false);
    work_end(what, 1);
}

static void
bench_pool(void)
{
    uint64_t before;

    killed_in_between();
    bench_open("an open after kill -9");
    pool_down();
    before = resident_bytes();
    bench_open("an open after a clean stop");
    bench_io();
    printf("%-44s %12.2f MiB\n", "memory of the pool, caches full",
           (double)(resident_bytes() - before) / 1048576.0);
    bench_many_volumes(2000);
    bench_deletes();
    pool_down();
}

int
main(int argc, char **argv)
{
    const char *tmp = getenv("TMPDIR");
    const char *dir = argc > 1 ? argv[1] : tmp ? tmp : "/tmp";
    struct volume_spec spec = {.name = "big"};
    struct volume_info info;
    char where[4000];

    thin_error_init(&err);
    thin_log_set_level(THIN_LOG_ERROR);
    random_seed(&rng, 1);
    nr_mappings = argc > 2 ? strtoull(argv[2], NULL, 0) : 16777216;
    nr_virtual = gap_key(nr_mappings) + 1;
    nr_data = nr_mappings * 2;
    snprintf(where, sizeof(where), "%s/thin-engine.XXXXXX", dir);
    if (nr_mappings < 100000 || !mkdtemp(where)) {
        fprintf(stderr, "usage: engine [DIR [MAPPINGS, from 100000]]\n");
        return 2;
    }
    snprintf(data_path, sizeof(data_path), "%s/data", where);
    snprintf(metadata_path, sizeof(metadata_path), "%s/metadata", where);
    make_file(data_path, nr_data * BLOCK);
    make_file(metadata_path, METADATA_SIZE);

    inner = poll_loop_create();
    loop = inner ? step_loop_create(inner, STEP_LIMIT_NS) : NULL;
    if (!loop)
        return 1;
    step_loop_count_io(loop, &io_ns);
    printf("%" PRIu64 " mappings of 64 KiB\n", nr_mappings);
    measure_machine();
    pool_up(true);
    spec.size = nr_virtual * BLOCK;
    CALL("create", pool_volume_create(pool, &spec, DONE));
    if (!pool_volume_peek(pool, "big", &info))
        return 1;
    big_id = info.dev_id;
    pool_down();
    bench_tree();
    /* The catalogue looks over what others did once; that open is not measured. */
    pool_up(false);
    CALL("commit", pool_volume_set(pool, "big", VOLUME_PROTECTED, 0, DONE));
    pool_down();
    bench_pool();
    step_loop_destroy(loop);
    poll_loop_destroy(inner);
    unlink(data_path);
    unlink(metadata_path);
    return rmdir(where) < 0;
}
