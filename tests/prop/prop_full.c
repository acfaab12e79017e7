/*
 * A pool that is always nearly full: random operations keep data and metadata between 95
 * and 100 % of what may be used. Whatever is refused is refused before it has begun:
 * nothing is rolled back, nothing wants a check, and at each moment a discard and a delete
 * succeed. Now and then the metadata is recounted and the pool opened again.
 *
 * SEED= repeats a run, STEPS= sets how many.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/recount.h"
#include "tests/lib/sim_loop.h"

#define BLOCK        65536u
#define DATA_BLOCKS  3000u
#define META_BLOCKS  1024u /* 4 MiB, the least that is made */
#define VOLUME_PAGES 200u  /* blocks of a volume */
#define NAMES        1500u
#define STEPS        40000u
#define STEPS_LONG   1000000u
#define REOPEN_EVERY 1000u
#define WEAR_EVERY   2500u

static struct pool_rig rig;
static struct thin_random rng;
static struct crash_disk *data_disk, *meta_disk;
static bool there[NAMES];
static uint64_t seed, step, nr_refused_data, nr_refused_metadata, nr_discards, nr_deletes,
    nr_writes, nr_snapshots, nr_full_data, nr_full_metadata, nr_measured;
static char page[4096];
static uint32_t nodes; /* most entries of one; 0: as the format has it */

#define die(...)                                                             \
    do {                                                                     \
        fprintf(stderr, "SEED=%" PRIu64 ": step %" PRIu64 ": ", seed, step); \
        fprintf(stderr, __VA_ARGS__);                                        \
        fputc('\n', stderr);                                                 \
        exit(EXIT_FAILURE);                                                  \
    } while (0)

static void
open_pool(bool format)
{
    struct pool_params params;

    rig_params(&rig, &params, crash_disk_open(data_disk, rig.loop),
               crash_disk_open(meta_disk, rig.loop));
    params.format = format;
    params.leaf_max = params.internal_max = nodes;
    params.config.on_full = POOL_ERROR;
    params.config.extend_metadata = false;
    params.config.metadata_cache_blocks = 512;
    params.config.commit_interval_ms = 20;
    params.seed = random_u64(&rng);
    if (rig_open(&rig, &params) < 0)
        die("the pool does not open: %s", rig.err.text);
}

static const void *
meta_page(void *arg, uint64_t index)
{
    return crash_disk_page(arg, index);
}

static void
reopen(void)
{
    const struct recount_source source = {
        .page = meta_page, .arg = meta_disk, .size = crash_disk_size(meta_disk)};
    struct recount rc;

    if (rig_close(&rig, false) < 0)
        die("the pool does not close: %s", rig.err.text);
    if (recount_pages(&source, NULL, &rc) < 0)
        die("the recount differs: %s", rc.why);
    open_pool(false);
}

static const char *
name_of(unsigned i)
{
    static char name[16];

    snprintf(name, sizeof(name), "v%u", i);
    return name;
}

/* -1: none. */
static int
pick(bool wanted)
{
    unsigned from = (unsigned)random_below(&rng, NAMES);

    for (unsigned i = 0; i < NAMES; i++)
        if (there[(from + i) % NAMES] == wanted)
            return (int)((from + i) % NAMES);
    return -1;
}

/* 0, or a refusal that is allowed when space is short. */
static int
allowed(int r, const char *what)
{
    switch (r) {
    case 0:
        return 0;
    case -THIN_E_NO_DATA_SPACE:
        nr_refused_data++;
        return r;
    case -THIN_E_NO_METADATA_SPACE:
        nr_refused_metadata++;
        return r;
    default:
        die("%s fails: %s: %s", what, thin_error_name(r), thin_error_text(&rig.err, r));
    }
}

static void
check_state(void)
{
    struct pool_info info;

    pool_get_info(rig.pool, &info);
    if (info.needs_check || info.mode == POOL_READ_ONLY || info.mode == POOL_FAIL)
        die("the pool is %s, needs a check: %d: %s", pool_mode_name(info.mode),
            info.needs_check, info.why);
}

/* ---- what takes space -------------------------------------------------------------------- */

static int
write_some(void)
{
    struct volume *volume;
    int i = pick(true), r = 0;
    uint64_t nr = 1 + random_below(&rng, 12);

    if (i < 0)
        return 0;
    if (rig_volume(&rig, name_of((unsigned)i), &volume) < 0)
        die("volume %s does not open: %s", name_of((unsigned)i), rig.err.text);
    for (uint64_t k = 0; k < nr && r == 0; k++) {
        r = allowed(rig_write(&rig, volume, random_below(&rng, VOLUME_PAGES) * BLOCK,
                              page, sizeof(page)),
                    "a write");
        nr_writes++;
    }
    if (random_below(&rng, 4) == 0 && rig_flush(&rig, volume) < 0)
        die("a flush fails: %s", rig.err.text);
    volume_close(volume);
    return r;
}

static int
snapshot_one(void)
{
    char origin[16];
    int from = pick(true), to = pick(false), r;

    if (to < 0)
        return 0;
    if (from < 0) {
        r = allowed(rig_create(&rig, name_of((unsigned)to), VOLUME_PAGES * BLOCK),
                    "a create");
    } else {
        snprintf(origin, sizeof(origin), "v%d", from);
        r = allowed(rig_snapshot(&rig, origin, name_of((unsigned)to)), "a snapshot");
    }
    there[to] = r == 0;
    nr_snapshots += r == 0;
    return r;
}

static int
create_one(void)
{
    int to = pick(false), r;

    if (to < 0)
        return 0;
    r = allowed(rig_create(&rig, name_of((unsigned)to), VOLUME_PAGES * BLOCK),
                "a create");
    there[to] = r == 0;
    return r;
}

