/*
 * A recorded run: the engine works on devices that write down every request, in the order
 * of submission and of completion, and the clients write down what they asked and what was
 * answered. Then the disks are built again as they may have been at each moment:
 *
 *   - every prefix of the log: all that had been submitted, forwards, copy-on-write;
 *   - reorderings between flushes: what a flush (or FUA) protects, and of the rest each
 *     write kept, dropped or torn.
 *
 * Each is recounted, opened, and compared with what the clients knew at that moment. This
 * shares nothing with the disk that crashes (crash_pool.c) but the image of its sectors.
 *
 * A recording that was begun is gone through to its end, every prefix of it. SEED= begins
 * with another one, STATES= sets how many states are looked at, at least.
 */
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/device_log.h"
#include "tests/lib/sim_drive.h"

#define DATA_BLOCKS 40u
#define META_BLOCKS 320u
#define SESSIONS    3u   /* openings in one recording */
#define STEPS       400u /* turns of one session */
#define STATES      3000u
#define STATES_LONG 50000u
#define RUBBISH     0xdb /* what a discard leaves */
#define REORDERED   2u   /* states built out of order at one moment in so many */

enum source { DATA, META, SOURCES };

/* What a client did, and how long the log was then. */
struct note {
    struct sim_event event;
    size_t at;
};

struct recording {
    struct sim sim;
    struct crash_disk *disks[SOURCES];
    enum crash_discard discard;
    struct device_log *log;
    struct note *notes;
    size_t nr_notes, room;
};

/* The disks as they may have been, going forwards through the log. */
struct player {
    uint64_t seed;
    struct thin_random rng;
    const struct recording *rec;
    struct crash_disk *all[SOURCES];       /* all that was submitted */
    struct crash_disk *protected[SOURCES]; /* what no crash can take */
    uint64_t
        *newest[SOURCES]; /* for each sector: completion of what is protected there */
    uint64_t nr_sectors[SOURCES];
    size_t *open; /* entries that are submitted and not protected */
    size_t nr_open;
    struct sim_model model;
    size_t next_note;
    uint64_t nr_states, nr_reordered;
};

/* ---- recording ------------------------------------------------------------------------------- */

static void
note(void *arg, const struct sim_event *event)
{
    struct recording *rec = arg;

    if (rec->nr_notes == rec->room) {
        rec->room = rec->room ? 2 * rec->room : 1024;
        rec->notes = realloc(rec->notes, rec->room * sizeof(*rec->notes));
        THIN_ASSERT(rec->notes);
    }
    rec->notes[rec->nr_notes].event = *event;
    rec->notes[rec->nr_notes++].at = device_log_length(rec->log);
}

/*
 * Devices get their numbers in the order of opening; each session opens both: an even
 * number is data.
 */
static enum source
source_of(const struct device_log_entry *e)
{
    return e->source % SOURCES;
}

static void
open_logged(struct recording *rec)
{
    struct sim *sim = &rec->sim;
    struct device *data =
        device_log_open(rec->log, crash_disk_open(rec->disks[DATA], sim->loop));
    struct device *meta =
        device_log_open(rec->log, crash_disk_open(rec->disks[META], sim->loop));

    sim_open_begin(sim, data, meta, false);
    sim_wait_call(sim, "opening the pool");
    sim_opened(sim);
}

/* Begins after the format, on disks that hold it durably. */
static void
record(struct recording *rec, uint64_t seed, struct crash_disk *before[SOURCES])
{
    struct sim *sim = &rec->sim;

