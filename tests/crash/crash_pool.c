/*
 * The whole engine on disks that crash: many volumes, snapshots, discards, flushes, FUA,
 * deletes, from one seed; the power goes anywhere, also while the pool opens; then the
 * metadata is recounted, the pool opened, and every sector compared with a model of what
 * may stand there.
 *
 * The model knows for each sector the values that may be found: a write adds one; a
 * flush (or FUA) takes away what was overwritten for certain before it. A snapshot gets
 * its origin's candidates of the time between its request and its answer.
 *
 * SEED= repeats one run, CRASHES= sets their number.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "core/pool/pool.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/recount.h"
#include "tests/lib/sim_loop.h"

#define BLOCK       65536u
#define DATA_BLOCKS 80u
#define META_BLOCKS 512u
#define VOL_BLOCKS  6u
#define VOL_SIZE    (VOL_BLOCKS * BLOCK - 1536u)
#define VOL_SECTORS (VOL_SIZE / 512u)
#define VOLUMES     6u
#define CANDIDATES  10u
#define DEPTH       12u
#define ROUNDS      8u /* crashes of one seed */
#define CRASHES     320u
#define TWICE       8u /* of so many seeds one runs twice, to see that it repeats itself */
#define NEVER       UINT64_MAX

struct candidate {
    uint64_t value, submitted, acked;
    bool durable; /* answered with FUA */
};

struct sector {
    unsigned nr;
    struct candidate c[CANDIDATES];
};

enum life { GONE, MAKING, THERE, GOING };

struct model {
    enum life life;
    struct volume *volume;
    bool opening;
    unsigned in_flight;
    unsigned reads;          /* in flight: what they may find is not forgotten */
    uint64_t flushed;        /* writes that had ended then are durable */
    struct model *origin;    /* MAKING by a snapshot */
    uint64_t snap_submitted; /* likewise */
    uint64_t made;
    struct sector sectors[VOL_SECTORS];
};

enum op_kind { OP_READ, OP_WRITE, OP_ZEROES, OP_DISCARD, OP_FLUSH };

struct op {
    struct volume_io io;
    struct iovec iov[3];
    struct model *m;
    enum op_kind kind;
    uint64_t value, submitted;
    uint64_t first, nr; /* sectors */
    unsigned char *bytes;
};

struct admin_op {
    struct model *m;
    enum life wanted;
};

static struct thin_random rng;
static uint64_t seed, now, next_value;
static struct thin_loop *loop;
static struct crash_disk *data_disk, *meta_disk;
static struct pool *pool;
static bool pool_call_ended, rolled_back;
static int pool_call_result;
static struct model models[VOLUMES];
static unsigned ops_in_flight, admin_in_flight;
static uint64_t nr_crashes, nr_ops, nr_lost, nr_rollbacks;

#define die(...)                                                                   \
    do {                                                                           \
        fprintf(stderr, "SEED=%" PRIu64 " crash %" PRIu64 ": ", seed, nr_crashes); \
        fprintf(stderr, __VA_ARGS__);                                              \
        fprintf(stderr, "\n");                                                     \
        abort();                                                                   \
    } while (0)

/* ---- the model ---------------------------------------------------------------------------- */

static void
sector_reset(struct sector *s, uint64_t value)
{
    s->nr = 1;
    s->c[0].value = value;
    s->c[0].submitted = s->c[0].acked = 0;
    s->c[0].durable = false;
}

/* Drops what was overwritten, for certain, by a write that had ended at `by` (or with
   FUA). */
static void
sector_prune(struct sector *s, uint64_t by, bool fua)
{
    uint64_t newest = 0;
    unsigned kept = 0;

    for (unsigned i = 0; i < s->nr; i++)
        if ((s->c[i].acked <= by || (fua && s->c[i].durable)) &&
            s->c[i].submitted > newest)
            newest = s->c[i].submitted;
    for (unsigned i = 0; i < s->nr; i++)
        if (s->c[i].acked > newest || s->c[i].submitted == newest)
            s->c[kept++] = s->c[i];
    s->nr = kept;
}