/* ---- what gives it back: always succeeds ------------------------------------------------- */

static void
discard_some(void)
{
    struct volume *volume;
    int i = pick(true), r;
    uint64_t begin = random_below(&rng, VOLUME_PAGES), nr = 1 + random_below(&rng, 6);

    if (i < 0)
        return;
    nr = min_u64(nr, VOLUME_PAGES - begin);
    if (rig_volume(&rig, name_of((unsigned)i), &volume) < 0)
        die("volume %s does not open: %s", name_of((unsigned)i), rig.err.text);
    r = rig_io(&rig, volume, VOLUME_DISCARD, 0, begin * BLOCK, NULL, nr * BLOCK);
    if (r < 0) {
        struct pool_info info;

        pool_get_info(rig.pool, &info);
        die("a discard of %" PRIu64 " blocks fails: %s (free are %" PRIu64
            " metadata blocks and %" PRIu64 " data blocks)",
            nr, thin_error_name(r), info.metadata_blocks_free, info.data_blocks_free);
    }
    volume_close(volume);
    nr_discards++;
}

static void
delete_one(void)
{
    int i = pick(true);

    if (i < 0)
        return;
    if (rig_delete(&rig, name_of((unsigned)i)) < 0)
        die("a delete fails: %s", rig.err.text);
    there[i] = false;
    nr_deletes++;
}

/*
 * A block out of each volume, again and again: what a snapshot shares must become its own
 * first, which takes metadata and gives none back. And deletes succeed after that.
 */
static void
wear_out(void)
{
    for (unsigned i = 0; i < 3 * NAMES; i++)
        discard_some();
    for (unsigned i = 0; i < 5; i++)
        delete_one();
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* In percent of what ordinary changes may use: a tenth of the metadata is kept for those
   that give space back. */
static void
measure(unsigned *ret_data, unsigned *ret_metadata)
{
    struct pool_info info;
    uint64_t blocks, reserve;

    pool_get_info(rig.pool, &info);
    blocks = info.metadata_size / 4096;
    reserve = blocks / 10;
    *ret_data = (unsigned)(info.data_used * 100 / info.data_size);
    *ret_metadata = (unsigned)(info.metadata_used / 4096 * 100 / (blocks - reserve));
}

static void
one_step(void)
{
    unsigned data, metadata;
    int r;

    measure(&data, &metadata);
    if (metadata < 95 && random_below(&rng, 3))
        r = random_below(&rng, 3) ? snapshot_one() : create_one();
    else
        r = write_some();
    if (r == -THIN_E_NO_DATA_SPACE || (data >= 97 && random_below(&rng, 3) == 0))
        discard_some();
    if (r == -THIN_E_NO_METADATA_SPACE || random_below(&rng, 40) == 0)
        delete_one();
    if (random_below(&rng, 50) == 0)
        discard_some();
    if (step % WEAR_EVERY == WEAR_EVERY - 1)
        wear_out();
    check_state();
    if (step % REOPEN_EVERY == REOPEN_EVERY - 1)
        reopen();
}

static void
run(uint64_t wanted)
{
    random_seed(&rng, seed);
    rig.loop = sim_loop_create(seed);
    data_disk = crash_disk_create(&rng, DATA_BLOCKS * BLOCK, NULL);
    meta_disk = crash_disk_create(&rng, META_BLOCKS * 4096, NULL);
    memset(there, 0, sizeof(there));
    nr_refused_data = nr_refused_metadata = nr_discards = nr_deletes = nr_writes = 0;
    nr_snapshots = nr_full_data = nr_full_metadata = nr_measured = 0;
    open_pool(true);
    for (step = 0; step < wanted; step++) {
        if (step > wanted / 2) { /* it had to be filled */
            unsigned data, metadata;

            measure(&data, &metadata);
            nr_measured++;
            nr_full_data += data >= 95;
            nr_full_metadata += metadata >= 90;
        }
        one_step();
    }
    reopen();
    if (rig_close(&rig, false) < 0)
        die("the pool does not close: %s", rig.err.text);
    printf("SEED=%" PRIu64 ", nodes of %u: %" PRIu64 " steps, %" PRIu64
           " writes, %" PRIu64 " snapshots, %" PRIu64 " discards and %" PRIu64
           " deletes, none refused; refused "
           "for data %" PRIu64 ", for metadata %" PRIu64
           "; data at 95 %% or more in %" PRIu64
           " %% of the steps, metadata at 90 %% of what it may use in %" PRIu64 " %%\n",
           seed, nodes, step, nr_writes, nr_snapshots, nr_discards, nr_deletes,
           nr_refused_data, nr_refused_metadata,
           nr_full_data * 100 / max_u64(nr_measured, 1),
           nr_full_metadata * 100 / max_u64(nr_measured, 1));
    /* Small nodes need so many that the data never gets full. */
    if (nr_refused_metadata == 0 || nr_full_metadata < nr_measured / 2 ||
        (nodes == 0 && (nr_refused_data == 0 || nr_full_data < nr_measured / 2)))
        die("the pool was not full enough");
    crash_disk_destroy(data_disk);
    crash_disk_destroy(meta_disk);
    sim_loop_destroy(rig.loop);
}

int
main(void)
{
    const char *given = getenv("SEED"), *steps = getenv("STEPS");
    uint64_t wanted = getenv("THIN_TEST_LONG") ? STEPS_LONG : STEPS;

    seed = given ? strtoull(given, NULL, 0) : 1;
    if (steps)
        wanted = strtoull(steps, NULL, 0);
    thin_log_set_level((enum thin_log_level) - 1);
    memset(page, 'p', sizeof(page));
    run(wanted);
    nodes = 12;
    run(wanted / 4);
    nodes = 6;
    run(wanted / 4);
    return EXIT_SUCCESS;
}