    memset(rec, 0, sizeof(*rec));
    sim_init(sim, seed);
    sim->mix.look = 0; /* what was seen would not be in the notes */
    sim->data_size_max = (DATA_BLOCKS + 16) * SIM_BLOCK;
    sim->metadata_size_max = (META_BLOCKS + 100) * 4096;
    rec->disks[DATA] = crash_disk_create(&sim->rng, DATA_BLOCKS * SIM_BLOCK, NULL);
    rec->disks[META] = crash_disk_create(&sim->rng, META_BLOCKS * 4096, NULL);
    /* What the device tells of its holes must fit with what is built again. */
    rec->discard = (enum crash_discard)(1 + seed % 3);
    crash_disk_params(rec->disks[DATA])->discard = rec->discard;
    rec->log = device_log_create();
    sim->model.listener = note;
    sim->model.listener_arg = rec;
    sim_open_begin(sim, crash_disk_open(rec->disks[DATA], sim->loop),
                   crash_disk_open(rec->disks[META], sim->loop), true);
    sim_wait_call(sim, "making the pool");
    sim_opened(sim);
    if (sim_close(sim) < 0)
        sim_die(sim, "the new pool does not close");
    for (unsigned i = 0; i < SOURCES; i++)
        before[i] = crash_disk_fork_cut(rec->disks[i], &sim->rng);
    for (unsigned session = 0; session < SESSIONS; session++) {
        open_logged(rec);
        for (unsigned i = 0; i < STEPS; i += 20) {
            sim_work(sim, 20);
            sim_heed_marks(sim);
        }
        sim_drain(sim);
        if (sim_close(sim) < 0)
            sim_die(sim, "the pool does not close");
    }
}

static void
recording_fini(struct recording *rec)
{
    for (unsigned i = 0; i < SOURCES; i++)
        crash_disk_destroy(rec->disks[i]);
    device_log_destroy(rec->log);
    free(rec->notes);
    sim_fini(&rec->sim);
}

/* ---- building ---------------------------------------------------------------------------------- */

static bool
is_change(const struct player *p, const struct device_log_entry *e)
{
    return e->op == DEVICE_WRITE || e->op == DEVICE_WRITE_ZEROES ||
           (e->op == DEVICE_DISCARD && p->rec->discard != CRASH_DISCARD_NOTHING);
}

/* One sector of what an entry leaves on the disk. */
static void
put_sector(const struct player *p, struct crash_disk *disk,
           const struct device_log_entry *e, uint64_t i)
{
    bool rubbish = e->op == DEVICE_DISCARD && p->rec->discard == CRASH_DISCARD_RUBBISH;
    char bytes[SECTOR_SIZE];

    if (e->op == DEVICE_WRITE)
        memcpy(bytes, e->data + i * SECTOR_SIZE, SECTOR_SIZE);
    else
        memset(bytes, rubbish ? RUBBISH : 0, SECTOR_SIZE);
    crash_disk_write(disk, e->offset + i * SECTOR_SIZE, bytes, SECTOR_SIZE);
}

static void
put_all(const struct player *p, struct crash_disk *disk, const struct device_log_entry *e)
{
    if (e->op == DEVICE_WRITE) {
        crash_disk_write(disk, e->offset, e->data, e->len);
        return;
    }
    for (uint64_t i = 0; i < e->len / SECTOR_SIZE; i++)
        put_sector(p, disk, e, i);
}

static void
protect(struct player *p, const struct device_log_entry *e)
{
    enum source s = source_of(e);
    uint64_t first = e->offset / SECTOR_SIZE;

    for (uint64_t i = 0; i < e->len / SECTOR_SIZE; i++) {
        if (p->newest[s][first + i] > e->completed_as)
            continue;
        p->newest[s][first + i] = e->completed_as;
        put_sector(p, p->protected[s], e, i);
    }
}

static void
grow(struct player *p, const struct device_log_entry *e)
{
    enum source s = source_of(e);
    uint64_t nr = e->offset / SECTOR_SIZE;

    crash_disk_grow(p->all[s], e->offset);
    crash_disk_grow(p->protected[s], e -> offset);
    if (nr <= p->nr_sectors[s])
        return;
    p->newest[s] = realloc(p->newest[s], nr * sizeof(uint64_t));
    THIN_ASSERT(p->newest[s]);
    memset(p->newest[s] + p->nr_sectors[s], 0,
           (nr - p->nr_sectors[s]) * sizeof(uint64_t));
    p->nr_sectors[s] = nr;
}

/* Entry `k` was submitted: what it says of the disks, once it is done. */
static void
submitted(struct player *p, size_t k)
{
    const struct device_log_entry *e = device_log_get(p->rec->log, k);

    if (e->op == DEVICE_GROW)
        grow(p, e); /* a larger device than recorded does no harm */
    if (!is_change(p, e))
        return;
    put_all(p, p->all[source_of(e)], e);
    p->open[p->nr_open++] = k;
}