static bool
sector_allows(const struct sector *s, uint64_t value)
{
    for (unsigned i = 0; i < s->nr; i++)
        if (s->c[i].value == value)
            return true;
    return false;
}

static void
sector_add(struct sector *s, uint64_t value, uint64_t submitted)
{
    s->c[s->nr].value = value;
    s->c[s->nr].submitted = submitted;
    s->c[s->nr].acked = NEVER;
    s->c[s->nr].durable = false;
    s->nr++;
}

static void
sector_ack(struct sector *s, uint64_t submitted, uint64_t at, bool durable)
{
    for (unsigned i = 0; i < s->nr; i++) {
        if (s->c[i].submitted == submitted) {
            s->c[i].acked = at;
            s->c[i].durable = durable;
        }
    }
}

static void
sector_tell(const struct sector *s)
{
    for (unsigned i = 0; i < s->nr; i++)
        fprintf(stderr,
                "  candidate %" PRIx64 " submitted %" PRIu64 " answered %" PRIu64 "%s\n",
                s->c[i].value, s->c[i].submitted, s->c[i].acked,
                s->c[i].durable ? " (FUA)" : "");
}

static uint64_t
bytes_value(const unsigned char *bytes, const char *where, uint64_t sector)
{
    uint64_t value, other;

    memcpy(&value, bytes, 8);
    for (unsigned i = 8; i < 512; i += 8) {
        memcpy(&other, bytes + i, 8);
        if (other != value)
            die("%s: sector %" PRIu64 " is torn: %" PRIx64 " and %" PRIx64, where, sector,
                value, other);
    }
    return value;
}

static const char *
model_name(const struct model *m)
{
    static const char *const names[VOLUMES] = {"a", "b", "c", "d", "e", "f"};

    return names[m - models];
}

static void
model_prune(struct model *m)
{
    for (unsigned i = 0; i < VOL_SECTORS; i++)
        sector_prune(&m->sectors[i], m->flushed, true);
}

/* A snapshot holds one of what it may hold, and it is durable: once seen, it stays. */
static void
sector_seen(struct sector *s, uint64_t value)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < s->nr; i++)
        if (s->c[i].value == value && s->c[i].submitted != 0)
            return;
    for (unsigned i = 0; i < s->nr; i++)
        if (s->c[i].submitted != 0 || s->c[i].value == value)
            s->c[kept++] = s->c[i];
    s->nr = kept;
}

/* ---- requests --------------------------------------------------------------------------------- */

static bool
room_for_candidates(struct model *m, uint64_t first, uint64_t nr)
{
    for (struct model *k = models; k < models + VOLUMES; k++) {
        if (k != m && !(k->life == MAKING && k->origin == m))
            continue;
        for (uint64_t i = first; i < first + nr; i++)
            if (k->sectors[i].nr == CANDIDATES)
                return false;
    }
    return true;
}

static void
op_done(struct volume_io *io, int result)
{
    struct op *op = container_of(io, struct op, io);
    struct model *m = op->m;
    uint64_t at = ++now;

    ops_in_flight--;
    m->in_flight--;
    if (op->kind == OP_READ)
        m->reads--;
    nr_ops++;
    if (result == 0) {
        for (uint64_t i = op->first; i < op->first + op->nr; i++) {
            struct sector *s = &m->sectors[i];

            if (op->kind == OP_READ) {
                struct sector seen = *s;
                uint64_t value =
                    bytes_value(op->bytes + (i - op->first) * 512, model_name(m), i);

                sector_prune(&seen, op->submitted, false);
                if (!sector_allows(&seen, value)) {
                    sector_tell(s);
                    die("volume %s sector %" PRIu64 " reads %" PRIx64, model_name(m), i,
                        value);
                }
                if (m->life == THERE && op->submitted > m->made)
                    sector_seen(s, value);
            } else if (op->kind != OP_FLUSH) {
                sector_ack(s, op->submitted, at, io->flags & VOLUME_FUA);
            }
        }
        if (op->kind == OP_FLUSH && op->submitted > m->flushed)
            m->flushed = op->submitted;
        if (op->kind == OP_FLUSH && m->reads == 0)
            model_prune(m);
    } else if (result != -THIN_E_ROLLED_BACK && result != -THIN_E_SHUTDOWN &&
               result != -THIN_E_LOST && result != -THIN_E_NO_DATA_SPACE &&
               result != -THIN_E_READ_ONLY && result != -EIO &&
               result != -THIN_E_FAILED) {
        die("a request failed: %s", thin_error_name(result));
    }
    free(op->bytes);
    free(op);
}

