/*
 * The whole engine on disks that crash, from one seed: many clients work a small pool with
 * all it can do, devices fail once or for a while, and the power goes anywhere, also while
 * the pool opens, grows or recovers from the crash before. Then the metadata is recounted,
 * the pool opened, and names, sizes and every sector are compared with what may be there.
 * What was read is all that may be there from then on.
 *
 * SEED= repeats one run, TRACE=1 tells its events; CRASHES= sets how many, SEEDS= ends
 * after so many seeds, TWICE=n runs each nth seed twice (0: none): both must go the same way.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/base/seeded_bug.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/sim_drive.h"

#define DATA_BLOCKS     48u
#define META_BLOCKS     320u
#define META_BLOCKS_FEW 120u
#define ROUNDS          12u /* of one seed */
#ifdef THIN_SANITIZED
#define CRASHES 500u
#else
#define CRASHES 5000u /* each seed twice: half of them are different ones */
#endif
#define CRASHES_LONG 1000000u
#define TOOL_EVERY   500u /* one recount in so many is thin_check's as well */
#define EVERY_TWICE  8u   /* in long runs; else every seed */

struct run {
    struct sim sim;
    struct crash_disk *data, *meta;
    struct crash_params *data_params, *meta_params;
    bool after_close;               /* opened after a clean end */
    bool marked;                    /* for a check: it serves reads, and no more */
    struct recount_source metadata; /* the disk, for who reads beside the clients */
};

static bool tracing; /* TRACE in the environment: every event of the model, on stdout */
static uint64_t nr_crashes, nr_opens, nr_ops, nr_changes, nr_rollbacks, nr_closes,
    nr_kept, nr_lost, nr_pins, nr_pins_lost, nr_marked, nr_twice, nr_recounts, nr_tool;

/* ---- faults ---------------------------------------------------------------------------------- */

static void
faults_end(struct run *run)
{
    struct crash_params *p[] = {run->data_params, run->meta_params};

    for (unsigned i = 0; i < 2; i++)
        p[i]->read_error_ppm = p[i]->write_error_ppm = p[i]->flush_error_ppm = 0;
    run->sim.origin_faults_ppm = 0;
    crash_disk_fail_nth(run->data, 0, 0, 0);
    crash_disk_fail_nth(run->meta, 0, 0, 0);
}

/* One request fails, or some of all for a while. */
static void
faults_begin(struct run *run)
{
    struct thin_random *rng = &run->sim.rng;
    bool data = random_below(rng, 3);
    struct crash_params *p = data ? run->data_params : run->meta_params;
    struct crash_disk *disk = data ? run->data : run->meta;
    unsigned mask;

    run->sim.faulty = true;
    if (random_below(rng, 5) == 0)
        run->sim.origin_faults_ppm = 100000;
    switch (random_below(rng, 6)) {
    case 0:
        p->read_error_ppm = 20000;
        break;
    case 1:
        p->write_error_ppm = 20000;
        break;
    case 2:
        p->flush_error_ppm = 60000;
        break;
    default:
        mask = 1u << (random_below(rng, 3) ? DEVICE_FLUSH : DEVICE_WRITE) |
               (random_below(rng, 6) == 0 ? 1u << DEVICE_READ : 0) |
               (random_below(rng, 6) == 0 ? 1u << DEVICE_GROW : 0);
        crash_disk_fail_nth(disk, mask, 1 + random_below(rng, data ? 20 : 40), -EIO);
        break;
    }
}

/* ---- stops ------------------------------------------------------------------------------------ */

static void
power_cut(struct run *run)
{
    nr_crashes++;
    nr_lost += crash_disk_nr_kept(run->data) + crash_disk_nr_kept(run->meta);
    run->sim.cut = true;
    crash_disk_cut(run->data);
    crash_disk_cut(run->meta);
}

static const void *
meta_page(void *arg, uint64_t index)
{
    return crash_disk_page(arg, index);
}

