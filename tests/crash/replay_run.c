/*
 * A recorded run of thinsrv itself (record_io.c, record-run.py) is built again as its disks
 * may have been at each moment: every prefix of what was submitted, forwards and
 * copy-on-write, and reorderings of what no flush protects. Each state is recounted, opened
 * and compared with what the clients knew then (replay_notes.h).
 *
 *   replay_run DATA META LOG NOTES     the two files as they were before the run
 *
 * STATES= about how many, spread over the run (0: every prefix, and a reordering at half
 * of them), SEED= for the reorderings.
 */
#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/log.h"
#include "tests/crash/replay_notes.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/recount.h"
#include "tests/lib/sim_loop.h"

#define STATES     2000u
#define TOOL_EVERY 250u /* one state in so many is thin_check's as well */

enum { OP_WRITE, OP_FLUSH, OP_ZERO, OP_GROW, OP_END };
enum { DATA, META, SOURCES };

struct record { /* as record_io.c has it */
    uint32_t magic;
    uint8_t op, source;
    uint16_t fua;
    uint64_t id, offset, len;
};
#define MAGIC 0x31434552u

struct request {
    struct record r;
    uint64_t data_at; /* in the log */
    size_t begun;     /* number of the event */
    size_t ended;     /* likewise; 0: never */
};

static const char *log_bytes;
static uint64_t log_len;
static struct request *requests; /* by id - 1 */
static size_t nr_requests;
static struct crash_disk *all[SOURCES], *protected_[SOURCES];
static uint64_t *newest[SOURCES]; /* by sector: end of what is protected there */
static uint64_t nr_sectors[SOURCES];
static size_t *open_ids, nr_open;
static struct thin_random rng;
static struct notes *notes;
static uint64_t nr_states, nr_reordered, nr_tool, nr_reads;
static const char *label;
static uint64_t label_at;

#define die(...)                                                            \
    do {                                                                    \
        fprintf(stderr, "%s at %" PRIu64 " of the log: ", label, label_at); \
        fprintf(stderr, __VA_ARGS__);                                       \
        fputc('\n', stderr);                                                \
        exit(EXIT_FAILURE);                                                 \
    } while (0)

/* ---- reading --------------------------------------------------------------------------- */

static char *
read_file(const char *path, uint64_t *ret_len)
{
    FILE *file = fopen(path, "re");
    char *bytes;
    long len;

    if (!file || fseek(file, 0, SEEK_END) < 0 || (len = ftell(file)) < 0)
        die("%s: %s", path, strerror(errno));
    rewind(file);
    bytes = malloc((size_t)len + 1);
    THIN_ASSERT(bytes);
    if (fread(bytes, 1, (size_t)len, file) != (size_t)len)
        die("%s cannot be read", path);
    fclose(file);
    *ret_len = (uint64_t)len;
    return bytes;
}

static struct crash_disk *
read_disk(const char *path)
{
    uint64_t len;
    char *bytes = read_file(path, &len);
    struct crash_disk *disk = crash_disk_create(&rng, len, NULL);
    static const char zeros[4096];

    for (uint64_t at = 0; at + 4096 <= len; at += 4096)
        if (memcmp(bytes + at, zeros, 4096) != 0)
            crash_disk_write(disk, at, bytes + at, 4096);
    free(bytes);
    return disk;
}

/* The record at `at`; false where the log ends, maybe in the middle of one. */
static bool
get(uint64_t at, struct record *ret, uint64_t *ret_next)
{
    if (at + sizeof(*ret) > log_len)
        return false;
    memcpy(ret, log_bytes + at, sizeof(*ret));
    if (ret->magic != MAGIC)
        die("no record");
    *ret_next = at + sizeof(*ret) + (ret->op == OP_WRITE ? ret->len : 0);
    return *ret_next <= log_len;
}

static size_t
read_log(void)
{
    struct record r;
    uint64_t at = 0, next = 0;
    size_t event = 0, nr_changes = 0;

    for (; get(at, &r, &next); at = next) {
        label_at = at;
        event++;
        if (r.op == OP_END) {
            THIN_ASSERT(r.id >= 1 && r.id <= nr_requests);
            requests[r.id - 1].ended = event;
            if (requests[r.id - 1].r.op == OP_WRITE)
                requests[r.id - 1].r.len = r.len; /* it may have been a part */
            continue;
        }
        THIN_ASSERT(r.id == nr_requests + 1);
        if ((nr_requests & (nr_requests + 1)) == 0) {
            requests = realloc(requests, (2 * nr_requests + 2) * sizeof(*requests));
            THIN_ASSERT(requests);
        }
        requests[nr_requests++] =
            (struct request){.r = r, .data_at = at + sizeof(r), .begun = event};
        nr_changes += r.op != OP_GROW;
    }
    return nr_changes;
}