static void
op_start(struct model *m)
{
    struct op *op = calloc(1, sizeof(*op));
    uint64_t dice = random_below(&rng, 100);
    bool blocks = random_below(&rng, 4) == 0;
    uint64_t cut_at;

    op->m = m;
    op->kind = dice < 20   ? OP_READ
               : dice < 75 ? OP_WRITE
               : dice < 82 ? OP_ZEROES
               : dice < 88 ? OP_DISCARD
                           : OP_FLUSH;
    if (op->kind == OP_DISCARD)
        blocks = true;
    if (op->kind != OP_FLUSH && blocks) {
        op->first = random_below(&rng, VOL_BLOCKS) * (BLOCK / 512);
        op->nr = (1 + random_below(&rng, 3)) * (BLOCK / 512);
    } else if (op->kind != OP_FLUSH) {
        op->first = random_below(&rng, VOL_SECTORS);
        op->nr = 1 + random_below(&rng, random_below(&rng, 3) ? 16 : 300);
    } else {
        op->nr = VOL_SECTORS;
    }
    if (op->first + op->nr > VOL_SECTORS)
        op->nr = VOL_SECTORS - op->first;
    if (op->kind != OP_READ && op->kind != OP_FLUSH &&
        !room_for_candidates(m, op->first, op->nr)) {
        op->kind = OP_FLUSH;
        op->first = 0;
        op->nr = VOL_SECTORS;
    }
    op->io.offset = op->first * 512;
    op->io.len = op->nr * 512;
    op->io.done = op_done;
    op->submitted = ++now;
    if (op->kind == OP_READ || op->kind == OP_WRITE) {
        op->bytes = malloc(op->nr * 512);
        /* In two pieces, not always cut at a sector. */
        cut_at = random_below(&rng, op->io.len);
        op->iov[0].iov_base = op->bytes;
        op->iov[0].iov_len = cut_at;
        op->iov[1].iov_base = op->bytes + cut_at;
        op->iov[1].iov_len = op->io.len - cut_at;
        op->io.iov = op->iov;
        op->io.nr_iov = 2;
    }
    switch (op->kind) {
    case OP_READ:
        m->reads++;
        op->io.op = VOLUME_READ;
        break;
    case OP_WRITE:
        op->io.op = VOLUME_WRITE;
        op->value = ++next_value;
        for (uint64_t i = 0; i < op->nr * 64; i++)
            memcpy(op->bytes + i * 8, &op->value, 8);
        break;
    case OP_ZEROES:
        op->io.op = VOLUME_WRITE_ZEROES;
        if (random_below(&rng, 3) == 0)
            op->io.flags |= VOLUME_NO_HOLE;
        break;
    case OP_DISCARD:
        op->io.op = VOLUME_DISCARD;
        break;
    case OP_FLUSH:
        op->io.op = VOLUME_FLUSH;
        break;
    }
    if (op->kind == OP_WRITE || op->kind == OP_ZEROES || op->kind == OP_DISCARD) {
        if (random_below(&rng, 8) == 0 && op->kind != OP_DISCARD)
            op->io.flags |= VOLUME_FUA;
        for (struct model *k = models; k < models + VOLUMES; k++)
            for (uint64_t i = op->first; i < op->first + op->nr; i++)
                if (k == m || (k->life == MAKING && k->origin == m))
                    sector_add(&k->sectors[i], op->value, op->submitted);
    }
    ops_in_flight++;
    m->in_flight++;
    volume_submit(m->volume, &op->io);
}