static bool
write_image(const struct run *run, int fd)
{
    static const unsigned char hole[4096];

    for (uint64_t i = 0; i < crash_disk_size(run->meta) / sizeof(hole); i++) {
        const void *page = crash_disk_page(run->meta, i);

        if (write(fd, page ? page : hole, sizeof(hole)) != (ssize_t)sizeof(hole))
            return false;
    }
    return true;
}

/* The official tool's word on the metadata. Where it is missing, the test fails. */
static void
ask_thin_check(const struct run *run)
{
    char path[] = "/tmp/crash_pool.XXXXXX", program[] = "thin_check", quiet[] = "-q";
    char sbin[] = "/usr/sbin/thin_check"; /* not in everybody's PATH */
    char *argv[] = {program, quiet, path, NULL};
    char *envp[] = {NULL};
    const char *block0 = crash_disk_page(run->meta, 0);
    bool blank = true;
    int fd, status = 0;
    pid_t pid;

    for (unsigned i = 0; block0 && i < 4096 && blank; i++)
        blank = block0[i] == 0;
    if (blank)
        return;
    fd = mkstemp(path);
    if (fd < 0 || !write_image(run, fd))
        sim_die(&run->sim, "no image for thin_check: %s", strerror(errno));
    close(fd);
    status = posix_spawnp(&pid, program, NULL, NULL, argv, envp);
    if (status == ENOENT)
        status = posix_spawn(&pid, sbin, NULL, NULL, argv, envp);
    if (status != 0)
        sim_die(&run->sim, "thin_check cannot be run (thin-provisioning-tools): %s",
                strerror(status));
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            sim_die(&run->sim, "thin_check is lost: %s", strerror(errno));
    if (status != 0)
        sim_die(&run->sim, "thin_check finds fault with %s", path);
    unlink(path);
    nr_tool++;
}

/* Counts that could not be read were given up, which must be said durably. */
static bool
is_marked(const struct run *run)
{
    const void *block0 = crash_disk_page(run->meta, 0);
    struct superblock sb;

    if (!run->sim.in_doubt || !block0)
        return false;
    superblock_decode(&sb, block0);
    return sb.flags & SUPERBLOCK_NEEDS_CHECK;
}

static void
recount(struct run *run)
{
    struct recount_source source = {
        .page = meta_page, .arg = run->meta, .size = crash_disk_size(run->meta)};

    run->marked = is_marked(run);
    source.leaks = source.no_data_counts = run->marked;
    sim_recount(&run->sim, &source);
    if (nr_recounts++ % TOOL_EVERY == 0)
        ask_thin_check(run);
}

static void
open_begin(struct run *run, bool format)
{
    nr_opens++;
    sim_open_begin(&run->sim, crash_disk_open(run->data, run->sim.loop),
                   crash_disk_open(run->meta, run->sim.loop), format);
}

/* Opens; sometimes the power goes again before it is open, or a device fails. */
static void
open_again(struct run *run)
{
    struct sim *sim = &run->sim;

    while (true) {
        bool again = random_below(&sim->rng, 6) == 0;
        uint64_t steps = random_below(&sim->rng, 120);

        sim->faulty = false;
        if (random_below(&sim->rng, 12) == 0)
            faults_begin(run);
        open_begin(run, false);
        while (again && !sim->call_ended && steps-- > 0)
            sim_loop_step(sim->loop);
        again = again && !sim->call_ended;
        if (again)
            power_cut(run);
        sim_wait_call(sim, "opening the pool");
        faults_end(run);
        if (sim->call_result == 0 && !again && !sim->rolled_back && !sim->faulty) {
            sim_opened(sim);
            return;
        }
        /* What opened in spite of failures may have failed a little. */
        if (sim->call_result == 0)
            sim_abandon(sim);
        if (!again)
            power_cut(run);
        recount(run);
    }
}

/* No crash: all requests end, the pool closes, and all that was answered is there. */
static void
close_well(struct run *run)
{
    struct sim *sim = &run->sim;
    int r;

    sim_drain(sim);
    r = sim_close(sim);
    if (r < 0 && !sim->faulty)
        sim_die(sim, "the pool does not close well: %s", thin_error_name(r));
    nr_closes++;
    /* A disk that has lost writes in a failed flush may show them until the power goes. */
    if (r < 0 || sim->rolled_back)
        power_cut(run);
}