/* ---- building ---------------------------------------------------------------------------- */

static void
put_sector(struct crash_disk *disk, const struct request *q, uint64_t i)
{
    static const char zeros[SECTOR_SIZE];

    crash_disk_write(disk, q->r.offset + i * SECTOR_SIZE,
                     q->r.op == OP_WRITE ? log_bytes + q->data_at + i * SECTOR_SIZE
                                         : zeros,
                     SECTOR_SIZE);
}

static void
grow(const struct request *q)
{
    uint64_t nr = q->r.offset / SECTOR_SIZE;
    unsigned s = q->r.source;

    if (nr <= nr_sectors[s])
        return;
    crash_disk_grow(all[s], q->r.offset);
    crash_disk_grow(protected_[s], q->r.offset);
    newest[s] = realloc(newest[s], nr * sizeof(uint64_t));
    THIN_ASSERT(newest[s]);
    memset(newest[s] + nr_sectors[s], 0, (nr - nr_sectors[s]) * sizeof(uint64_t));
    nr_sectors[s] = nr;
}

static void
submitted(size_t id)
{
    const struct request *q = &requests[id];

    if (q->r.op == OP_GROW)
        grow(q);
    if (q->r.op != OP_WRITE && q->r.op != OP_ZERO)
        return;
    /* The driver punches beyond the end to see what can be done; nothing is there. */
    if (q->r.offset + q->r.len > nr_sectors[q->r.source] * SECTOR_SIZE)
        return;
    for (uint64_t i = 0; i < q->r.len / SECTOR_SIZE; i++)
        put_sector(all[q->r.source], q, i);
    open_ids[nr_open++] = id;
}

/* A flush has ended: what had ended before it began cannot be lost any more. */
static void
flush_ended(const struct request *f)
{
    size_t kept = 0;

    for (size_t k = 0; k < nr_open; k++) {
        const struct request *q = &requests[open_ids[k]];
        uint64_t *sector = newest[q->r.source] + q->r.offset / SECTOR_SIZE;

        if (q->r.source != f->r.source || !q->ended || q->ended > f->begun) {
            open_ids[kept++] = open_ids[k];
            continue;
        }
        for (uint64_t i = 0; i < q->r.len / SECTOR_SIZE; i++)
            if (sector[i] < q->ended) {
                sector[i] = q->ended;
                put_sector(protected_[q->r.source], q, i);
            }
    }
    nr_open = kept;
}

static void
put_some(struct crash_disk *disk, const struct request *q, bool ended)
{
    const uint64_t *sector = newest[q->r.source] + q->r.offset / SECTOR_SIZE;
    uint64_t n = q->r.len / SECTOR_SIZE, from = 0, to = n;
    unsigned how = (unsigned)random_below(&rng, 5);

    if (how == 0)
        return;
    if (how == 1)
        to = random_below(&rng, n + 1);
    if (how == 2)
        from = random_below(&rng, n + 1);
    for (uint64_t i = from; i < to; i++)
        if ((how != 3 || random_below(&rng, 2)) && (!ended || sector[i] < q->ended))
            put_sector(disk, q, i);
}

/* ---- looking ------------------------------------------------------------------------------- */

static const void *
meta_page(void *arg, uint64_t index)
{
    return crash_disk_page(arg, index);
}

