/*
 * Metadata blocks that go bad while the power is off, from one seed: clients work a small
 * pool and close it; then, each time on copies of its disks, one block in use is spoiled or
 * cannot be read any more, the pool is opened, compared, worked, cut off, opened and compared
 * again. What fails must be what the block's place says (sim_damage), what does not fail must
 * be right. At last the block is put back, if nobody has used it anew: the metadata is
 * recounted, and nothing is missing.
 *
 * SEED= repeats one run, TRACE=1 tells its events, SEEDS= and DAMAGES= set how many.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/lib/device_crash.h"
#include "tests/lib/sim_drive.h"

#define DATA_BLOCKS 48u
#define META_BLOCKS 320u
#define PAGE        4096u
#ifdef THIN_SANITIZED
#define DAMAGES 150u
#else
#define DAMAGES 1500u
#endif
#define DAMAGES_LONG 100000u
#define OF_ONE_POOL  8u /* blocks that go bad, one after another, each by itself */
#define STEPS        700u

enum how { FLIPPED, RUBBISH, ZEROED, MISPLACED, UNREADABLE, HOWS };

struct pool_of_seed {
    struct sim sim;
    struct crash_disk *data, *meta;
    struct sim_place places[SIM_PLACES];
    unsigned nr_places;
};

/* A copy of it, one block of which has gone bad. */
struct damaged {
    struct sim sim;
    struct crash_disk *data, *meta;
    const struct sim_place *place;
    enum how how;
    unsigned char before[PAGE], spoiled[PAGE];
};

static bool tracing;
static uint64_t nr_damages[SIM_DAMAGES], nr_opened[SIM_DAMAGES], nr_read_only, nr_marked,
    nr_healed, nr_all;

static const void *
meta_page(void *arg, uint64_t index)
{
    return crash_disk_page(arg, index);
}

static void
trace(void *arg, const struct sim_event *event)
{
    struct sim *sim = arg;

    sim_event_print(event, sim->model.now + 1);
}

static void
open_begin(struct sim *sim, struct crash_disk *data, struct crash_disk *meta, bool format)
{
    sim_open_begin(sim, crash_disk_open(data, sim->loop),
                   crash_disk_open(meta, sim->loop), format);
    sim_wait_call(sim, "opening the pool");
}

/* ---- a pool --------------------------------------------------------------------------------- */

static void
make_pool(struct pool_of_seed *p, uint64_t seed)
{
    struct sim *sim = &p->sim;
    struct recount_source source;

    memset(p, 0, sizeof(*p));
    sim_init(sim, seed);
    if (tracing) {
        sim->model.listener = trace;
        sim->model.listener_arg = sim;
    }
    sim->mix.snap_metadata = 0; /* a held root reaches what no volume does */
    sim->data_size_max = (DATA_BLOCKS + 16) * SIM_BLOCK;
    sim->metadata_size_max = (META_BLOCKS + 100) * PAGE;
    p->data = crash_disk_create(&sim->rng, DATA_BLOCKS * SIM_BLOCK, NULL);
    p->meta = crash_disk_create(&sim->rng, META_BLOCKS * PAGE, NULL);
    open_begin(sim, p->data, p->meta, true);
    sim_opened(sim);
    sim_work(sim, STEPS + random_below(&sim->rng, 2 * STEPS));
    sim_drain(sim);
    if (sim_close(sim) < 0)
        sim_die(sim, "the pool does not close");
    source = (struct recount_source){
        .page = meta_page, .arg = p->meta, .size = crash_disk_size(p->meta)};
    sim_recount(sim, &source);
    p->nr_places = sim_places(&source, p->places);
}

static void
drop_pool(struct pool_of_seed *p)
{
    crash_disk_destroy(p->data);
    crash_disk_destroy(p->meta);
    sim_fini(&p->sim);
}

/* ---- going bad ------------------------------------------------------------------------------ */

/* Any kind of damage as often as another, as far as there is one. */
static const struct sim_place *
draw_place(struct pool_of_seed *p)
{
    struct thin_random *rng = &p->sim.rng;
    enum sim_damage wanted = (enum sim_damage)(1 + random_below(rng, SIM_DAMAGES - 1));
    unsigned from = (unsigned)random_below(rng, p->nr_places);

    for (unsigned i = 0; i < p->nr_places; i++)
        if (p->places[(from + i) % p->nr_places].damage == wanted)
            return &p->places[(from + i) % p->nr_places];
    return &p->places[from];
}