/* After a roll-back: closed and opened again, without a power cut. */
static void
open_as_before(struct run *run)
{
    struct sim *sim = &run->sim;
    uint64_t data_size = sim->data_size;

    if (sim_close(sim) < 0)
        sim_die(sim, "the pool does not close after a roll-back: %s",
                thin_error_name(sim->call_result));
    sim->faulty = false;
    open_begin(run, false);
    sim_wait_call(sim, "opening the pool after a roll-back");
    sim_opened(sim);
    sim_verify_as_before(sim);
    sim->data_size = data_size; /* what is seen now need not be durable */
    /* The disks may yet forget what a failed flush has lost. */
    sim->faulty = sim->rolled_back = sim->has_lost = true;
}

/* ---- one seed ----------------------------------------------------------------------------------- */

static void
one_round(struct run *run)
{
    struct sim *sim = &run->sim;
    /* Often soon after the last, sometimes late. */
    uint64_t steps = random_below(&sim->rng, random_below(&sim->rng, 3) ? 500 : 1500);

    /* Cut before the first commit, what is left of a clean end must not deceive. */
    if (run->after_close && random_below(&sim->rng, 2))
        steps = random_below(&sim->rng, 200);
    run->after_close = false;
    if (random_below(&sim->rng, 4) == 0) {
        sim_work(sim, steps / 2);
        faults_begin(run);
    }
    sim_work(sim, steps);
    if (random_below(&sim->rng, 2))
        faults_end(run);
    if (sim->rolling && random_below(&sim->rng, 2)) {
        faults_end(run);
        sim_verify_rolled_back(sim);
        if (random_below(&sim->rng, 2))
            open_as_before(run);
    }
    if (random_below(&sim->rng, 10) == 0) {
        faults_end(run);
        close_well(run);
        run->after_close = true;
    } else {
        sim_heed_marks(sim);
        power_cut(run);
        sim_abandon(sim);
    }
    faults_end(run);
    recount(run);
    open_again(run);
    sim_verify(sim);
}

static void
trace(void *arg, const struct sim_event *event)
{
    struct sim *sim = arg;

    sim_event_print(event, sim->model.now + 1);
}

/* Returns what two equal runs have in common. */
static uint64_t
run_seed(uint64_t seed)
{
    static struct run run;
    struct sim *sim = &run.sim;
    uint64_t blocks, meta_blocks;

    memset(&run, 0, sizeof(run));
    sim_init(sim, seed);
    if (tracing) {
        sim->model.listener = trace;
        sim->model.listener_arg = sim;
    }
    /* Some run out of metadata again and again. */
    meta_blocks = random_below(&sim->rng, 4)
                      ? META_BLOCKS
                      : META_BLOCKS_FEW + random_below(&sim->rng, 40);
    blocks = DATA_BLOCKS - random_below(&sim->rng, DATA_BLOCKS / 2);
    sim->data_size_max = (blocks + 24) * SIM_BLOCK;
    sim->metadata_size_max = (META_BLOCKS + 200) * 4096;
    run.data = crash_disk_create(&sim->rng, blocks * SIM_BLOCK, NULL);
    run.meta = crash_disk_create(&sim->rng, meta_blocks * 4096, NULL);
    run.metadata = (struct recount_source){
        .page = meta_page, .arg = run.meta, .size = UINT64_MAX /* it may grow */};
    sim->metadata = &run.metadata;
    run.data_params = crash_disk_params(run.data);
    run.meta_params = crash_disk_params(run.meta);
    /* With data much slower than metadata, requests are overtaken by commits. */
    if (random_below(&sim->rng, 2)) {
        run.data_params->latency_min_ns = 20000;
        run.data_params->latency_max_ns = (1 + random_below(&sim->rng, 12)) * NS_PER_MS;
        run.meta_params->latency_min_ns = 5000;
        run.meta_params->latency_max_ns = 400000;
    }
    open_begin(&run, true);
    sim_wait_call(sim, "making the pool");
    sim_opened(sim);
    for (unsigned round = 0; round < ROUNDS && !run.marked; round++)
        one_round(&run);
    sim_drain(sim);
    if (run.marked) {
        nr_marked++;
        power_cut(&run);
        sim_abandon(sim);
    } else {
        close_well(&run);
    }
    recount(&run);
    sim_note(sim, sim_loop_trace(sim->loop));
    sim_note(sim, random_u64(&sim->rng));
    nr_ops += sim->nr_ops;
    nr_changes += sim->nr_changes;
    nr_rollbacks += sim->nr_rollbacks;
    nr_pins += sim->nr_pins;
    nr_pins_lost += sim->nr_pins_lost;
    nr_kept += sim->nr_kept_incarnations;
    crash_disk_destroy(run.data);
    crash_disk_destroy(run.meta);
    sim_fini(sim);
    return sim->hash;
}