/* ---- volumes -------------------------------------------------------------------------------------- */

static void
volume_opened(void *arg, struct volume *volume, int result, const struct thin_error *err)
{
    struct model *m = arg;

    (void)result;
    (void)err;
    admin_in_flight--;
    m->opening = false;
    m->volume = volume;
}

static void
admin_done(void *arg, int result, const struct thin_error *err)
{
    struct admin_op *op = arg;
    struct model *m = op->m;

    admin_in_flight--;
    if (result == 0) {
        m->life = op->wanted;
        if (m->origin && op->wanted == THERE)
            for (unsigned i = 0; i < VOL_SECTORS; i++)
                for (unsigned k = 0; k < m->sectors[i].nr; k++) {
                    /* It holds one of them; which came later does not matter here. */
                    m->sectors[i].c[k].submitted = m->sectors[i].c[k].acked = 0;
                    m->sectors[i].c[k].durable = false;
                }
        m->made = now;
        now++;
        m->origin = NULL;
    } else if (result != -THIN_E_ROLLED_BACK && result != -THIN_E_SHUTDOWN &&
               result != -THIN_E_LOST && result != -EIO && result != -THIN_E_READ_ONLY &&
               result != -THIN_E_FAILED && result != -THIN_E_NO_DATA_SPACE) {
        die("%s of volume %s failed: %s", op->wanted == THERE ? "making" : "deleting",
            model_name(m), thin_error_text(err, result));
    } else if (result == -THIN_E_NO_DATA_SPACE) {
        m->life = op->wanted == THERE ? GONE : THERE;
        m->origin = NULL;
    }
    free(op);
}

static void
admin_start(struct model *m)
{
    struct admin_op *op = calloc(1, sizeof(*op));
    struct pool_done done = {admin_done, op};
    struct model *origin = NULL;

    op->m = m;
    admin_in_flight++;
    if (m->life == THERE) {
        volume_close(m->volume);
        m->volume = NULL;
        m->life = GOING;
        op->wanted = GONE;
        pool_volume_delete(pool, model_name(m), done);
        return;
    }
    m->life = MAKING;
    m->flushed = 0;
    op->wanted = THERE;
    for (unsigned i = 0; i < VOLUMES && !origin; i++) {
        struct model *o = &models[(i + random_below(&rng, VOLUMES)) % VOLUMES];

        if (o->life == THERE && o->volume)
            origin = o;
    }
    if (origin && random_below(&rng, 4)) {
        const char *from = model_name(origin), *name = model_name(m);

        m->origin = origin;
        m->snap_submitted = ++now;
        memcpy(m->sectors, origin->sectors, sizeof(m->sectors));
        for (unsigned i = 0; i < VOL_SECTORS; i++)
            sector_prune(&m->sectors[i], m->snap_submitted, true);
        pool_volume_snapshot(pool, &from, &name, 1, done);
    } else {
        struct volume_spec spec = {.name = model_name(m), .size = VOL_SIZE};

        m->origin = NULL;
        for (unsigned i = 0; i < VOL_SECTORS; i++)
            sector_reset(&m->sectors[i], 0);
        pool_volume_create(pool, &spec, done);
    }
}

/* ---- the pool ---------------------------------------------------------------------------------------- */

static void
event(void *arg, struct pool *p, const char *name, const char *words)
{
    (void)arg;
    (void)p;
    (void)words;
    if (strcmp(name, "rolled-back") == 0)
        rolled_back = true;
}