static void
spoil(struct damaged *d, const struct pool_of_seed *p)
{
    struct thin_random *rng = &d->sim.rng;
    uint64_t other = p->places[random_below(rng, p->nr_places)].block;

    crash_disk_read(d->meta, d->place->block * PAGE, d->before, PAGE);
    memcpy(d->spoiled, d->before, PAGE);
    d->how = (enum how)random_below(rng, HOWS);
    if (d->how == MISPLACED && other == d->place->block)
        d->how = FLIPPED;
    switch (d->how) {
    case FLIPPED:
        d->spoiled[random_below(rng, PAGE)] ^=
            (unsigned char)(1 + random_below(rng, 255));
        break;
    case RUBBISH:
        for (unsigned i = 0; i < PAGE; i++)
            d->spoiled[i] = (unsigned char)random_below(rng, 256);
        break;
    case ZEROED:
        memset(d->spoiled, 0, PAGE);
        break;
    case MISPLACED:
        crash_disk_read(d->meta, other * PAGE, d->spoiled, PAGE);
        break;
    case UNREADABLE:
    case HOWS:
        break;
    }
    crash_disk_write(d->meta, d->place->block * PAGE, d->spoiled, PAGE);
    if (d->how == UNREADABLE)
        crash_disk_spoil(d->meta, d->place->block);
}

static void
begin(struct damaged *d, struct pool_of_seed *p)
{
    struct sim *sim = &d->sim;
    struct sim *from = &p->sim;

    memset(d, 0, sizeof(*d));
    d->place = draw_place(p);
    sim_init(sim, random_u64(&from->rng));
    sim->seed = from->seed;
    sim->label = "damage";
    sim->label_nr = nr_all;
    sim->mix = from->mix;
    sim->origin_size = from->origin_size;
    sim->next_value = from->next_value;
    sim->next_name = from->next_name;
    sim->data_size_max = from->data_size_max;
    sim->metadata_size_max = from->metadata_size_max;
    sim_model_copy(&sim->model, &from->model);
    if (tracing) {
        sim->model.listener = trace;
        sim->model.listener_arg = sim;
    }
    d->data = crash_disk_fork_cut(p->data, &sim->rng);
    d->meta = crash_disk_fork_cut(p->meta, &sim->rng);
    spoil(d, p);
    sim->damage = d->place->damage;
    if (tracing)
        printf("damage %" PRIu64 ": block %" PRIu64 ", kind %d, done by %d\n", nr_all,
               d->place->block, (int)sim->damage, (int)d->how);
}

/* ---- with it ---------------------------------------------------------------------------------- */

static void
find_touched(struct damaged *d)
{
    struct sim *sim = &d->sim;

    for (unsigned i = 0; i < SIM_VOLUMES; i++) {
        const struct sim_state *now = &sim->model.volumes[i].now;
        struct volume_info info;

        sim->clients[i].touched |= sim->damage >= SIM_BELOW_NAMES;
        if (!now->there || !pool_volume_peek(sim->pool, now->name, &info))
            continue;
        for (uint32_t k = 0; k < d->place->nr_devices; k++)
            sim->clients[i].touched |= d->place->devices[k] == info.dev_id;
    }
}

/* True: it is open. */
static bool
open_damaged(struct damaged *d)
{
    struct sim *sim = &d->sim;
    struct pool_info info;

    sim->faulty = true;
    open_begin(sim, d->data, d->meta, false);
    if (sim->call_result < 0) {
        if (sim->damage < SIM_BELOW_NAMES)
            sim_die(sim, "the pool does not open: %s", thin_error_name(sim->call_result));
        return false;
    }
    nr_opened[sim->damage]++;
    pool_get_info(sim->pool, &info);
    nr_read_only += info.mode == POOL_READ_ONLY;
    if (sim->damage == SIM_AT_ONCE && (info.mode != POOL_READ_ONLY || !info.why[0]))
        sim_die(sim, "the pool opens in mode %s, says \"%s\"", pool_mode_name(info.mode),
                info.why);
    return true;
}

/* It may serve on in spite of a roll-back, so what was lost is not asked for. */
static void
cut(struct damaged *d)
{
    if (!d->sim.rolled_back)
        sim_heed_marks(&d->sim);
    d->sim.cut = true;
    crash_disk_cut(d->data);
    crash_disk_cut(d->meta);
}