static uint64_t
from_environment(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 0) : otherwise;
}

static struct sigaction on_abort;
static uint64_t seed_now;

/* An assertion of the engine: the seed is told as well. */
static void
aborted(int sig)
{
    (void)sig;
    fprintf(stderr, "SEED=%" PRIu64 ": the engine has stopped itself\n", seed_now);
}

/* Names and words of the bugs that a build may have on purpose (seeded-bugs.sh). */
static void
list_bugs(void)
{
#define LIST_BUG(name, words) printf("%s %s\n", #name, words);
    SEEDED_BUG_TABLE(LIST_BUG)
#undef LIST_BUG
}

int
main(int argc, char **argv)
{
    bool given = getenv("SEED"), is_long = getenv("THIN_TEST_LONG");
    uint64_t wanted = from_environment("CRASHES", is_long ? CRASHES_LONG : CRASHES);
    uint64_t seed = from_environment("SEED", 1), first = seed;
    uint64_t last = from_environment("SEEDS", given ? 1 : UINT64_MAX / 2) + seed - 1;
    uint64_t every = from_environment("TWICE", is_long ? EVERY_TWICE : 1);
    clock_t began = clock();
    double took;

    if (argc > 1 && strcmp(argv[1], "--list-seeded-bugs") == 0) {
        list_bugs();
        return EXIT_SUCCESS;
    }
    on_abort.sa_handler = aborted;
    sigaction(SIGABRT, &on_abort, NULL);
    tracing = getenv("TRACE");
    if (!tracing)
        thin_log_set_level((enum thin_log_level) - 1);
    for (; seed <= last && (given || nr_crashes < wanted); seed++) {
        uint64_t hash;

        seed_now = seed;
        hash = run_seed(seed);

        if (every == 0 || seed % every)
            continue;
        nr_twice++;
        if (run_seed(seed) != hash) {
            fprintf(stderr, "SEED=%" PRIu64 ": the same seed went two ways\n", seed);
            return EXIT_FAILURE;
        }
    }
    took = (double)(clock() - began) / CLOCKS_PER_SEC;
    printf("seeds %" PRIu64 " to %" PRIu64 ": %" PRIu64
           " crashes (%.0f a second), %" PRIu64 " opens, %" PRIu64 " requests, %" PRIu64
           " changes, %" PRIu64 " roll-backs, %" PRIu64 " clean closes, %" PRIu64
           " incarnations kept, %" PRIu64 " writes at stake, %" PRIu64
           " pinned views whole, %" PRIu64 " lost, %" PRIu64
           " pools marked for a check, %" PRIu64 " seeds twice, %" PRIu64
           " looked at by thin_check: all as promised\n",
           first, seed - 1, nr_crashes, took > 0 ? (double)nr_crashes / took : 0,
           nr_opens, nr_ops, nr_changes, nr_rollbacks, nr_closes, nr_kept, nr_lost,
           nr_pins, nr_pins_lost, nr_marked, nr_twice, nr_tool);
    return EXIT_SUCCESS;
}