static void
opened(void *arg, struct pool *p, int result, const struct thin_error *err)
{
    (void)arg;
    pool = p;
    pool_call_ended = true;
    pool_call_result = result;
    if (result < 0 && result != -THIN_E_LOST && result != -THIN_E_ROLLED_BACK)
        die("the pool does not open: %s", thin_error_text(err, result));
}

static void
open_begin(bool format)
{
    struct pool_params params;

    memset(&params, 0, sizeof(params));
    params.loop = loop;
    params.name = "tank";
    params.data = crash_disk_open(data_disk, loop);
    params.metadata = crash_disk_open(meta_disk, loop);
    pool_config_default(&params.config);
    params.config.metadata_cache_blocks = 128 + (uint32_t)random_below(&rng, 200);
    params.config.mapping_cache_pages = 8;
    params.config.commit_interval_ms = 1 + random_below(&rng, 40);
    params.config.on_full = POOL_ERROR;
    if (random_below(&rng, 3) == 0) {
        params.config.extend_data.percent = 80;
        params.config.extend_data.step_bytes = 5 * BLOCK;
        params.config.extend_data.limit_bytes = (DATA_BLOCKS + 30) * BLOCK;
    }
    params.config.discards =
        random_below(&rng, 4) ? POOL_DISCARD_PASSDOWN : POOL_DISCARD_UNMAP;
    params.seed = random_u64(&rng);
    params.wall_clock_s = 1700000000;
    params.data_block_sectors = BLOCK / 512;
    params.format = format;
    params.leaf_max = params.internal_max = 6;
    params.event = event;
    rolled_back = false;
    pool_call_ended = false;
    pool_open(&params, opened, NULL);
}

static void
run_until(const bool *ended, const char *what)
{
    for (uint64_t steps = 0; !*ended; steps++) {
        if (!sim_loop_step(loop))
            die("nothing is left to run, but %s has not ended", what);
        if (steps > 3000000)
            die("%s does not end", what);
    }
}

static void
closed(void *arg, int result, const struct thin_error *err)
{
    (void)arg;
    (void)result;
    (void)err;
    pool_call_ended = true;
}

static void
pool_end(void)
{
    struct pool_done done = {closed, NULL};

    pool_call_ended = false;
    pool_close(pool, true, done);
    run_until(&pool_call_ended, "closing the pool");
    pool = NULL;
    if (ops_in_flight || admin_in_flight)
        die("%u requests and %u changes were never answered", ops_in_flight,
            admin_in_flight);
    for (struct model *m = models; m < models + VOLUMES; m++) {
        volume_close(m->volume);
        m->volume = NULL;
    }
}

/* The durable metadata, counted anew. */
static void
recount(void)
{
    struct device *mem = NULL;
    struct recount rc;
    size_t size = crash_disk_size(meta_disk); /* it grows by itself */
    uint8_t *image = malloc(size), *block0 = image;
    bool blank = true;

    crash_disk_read(meta_disk, 0, image, size);
    for (unsigned i = 0; i < 4096 && blank; i++)
        blank = block0[i] == 0;
    if (blank) { /* the format was not durable yet */
        free(image);
        return;
    }
    if (device_mem_open(loop, size, &mem) < 0 ||
        device_write_wait(mem, 0, image, size, 0) < 0)
        die("no memory for the image");
    if (recount_image(mem, NULL, &rc) < 0)
        die("the recount differs: %s", rc.why);
    device_close_wait(mem);
    free(image);
}

struct whole_read {
    struct volume_io io;
    struct iovec iov;
    bool done;
    int result;
};

static void
whole_read_done(struct volume_io *io, int result)
{
    struct whole_read *w = container_of(io, struct whole_read, io);

    w->done = true;
    w->result = result;
}