static void
ask_thin_check(struct crash_disk *meta)
{
    char path[] = "/tmp/replay_run.XXXXXX", program[] = "thin_check", quiet[] = "-q";
    char sbin[] = "/usr/sbin/thin_check";
    char *argv[] = {program, quiet, path, NULL}, *envp[] = {NULL};
    static const char hole[4096];
    int fd = mkstemp(path), status;
    pid_t pid;

    for (uint64_t i = 0; fd >= 0 && i < crash_disk_size(meta) / sizeof(hole); i++) {
        const void *page = crash_disk_page(meta, i);

        if (write(fd, page ? page : hole, sizeof(hole)) != (ssize_t)sizeof(hole))
            die("no image for thin_check: %s", strerror(errno));
    }
    close(fd);
    status = posix_spawnp(&pid, program, NULL, NULL, argv, envp);
    if (status == ENOENT)
        status = posix_spawn(&pid, sbin, NULL, NULL, argv, envp);
    if (fd < 0 || status != 0)
        die("thin_check cannot be run (thin-provisioning-tools): %s", strerror(status));
    if (waitpid(pid, &status, 0) != pid || status != 0)
        die("thin_check finds fault with %s", path);
    unlink(path);
    nr_tool++;
}

static void
compare_volume(struct pool_rig *rig, const struct note_volume *v, uint64_t size)
{
    static char bytes[NOTE_PAGES_MAX * NOTE_PAGE];
    struct volume *volume;

    if (size != v->size && size != v->next_size)
        die("volume %s has %" PRIu64 " bytes, not %" PRIu64 " or %" PRIu64, v->name, size,
            v->size, v->next_size);
    if (size > sizeof(bytes) || rig_volume(rig, v->name, &volume) < 0 ||
        rig_read(rig, volume, 0, bytes, size) < 0)
        die("volume %s cannot be read: %s", v->name, rig->err.text);
    volume_close(volume);
    nr_reads++;
    for (uint64_t at = 0; at < size; at += SECTOR_SIZE)
        if (!notes_allow(v, at / NOTE_PAGE, bytes + at)) {
            const struct note_page *p = &v->pages[at / NOTE_PAGE];
            uint64_t words[2];

            memcpy(words, bytes + at, sizeof(words));
            die("volume %s, page %" PRIu64 ", sector %" PRIu64 ": stamp %" PRIu64
                " of page %" PRIu64 "; allowed are %u from %" PRIu64 " to %" PRIu64,
                v->name, at / NOTE_PAGE, at / SECTOR_SIZE % 8, words[1], words[0], p->nr,
                p->nr ? p->may[0].n : 0, p->nr ? p->may[p->nr - 1].n : 0);
        }
}

static void
compare(struct pool_rig *rig)
{
    char after[THIN_NAME_MAX + 1] = "";
    struct volume_info info;
    size_t known = 0, there = 0;

    for (size_t i = 0; i < notes_nr_volumes(notes); i++) {
        const struct note_volume *v = notes_volume(notes, i);
        bool is = pool_volume_peek(rig->pool, v->name, &info);

        if (!is && v->there && !v->deleting)
            die("volume %s is gone", v->name);
        if (is && v->deleted)
            die("volume %s is there again", v->name);
        if (is) {
            known++;
            compare_volume(rig, v, info.size);
        }
    }
    while (pool_volume_next(rig->pool, after[0] ? after : NULL, &info)) {
        memcpy(after, info.name, sizeof(after));
        there++;
    }
    if (there != known)
        die("%zu volumes are listed, %zu are known; the last is %s", there, known, after);
}

/* Opens the pool on these disks; the disks go. */
static void
look(struct crash_disk *disks[SOURCES])
{
    const struct recount_source source = {
        .page = meta_page, .arg = disks[META], .size = crash_disk_size(disks[META])};
    struct pool_rig rig = {.loop = sim_loop_create(nr_states + 1)};
    struct pool_params params;
    struct recount rc;
    int r;

    if (recount_pages(&source, NULL, &rc) < 0)
        die("the recount differs: %s", rc.why);
    if (nr_states % TOOL_EVERY == 0)
        ask_thin_check(disks[META]);
    rig_params(&rig, &params, crash_disk_open(disks[DATA], rig.loop),
               crash_disk_open(disks[META], rig.loop));
    params.config.metadata_cache_blocks = 1024;
    params.config.mapping_cache_pages = 64;
    params.takeover = true; /* the mark names the machine of the recording */
    params.seed = nr_states + 1;
    if (rig_open(&rig, &params) < 0)
        die("the pool does not open: %s", rig.err.text);
    compare(&rig);
    crash_disk_cut(disks[DATA]);
    crash_disk_cut(disks[META]);
    r = rig_close(&rig, true);
    (void)r; /* the power is off */
    crash_disk_destroy(disks[DATA]);
    crash_disk_destroy(disks[META]);
    sim_loop_destroy(rig.loop);
    nr_states++;
}