/* Flush `f`, or write `f` with FUA, is over. */
static void
completed(struct player *p, size_t f)
{
    const struct device_log_entry *flush = device_log_get(p->rec->log, f);
    size_t kept = 0;

    if (flush->op != DEVICE_FLUSH && !(flush->flags & DEVICE_FUA))
        return;
    for (size_t i = 0; i < p->nr_open; i++) {
        const struct device_log_entry *e = device_log_get(p->rec->log, p->open[i]);

        if (source_of(e) == source_of(flush) &&
            device_log_covers(p->rec->log, f, p->open[i]))
            protect(p, e);
        else
            p->open[kept++] = p->open[i];
    }
    p->nr_open = kept;
}

/* ---- one state ----------------------------------------------------------------------------------- */

static const void *
meta_page(void *arg, uint64_t index)
{
    return crash_disk_page(arg, index);
}

/* Opens the pool on these disks and compares; the disks go. */
static void
look(struct player *p, struct crash_disk *disks[SOURCES], size_t k, const char *what)
{
    static struct sim sim;
    const struct recount_source source = {
        .page = meta_page, .arg = disks[META], .size = crash_disk_size(disks[META])};

    sim_init(&sim, p->seed);
    sim_model_copy(&sim.model, &p->model);
    sim.data_size_max = crash_disk_size(disks[DATA]);
    sim.label = what;
    sim.label_nr = k;
    sim_recount(&sim, &source);
    sim_open_begin(&sim, crash_disk_open(disks[DATA], sim.loop),
                   crash_disk_open(disks[META], sim.loop), false);
    sim_wait_call(&sim, "opening the pool");
    sim_opened(&sim);
    sim_verify(&sim);
    sim_abandon(&sim);
    crash_disk_destroy(disks[DATA]);
    crash_disk_destroy(disks[META]);
    sim_fini(&sim);
    p->nr_states++;
}

static void
look_at_prefix(struct player *p, size_t k)
{
    struct crash_disk *disks[SOURCES] = {crash_disk_fork_cut(p->all[DATA], &p->rng),
                                         crash_disk_fork_cut(p->all[META], &p->rng)};

    look(p, disks, k, "prefix");
}

/* Of an unprotected write some sectors reach the disk; not over what is newer there. */
static void
put_some(struct player *p, struct crash_disk *disk, const struct device_log_entry *e,
         bool ended)
{
    const uint64_t *newest = p->newest[source_of(e)] + e->offset / SECTOR_SIZE;
    uint64_t n = e->len / SECTOR_SIZE, from = 0, to = n;
    bool scattered = false;

    switch (random_below(&p->rng, 5)) {
    case 0:
        return;
    case 1:
        to = random_below(&p->rng, n + 1);
        break;
    case 2:
        from = random_below(&p->rng, n + 1);
        break;
    case 3:
        scattered = true;
        break;
    default:
        break;
    }
    for (uint64_t i = from; i < to; i++)
        if ((!scattered || random_below(&p->rng, 2)) &&
            (!ended || newest[i] < e->completed_as))
            put_sector(p, disk, e, i);
}

/* Completed ones in the order of completion, then those in flight, in any. */
static void
look_at_reordered(struct player *p, size_t k, size_t nr_completed)
{
    struct crash_disk *disks[SOURCES] = {
        crash_disk_fork_cut(p->protected[DATA], &p -> rng),
        crash_disk_fork_cut(p->protected[META], &p -> rng)};
    size_t nr = p->nr_open;
    size_t *order = calloc(nr + 1, sizeof(*order));
    uint64_t *key = calloc(nr + 1, sizeof(*key));

    THIN_ASSERT(order && key);
    for (size_t i = 0; i < nr; i++) {
        const struct device_log_entry *e = device_log_get(p->rec->log, p->open[i]);
        bool ended = e->completed_as && e->completed_as <= nr_completed;
        uint64_t mine =
            ended ? e->completed_as : nr_completed + 1 + random_below(&p->rng, 1000000);
        size_t at = i;

        for (; at > 0 && key[at - 1] > mine; at--) {
            key[at] = key[at - 1];
            order[at] = order[at - 1];
        }
        key[at] = mine;
        order[at] = p->open[i];
    }
    for (size_t i = 0; i < nr; i++) {
        const struct device_log_entry *e = device_log_get(p->rec->log, order[i]);

        put_some(p, disks[source_of(e)], e,
                 e->completed_as && e->completed_as <= nr_completed);
    }
    free(order);
    free(key);
    p->nr_reordered++;
    look(p, disks, k, "reordering");
}