/* Opens it, reads all of it; if `final`, only what was read may stand there from then on. */
static void
check_volume(struct model *m, bool final)
{
    static unsigned char bytes[VOL_SIZE];
    struct whole_read w;

    admin_in_flight++;
    m->opening = true;
    pool_volume_open(pool, model_name(m), false, volume_opened, m);
    while (m->opening)
        if (!sim_loop_step(loop))
            die("opening volume %s has not ended", model_name(m));
    if (!m->volume)
        die("volume %s does not open", model_name(m));
    model_prune(m);
    if (final)
        m->flushed = 0;
    memset(&w, 0, sizeof(w));
    w.iov.iov_base = bytes;
    w.iov.iov_len = VOL_SIZE;
    w.io.op = VOLUME_READ;
    w.io.len = VOL_SIZE;
    w.io.iov = &w.iov;
    w.io.nr_iov = 1;
    w.io.done = whole_read_done;
    volume_submit(m->volume, &w.io);
    run_until(&w.done, "reading a volume");
    if (w.result < 0)
        die("volume %s does not read: %s", model_name(m), thin_error_name(w.result));
    for (uint64_t i = 0; i < VOL_SECTORS; i++) {
        uint64_t value = bytes_value(bytes + i * 512, model_name(m), i);

        if (!sector_allows(&m->sectors[i], value)) {
            sector_tell(&m->sectors[i]);
            die("volume %s sector %" PRIu64 " holds %" PRIx64, model_name(m), i, value);
        }
        if (final)
            sector_reset(&m->sectors[i], value);
    }
}

static void
check_names(void)
{
    char name[THIN_NAME_MAX + 1];
    struct volume_info info;
    unsigned nr = 0, wanted = 0;

    for (struct model *m = models; m < models + VOLUMES; m++) {
        bool there = pool_volume_peek(pool, model_name(m), &info);

        if (there && info.size != VOL_SIZE)
            die("volume %s has %" PRIu64 " bytes", model_name(m), info.size);
        if ((m->life == THERE && !there) || (m->life == GONE && there))
            die("volume %s is %s", model_name(m), there ? "there" : "gone");
        m->life = there ? THERE : GONE;
        m->origin = NULL;
        wanted += there;
    }
    name[0] = '\0';
    while (nr <= VOLUMES && pool_volume_next(pool, name[0] ? name : NULL, &info)) {
        memcpy(name, info.name, sizeof(name));
        nr++;
    }
    if (nr != wanted)
        die("%u volumes are listed, not %u", nr, wanted);
}

/* ---- one seed ------------------------------------------------------------------------------------------ */

static void
work(uint64_t steps)
{
    while (steps-- > 0 && !rolled_back) {
        struct model *m = &models[random_below(&rng, VOLUMES)];

        if (ops_in_flight < DEPTH && random_below(&rng, 3) == 0) {
            if (m->life == THERE && m->volume)
                op_start(m);
        } else if (admin_in_flight == 0 && random_below(&rng, 40) == 0) {
            /* Nobody deletes what is being copied, or has requests. */
            bool busy = m->in_flight > 0;

            for (struct model *k = models; k < models + VOLUMES; k++)
                busy = busy || (k->life == MAKING && k->origin == m);
            if (m->life == GONE ||
                (m->life == THERE && !busy && random_below(&rng, 4) == 0))
                admin_start(m);
        } else if (m->life == THERE && !m->volume && !m->opening) {
            m->opening = true;
            admin_in_flight++;
            pool_volume_open(pool, model_name(m), false, volume_opened, m);
        } else {
            sim_loop_step(loop);
        }
    }
}

static void
power_cut(void)
{
    nr_crashes++;
    nr_lost += crash_disk_nr_kept(data_disk) + crash_disk_nr_kept(meta_disk);
    crash_disk_cut(data_disk);
    crash_disk_cut(meta_disk);
}

/*
 * After a roll-back the pool serves on, reading: what the volumes hold is what is
 * durable, for handles that are opened anew.
 */