static int
by_end(const void *a, const void *b)
{
    const struct request *x = &requests[*(const size_t *)a],
                         *y = &requests[*(const size_t *)b];

    return x->ended < y->ended ? -1 : x->ended > y->ended;
}

/* Those that have ended by `event` in their order, then those in flight in any. */
static void
look_reordered(size_t event)
{
    struct crash_disk *disks[SOURCES] = {crash_disk_fork_cut(protected_[DATA], &rng),
                                         crash_disk_fork_cut(protected_[META], &rng)};
    size_t *order = calloc(nr_open + 1, sizeof(*order)), nr = 0, flying;

    THIN_ASSERT(order);
    for (size_t k = 0; k < nr_open; k++)
        if (requests[open_ids[k]].ended && requests[open_ids[k]].ended < event)
            order[nr++] = open_ids[k];
    qsort(order, nr, sizeof(*order), by_end);
    flying = nr;
    for (size_t k = 0; k < nr_open; k++)
        if (!requests[open_ids[k]].ended || requests[open_ids[k]].ended >= event)
            order[nr++] = open_ids[k];
    for (size_t k = nr; k > flying + 1; k--) {
        size_t other = flying + (size_t)random_below(&rng, k - flying), t = order[other];

        order[other] = order[k - 1];
        order[k - 1] = t;
    }
    for (size_t k = 0; k < nr; k++)
        put_some(disks[requests[order[k]].r.source], &requests[order[k]], k < flying);
    free(order);
    nr_reordered++;
    label = "a reordering";
    look(disks);
}

static void
look_prefix(void)
{
    struct crash_disk *disks[SOURCES] = {crash_disk_fork_cut(all[DATA], &rng),
                                         crash_disk_fork_cut(all[META], &rng)};

    label = "a prefix";
    look(disks);
}

/* ---- forwards -------------------------------------------------------------------------------- */

static void
play(uint64_t wanted, size_t nr_changes)
{
    uint64_t at = 0, next = 0, share = 1 + nr_changes * 3 / 2;
    struct record r;

    for (size_t event = 1; get(at, &r, &next); at = next, event++) {
        label_at = at;
        if (r.op == OP_END) {
            if (requests[r.id - 1].r.op == OP_FLUSH)
                flush_ended(&requests[r.id - 1]);
            continue;
        }
        if (r.op != OP_GROW && (wanted == 0 || random_below(&rng, share) < wanted)) {
            notes_advance(notes, at);
            look_prefix();
            if (random_below(&rng, 2))
                look_reordered(event);
        }
        submitted(r.id - 1);
    }
    label_at = log_len;
    notes_advance(notes, log_len);
    look_prefix();
}

int
main(int argc, char **argv)
{
    const char *states = getenv("STATES"), *seed = getenv("SEED");
    uint64_t wanted = states ? strtoull(states, NULL, 0) : STATES;
    clock_t began = clock();
    size_t nr_changes;

    label = "the recording";
    if (argc != 5)
        die("usage: replay_run DATA META LOG NOTES");
    mallopt(M_MMAP_THRESHOLD, 1 << 26);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    thin_log_set_level((enum thin_log_level) - 1);
    random_seed(&rng, seed ? strtoull(seed, NULL, 0) : 1);
    log_bytes = read_file(argv[3], &log_len);
    nr_changes = read_log();
    notes = notes_read(argv[4]);
    open_ids = calloc(nr_requests + 1, sizeof(*open_ids));
    THIN_ASSERT(open_ids);
    for (unsigned s = 0; s < SOURCES; s++) {
        all[s] = read_disk(argv[1 + s]);
        protected_[s] = crash_disk_fork_cut(all[s], &rng);
        nr_sectors[s] = crash_disk_size(all[s]) / SECTOR_SIZE;
        newest[s] = calloc(nr_sectors[s], sizeof(uint64_t));
        THIN_ASSERT(newest[s]);
    }
    play(wanted, nr_changes);
    printf("%zu changes and flushes of thinsrv: %" PRIu64 " states, %" PRIu64
           " of them reordered, %" PRIu64 " volumes read, %" PRIu64
           " looked at by thin_check, %.1f s: all as promised\n",
           nr_changes, nr_states, nr_reordered, nr_reads, nr_tool,
           (double)(clock() - began) / CLOCKS_PER_SEC);
    return nr_states > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