static void
live_with_it(struct damaged *d)
{
    struct sim *sim = &d->sim;

    if (!open_damaged(d)) {
        cut(d);
        return;
    }
    sim_opened(sim);
    find_touched(d);
    sim_verify_damaged(sim);
    if (sim->damage != SIM_BELOW_NAMES && sim->damage != SIM_AT_ONCE)
        sim_work(sim, random_below(&sim->rng, STEPS));
    if (random_below(&sim->rng, 3) == 0)
        sim_drain(sim);
    cut(d);
    sim_abandon(sim);
    if (!open_damaged(d)) {
        cut(d);
        return;
    }
    sim_opened(sim);
    sim_verify_damaged(sim);
    cut(d);
    sim_abandon(sim);
}

/* The block as it was, if nobody has written there: then all is there again. */
static void
heal(struct damaged *d)
{
    struct sim *sim = &d->sim;
    struct recount_source source = {.page = meta_page,
                                    .arg = d->meta,
                                    .size = crash_disk_size(d->meta),
                                    .leaks = true};
    unsigned char now[PAGE];
    struct superblock sb;

    crash_disk_read(d->meta, d->place->block * PAGE, now, PAGE);
    if (memcmp(now, d->spoiled, PAGE) == 0) {
        crash_disk_write(d->meta, d->place->block * PAGE, d->before, PAGE);
        nr_healed++;
    }
    /* Counts that could not be changed are wrong, and durably said to be in doubt. */
    crash_disk_read(d->meta, 0, now, PAGE);
    superblock_decode(&sb, now);
    if (sb.flags & SUPERBLOCK_NEEDS_CHECK) {
        source.no_data_counts = true;
        nr_marked++;
    }
    sim_recount(sim, &source);
    sim->damage = SIM_WHOLE;
    open_begin(sim, d->data, d->meta, false);
    if (sim->call_result < 0)
        sim_die(sim, "the pool does not open with its block put back: %s",
                thin_error_name(sim->call_result));
    sim_opened(sim);
    sim_verify(sim);
    cut(d);
    sim_abandon(sim);
}

static void
one_damage(struct pool_of_seed *p)
{
    static struct damaged d;

    nr_all++;
    begin(&d, p);
    nr_damages[d.sim.damage]++;
    live_with_it(&d);
    heal(&d);
    crash_disk_destroy(d.data);
    crash_disk_destroy(d.meta);
    sim_fini(&d.sim);
}

/* ---- all ---------------------------------------------------------------------------------------- */

static uint64_t
from_environment(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 0) : otherwise;
}

static uint64_t seed_now;

static void
aborted(int sig)
{
    (void)sig;
    fprintf(stderr, "SEED=%" PRIu64 ": the engine has stopped itself\n", seed_now);
}

int
main(void)
{
    static struct pool_of_seed p;
    struct sigaction on_abort = {.sa_handler = aborted};
    bool given = getenv("SEED");
    uint64_t wanted =
        from_environment("DAMAGES", getenv("THIN_TEST_LONG") ? DAMAGES_LONG : DAMAGES);
    uint64_t seed = from_environment("SEED", 1), first = seed;
    uint64_t last = from_environment("SEEDS", given ? 1 : UINT64_MAX / 2) + seed - 1;
    clock_t began = clock();

    sigaction(SIGABRT, &on_abort, NULL);
    tracing = getenv("TRACE");
    if (!tracing)
        thin_log_set_level((enum thin_log_level) - 1);
    for (; seed <= last && (given || nr_all < wanted); seed++) {
        seed_now = seed;
        make_pool(&p, seed);
        for (unsigned i = 0; i < OF_ONE_POOL; i++)
            one_damage(&p);
        drop_pool(&p);
    }
    printf("seeds %" PRIu64 " to %" PRIu64 ": %" PRIu64 " blocks gone bad: %" PRIu64
           " below a volume, %" PRIu64 " in the counts of data, %" PRIu64
           " below the names (opened %" PRIu64 " times), %" PRIu64 " above all (%" PRIu64
           "), %" PRIu64 " met at once (%" PRIu64 "); read-only %" PRIu64
           " times, marked for a check %" PRIu64 ", %" PRIu64
           " put back, %.1f s: all as promised\n",
           first, seed - 1, nr_all, nr_damages[SIM_BELOW_VOLUME],
           nr_damages[SIM_IN_COUNTS], nr_damages[SIM_BELOW_NAMES],
           nr_opened[SIM_BELOW_NAMES], nr_damages[SIM_ABOVE_ALL],
           nr_opened[SIM_ABOVE_ALL], nr_damages[SIM_AT_ONCE], nr_opened[SIM_AT_ONCE],
           nr_read_only, nr_marked, nr_healed,
           (double)(clock() - began) / CLOCKS_PER_SEC);
    return EXIT_SUCCESS;
}