static void
check_after_roll_back(void)
{
    while (ops_in_flight || admin_in_flight)
        if (!sim_loop_step(loop))
            die("%u requests and %u changes have no end after a roll-back", ops_in_flight,
                admin_in_flight);
    for (struct model *m = models; m < models + VOLUMES; m++) {
        struct volume *fenced = m->volume;

        /* Beside the old handle: what the engine remembers of the volume stays. */
        m->volume = NULL;
        if (m->life == THERE)
            check_volume(m, false);
        volume_close(fenced);
    }
}

/* Opens; sometimes the power goes again before it is open. */
static void
open_again(void)
{
    while (true) {
        bool again = random_below(&rng, 6) == 0;
        uint64_t steps = random_below(&rng, 400);

        open_begin(false);
        while (again && !pool_call_ended && steps-- > 0)
            sim_loop_step(loop);
        if (again && !pool_call_ended)
            power_cut();
        else
            again = false;
        run_until(&pool_call_ended, "opening the pool");
        if (pool_call_result == 0 && again) {
            pool_end();
        } else if (pool_call_result == 0) {
            return;
        }
        recount();
    }
}

/* Returns what two equal runs have in common. */
static uint64_t
run_seed(void)
{
    struct crash_params *data_params, *meta_params;
    uint64_t trace;

    now = next_value = 0;

    random_seed(&rng, seed);
    loop = sim_loop_create(random_u64(&rng));
    data_disk = crash_disk_create(&rng, DATA_BLOCKS * BLOCK, NULL);
    meta_disk = crash_disk_create(&rng, META_BLOCKS * 4096, NULL);
    data_params = crash_disk_params(data_disk);
    meta_params = crash_disk_params(meta_disk);
    memset(models, 0, sizeof(models));
    open_begin(true);
    run_until(&pool_call_ended, "making the pool");
    for (unsigned round = 0; round < ROUNDS; round++) {
        bool faults = random_below(&rng, 4) == 0;

        data_params->flush_error_ppm = faults ? 60000 : 0;
        meta_params->flush_error_ppm = faults && random_below(&rng, 2) ? 30000 : 0;
        data_params->write_error_ppm = faults && random_below(&rng, 2) ? 5000 : 0;
        work(200 + random_below(&rng, 4000));
        data_params->flush_error_ppm = meta_params->flush_error_ppm = 0;
        data_params->write_error_ppm = 0;
        nr_rollbacks += rolled_back;
        if (rolled_back && random_below(&rng, 2))
            check_after_roll_back();
        power_cut();
        pool_end();
        recount();
        open_again();
        check_names();
        for (struct model *m = models; m < models + VOLUMES; m++)
            if (m->life == THERE)
                check_volume(m, true);
    }
    pool_end();
    recount();
    trace = sim_loop_trace(loop);
    crash_disk_destroy(data_disk);
    crash_disk_destroy(meta_disk);
    sim_loop_destroy(loop);
    return trace;
}

int
main(void)
{
    const char *given = getenv("SEED"), *crashes = getenv("CRASHES");
    uint64_t wanted = crashes ? strtoull(crashes, NULL, 0) : CRASHES;

    thin_log_set_level(THIN_LOG_ERROR);
    if (getenv("THIN_TEST_LONG") && !crashes)
        wanted = 20 * CRASHES;
    seed = given ? strtoull(given, NULL, 0) : 1;
    do {
        uint64_t trace = run_seed();

        if ((given || seed % TWICE == 0) && run_seed() != trace)
            die("the same seed went two ways");
        seed++;
    } while (!given && nr_crashes < wanted);
    printf("seeds up to %" PRIu64 ": %" PRIu64 " crashes, %" PRIu64 " requests, %" PRIu64
           " roll-backs, %" PRIu64 " writes at stake: all as promised\n",
           seed - 1, nr_crashes, nr_ops, nr_rollbacks, nr_lost);
    return EXIT_SUCCESS;
}