/* ---- forwards ------------------------------------------------------------------------------------- */

/* Entries by their completion, which is counted from 1; SIZE_MAX behind the last. */
static size_t *
completions(const struct device_log *log)
{
    size_t n = device_log_length(log), *by = calloc(n + 2, sizeof(*by));

    THIN_ASSERT(by);
    for (size_t i = 0; i < n + 2; i++)
        by[i] = SIZE_MAX;
    for (size_t i = 0; i < n; i++)
        if (device_log_get(log, i)->completed_as)
            by[device_log_get(log, i)->completed_as] = i;
    return by;
}

static void
play(const struct recording *rec, uint64_t seed, struct crash_disk *before[SOURCES],
     uint64_t *nr_states, uint64_t *nr_reordered)
{
    static struct player p;
    size_t n = device_log_length(rec->log), done = 0;
    size_t *by = completions(rec->log);

    memset(&p, 0, sizeof(p));
    p.seed = seed;
    p.rec = rec;
    random_seed(&p.rng, seed);
    sim_model_init(&p.model);
    p.open = calloc(n + 1, sizeof(*p.open));
    THIN_ASSERT(p.open);
    for (unsigned s = 0; s < SOURCES; s++) {
        p.all[s] = crash_disk_fork_cut(before[s], &p.rng);
        p.protected[s] = before[s];
        p.nr_sectors[s] = crash_disk_size(before[s]) / SECTOR_SIZE;
        p.newest[s] = calloc(p.nr_sectors[s], sizeof(uint64_t));
        THIN_ASSERT(p.newest[s]);
    }
    for (size_t k = 0; k <= n; k++) {
        const struct device_log_entry *e = k < n ? device_log_get(rec->log, k) : NULL;

        /* The moment before entry k was submitted; at last, when all have ended. */
        for (; by[done + 1] != SIZE_MAX && (!e || done < e->submitted_after); done++)
            completed(&p, by[done + 1]);
        for (; p.next_note < rec->nr_notes && rec->notes[p.next_note].at <= k;
             p.next_note++)
            sim_model_apply(&p.model, &rec->notes[p.next_note].event);
        if (!e || is_change(&p, e) || e->op == DEVICE_FLUSH) {
            look_at_prefix(&p, k);
            if (random_below(&p.rng, REORDERED) == 0)
                look_at_reordered(&p, k, done);
        }
        if (e)
            submitted(&p, k);
    }
    *nr_states += p.nr_states;
    *nr_reordered += p.nr_reordered;
    for (unsigned s = 0; s < SOURCES; s++) {
        crash_disk_destroy(p.all[s]);
        crash_disk_destroy(p.protected[s]);
        free(p.newest[s]);
    }
    free(p.open);
    free(by);
    sim_model_fini(&p.model);
}

int
main(void)
{
    static struct recording rec;
    const char *given = getenv("SEED"), *states = getenv("STATES");
    uint64_t seed = given ? strtoull(given, NULL, 0) : 1, nr_states = 0, nr_reordered = 0;
    uint64_t wanted = getenv("THIN_TEST_LONG") ? STATES_LONG : STATES, nr_recordings = 0;
    size_t entries = 0;
    clock_t began = clock();

    /* A pool's large objects come and go a thousand times a second. */
    mallopt(M_MMAP_THRESHOLD, 1 << 26);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    thin_log_set_level((enum thin_log_level) - 1);
    if (states)
        wanted = strtoull(states, NULL, 0);
    for (; nr_states < wanted; seed++, nr_recordings++) {
        struct crash_disk *before[SOURCES];

        record(&rec, seed, before);
        entries += device_log_length(rec.log);
        play(&rec, seed, before, &nr_states, &nr_reordered);
        recording_fini(&rec);
    }
    printf("%" PRIu64 " recordings of %zu requests, seeds up to %" PRIu64 ": %" PRIu64
           " states, %" PRIu64 " of them reordered, %.1f s: all as promised\n",
           nr_recordings, entries, seed - 1, nr_states, nr_reordered,
           (double)(clock() - began) / CLOCKS_PER_SEC);
    return EXIT_SUCCESS;
}
