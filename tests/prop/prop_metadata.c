/*
 * Random work on thin metadata against a plain model.
 *
 * The model is an array of devices, each an array of mappings. At every commit, and at
 * moments in the middle of one, the image on the device is recounted in full and must
 * hold exactly the model's last durable state; a load must give it back; a roll-back
 * must return to it. Transactions overlap: work goes on between cut and durable. In
 * places the image goes to the official thin_check and thin_dump.
 *
 * SEED= repeats a run, STEPS= sets its length, VERBOSE=1 tells each step.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/poll_loop.h"
#include "core/base/random.h"
#include "core/metadata/metadata.h"
#include "tests/lib/recount.h"
#include "tests/lib/test_cache.h"

#define DEVS_MAX    14u
#define VBLOCKS_MAX 3000u
#define UNMAPPED    UINT64_MAX

struct model_dev {
    bool exists;
    struct device_details details;
    uint64_t map[VBLOCKS_MAX]; /* the value, or UNMAPPED */
};

struct model {
    struct model_dev devs[DEVS_MAX];
    uint32_t time;
    uint64_t trans_id, nr_data, nr_metadata;
    uint8_t trailer;
    bool held, releasing; /* releasing: the held trees are partly gone */
};

struct setup {
    const char *name;
    uint32_t node_max; /* entries; 0: the format's */
    bool waiting;
    uint32_t cache, nr_vblocks;
    uint64_t nr_data, nr_metadata;
    unsigned steps;
};

/* A commit under way: cut, then blocks, flush, superblock, each by a callback. */
enum commit_state { IDLE, BLOCKS, FLUSH, SUPERBLOCK, WRITTEN };

struct rig {
    const struct setup *setup;
    uint64_t seed;
    bool verbose;
    struct thin_random rng;
    struct thin_loop *loop;
    struct device *dev;
    struct metadata *md;
    struct model now, committing, durable;
    struct model held; /* what the held root should show */
    struct model held_committing, held_durable;
    enum commit_state commit, started;
    uint64_t commit_txn;
    void *superblock;
    unsigned step, nr_commits, nr_tools, nr_ticks, nr_snaps, nr_resets;
    dblock_t cursor;
};

static uint32_t ids[DEVS_MAX]; /* index to device id: small, scattered and highest ones */

static uint64_t
below(struct rig *rig, uint64_t n)
{
    return random_below(&rig->rng, n);
}

static void say(const struct rig *rig, const char *fmt, ...) PRINTF_LIKE(2, 3);

static void
say(const struct rig *rig, const char *fmt, ...)
{
    va_list ap;

    if (!rig->verbose)
        return;
    printf("%u: ", rig->step);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
    fflush(stdout);
}

#define fail_rig(rig, ...)                                                        \
    do {                                                                          \
        printf("%s: seed %" PRIu64 " step %u\n", (rig)->setup->name, (rig)->seed, \
               (rig)->step);                                                      \
        ck_abort_msg(__VA_ARGS__);                                                \
    } while (0)

/* ---- what the image must hold ---------------------------------------------------------- */

struct image_check {
    struct rig *rig;
    const struct model *model, *held;
    uint64_t seen[2][DEVS_MAX]; /* mappings seen; UINT64_MAX: not even the device */
};

static unsigned
index_of(struct rig *rig, uint32_t id)
{
    for (unsigned i = 0; i < DEVS_MAX; i++)
        if (ids[i] == id)
            return i;
    fail_rig(rig, "the image has a device %" PRIu32 " that nobody made", id);
}

static void
check_device(void *arg, bool held, uint32_t id, const struct device_details *details)
{
    struct image_check *c = arg;
    const struct model *model = held ? c->held : c->model;
    unsigned i = index_of(c->rig, id);
    const struct model_dev *dev = &model->devs[i];

    c->seen[held][i] = 0;
    if (held && c->model->releasing)
        return;
    if (!dev->exists)
        fail_rig(c->rig, "device %" PRIu32 " is in the image, not in the model", id);
    if (details->mapped_blocks != dev->details.mapped_blocks ||
        details->transaction_id != dev->details.transaction_id ||
        details->creation_time != dev->details.creation_time ||
        details->snapshotted_time != dev->details.snapshotted_time)
        fail_rig(c->rig,
                 "details of device %" PRIu32 " are %" PRIu64 " %" PRIu64 " %" PRIu32
                 " %" PRIu32 ", not %" PRIu64 " %" PRIu64 " %" PRIu32 " %" PRIu32,
                 id, details->mapped_blocks, details->transaction_id,
                 details->creation_time, details->snapshotted_time,
                 dev->details.mapped_blocks, dev->details.transaction_id,
                 dev->details.creation_time, dev->details.snapshotted_time);
}

static void
check_mapping(void *arg, bool held, uint32_t id, uint64_t vblock, uint64_t value)
{
    struct image_check *c = arg;
    const struct model *model = held ? c->held : c->model;
    unsigned i = index_of(c->rig, id);

    c->seen[held][i]++;
    /* A release trims from the top: what is left must still be as it was. */
    if (vblock >= VBLOCKS_MAX || model->devs[i].map[vblock] != value)
        fail_rig(c->rig, "%sdevice %" PRIu32 " block %" PRIu64 " maps %" PRIx64,
                 held ? "held " : "", id, vblock, value);
}

static void
check_image(struct rig *rig, const struct model *model, const struct model *held)
{
    struct image_check c = {.rig = rig, .model = model, .held = held};
    const struct recount_visitor visitor = {
        .device = check_device, .mapping = check_mapping, .arg = &c};
    struct recount recount;

    memset(c.seen, 0xff, sizeof(c.seen));
    if (recount_image(rig->dev, &visitor, &recount) < 0)
        fail_rig(rig, "recount: %s", recount.why);
    for (unsigned i = 0; i < DEVS_MAX; i++) {
        uint64_t wanted =
            model->devs[i].exists ? model->devs[i].details.mapped_blocks : UINT64_MAX;

        if (c.seen[0][i] != wanted)
            fail_rig(rig, "device %" PRIu32 " shows %" PRIu64 " mappings of %" PRIu64,
                     ids[i], c.seen[0][i], wanted);
        if (!model->held || model->releasing)
            continue;
        wanted = held->devs[i].exists ? held->devs[i].details.mapped_blocks : UINT64_MAX;
        if (c.seen[1][i] != wanted)
            fail_rig(rig, "held device %" PRIu32 " shows %" PRIu64, ids[i], c.seen[1][i]);
    }
    ck_assert_uint_eq(recount.sb.time, model->time);
    ck_assert_uint_eq(recount.sb.trans_id, model->trans_id);
    ck_assert_uint_eq(recount.sb.data_sm.nr_blocks, model->nr_data);
    ck_assert_uint_eq(recount.sb.metadata_sm.nr_blocks, model->nr_metadata);
    ck_assert_uint_eq(recount.sb.trailer[5], model->trailer);
    ck_assert_int_eq(recount.sb.held_root != 0, model->held);
}

/* ---- the model's own rules -------------------------------------------------------------- */

/* A mapping that looks unshared must be the only one to its data block. */
static void
check_sharing(struct rig *rig)
{
    uint8_t *users = calloc(rig->now.nr_data, 1);

    ck_assert_ptr_nonnull(users);
    for (unsigned i = 0; i < DEVS_MAX; i++)
        for (unsigned v = 0; v < rig->setup->nr_vblocks && rig->now.devs[i].exists; v++)
            if (rig->now.devs[i].map[v] != UNMAPPED)
                users[mapping_block(rig->now.devs[i].map[v])]++;
    for (unsigned i = 0; i < DEVS_MAX; i++) {
        const struct model_dev *dev = &rig->now.devs[i];

        for (unsigned v = 0; v < rig->setup->nr_vblocks && dev->exists; v++)
            if (dev->map[v] != UNMAPPED &&
                mapping_time(dev->map[v]) >= dev->details.snapshotted_time &&
                users[mapping_block(dev->map[v])] != 1)
                fail_rig(rig, "device %u block %u looks unshared and is not", ids[i], v);
    }
    free(users);
}

/* What calls answer must be what the model says. */
static int
compare_calls(struct metadata *md, void *arg, struct thin_error *err)
{
    struct rig *rig = arg;
    struct device_details details;
    uint32_t id = 0;
    unsigned nr = 0, wanted = 0;
    bool found;
    int r;

    for (;;) {
        r = metadata_next_device(md, id, &id, &details, &found, err);
        if (r < 0)
            return r;
        if (!found)
            break;
        ck_assert(rig->now.devs[index_of(rig, id)].exists);
        ck_assert_uint_eq(details.mapped_blocks,
                          rig->now.devs[index_of(rig, id)].details.mapped_blocks);
        nr++;
        id++;
    }
    for (unsigned i = 0; i < DEVS_MAX; i++)
        wanted += rig->now.devs[i].exists;
    ck_assert_uint_eq(nr, wanted);
    return 0;
}

struct look {
    struct rig *rig;
    unsigned dev;
    vblock_t vblock;
};

static int
compare_leaf(struct metadata *md, void *arg, struct thin_error *err)
{
    struct look *look = arg;
    const struct model_dev *dev = &look->rig->now.devs[look->dev];
    struct mapping_slot slots[MAPPING_SLOTS_MAX];
    vblock_t begin, end, highest, wanted = UNMAPPED;
    uint64_t value;
    uint32_t nr, at = 0;
    bool found;
    int r;

    r = metadata_lookup(md, ids[look->dev], look->vblock, &value, &found, err);
    if (r < 0)
        return r;
    ck_assert_int_eq(found, dev->map[look->vblock] != UNMAPPED);
    if (found)
        ck_assert_uint_eq(value, dev->map[look->vblock]);

    r = metadata_read_leaf(md, ids[look->dev], look->vblock, slots, &nr, &begin, &end,
                           err);
    if (r < 0)
        return r;
    ck_assert(begin <= look->vblock && look->vblock < end);
    for (vblock_t v = begin; v < end && v < VBLOCKS_MAX; v++) {
        value = UNMAPPED;
        if (at < nr && slots[at].vblock == v)
            value = slots[at++].value;
        ck_assert_uint_eq(value, dev->map[v]);
    }
    ck_assert_uint_eq(at, nr);

    for (vblock_t v = 0; v < look->rig->setup->nr_vblocks; v++)
        if (dev->map[v] != UNMAPPED)
            wanted = v;
    r = metadata_highest_mapped(md, ids[look->dev], &highest, &found, err);
    if (r < 0)
        return r;
    ck_assert_int_eq(found, wanted != UNMAPPED);
    if (found)
        ck_assert_uint_eq(highest, wanted);
    return 0;
}

/* ---- the official tools ------------------------------------------------------------------ */

static void
write_image(struct rig *rig, const char *path)
{
    AUTO_FILE FILE *f = fopen(path, "w");

    ck_assert_ptr_nonnull(f);
    for (uint64_t i = 0; i < rig->dev->size / METADATA_BLOCK_SIZE; i++) {
        const void *page = device_mem_page(rig->dev, i);

        if (!page)
            continue;
        ck_assert_int_eq(fseeko(f, (off_t)(i * METADATA_BLOCK_SIZE), SEEK_SET), 0);
        ck_assert_uint_eq(fwrite(page, METADATA_BLOCK_SIZE, 1, f), 1);
    }
    ck_assert_int_eq(fflush(f), 0);
    ck_assert_int_eq(ftruncate(fileno(f), (off_t)rig->dev->size), 0);
}

static int
run_tool(char *const argv[], const char *out)
{
    int status;
    pid_t pid;

    fflush(stdout);
    pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        if (!freopen(out, "w", stdout) || dup2(1, 2) < 0)
            _exit(126);
        execvp(argv[0], argv);
        _exit(127);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* The XML that thin_dump must print for the model. */
static void
print_xml(const struct model *m, const struct setup *setup, FILE *f)
{
    /* The order of ids, not of the array. */
    unsigned order[DEVS_MAX];

    for (unsigned i = 0; i < DEVS_MAX; i++) {
        unsigned at = i;

        for (; at > 0 && ids[order[at - 1]] > ids[i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    fprintf(
        f,
        "<superblock uuid=\"\" time=\"%" PRIu32 "\" transaction=\"%" PRIu64
        "\" flags=\"0\" version=\"2\" data_block_size=\"128\" nr_data_blocks=\"%" PRIu64
        "\">\n",
        m->time, m->trans_id, m->nr_data);
    for (unsigned i = 0; i < DEVS_MAX; i++) {
        const struct model_dev *dev = &m->devs[order[i]];

        if (!dev->exists)
            continue;
        fprintf(f,
                "  <device dev_id=\"%" PRIu32 "\" mapped_blocks=\"%" PRIu64
                "\" transaction=\"%" PRIu64 "\" creation_time=\"%" PRIu32
                "\" snap_time=\"%" PRIu32 "\">\n",
                ids[order[i]], dev->details.mapped_blocks, dev->details.transaction_id,
                dev->details.creation_time, dev->details.snapshotted_time);
        for (unsigned v = 0; v < setup->nr_vblocks;) {
            uint64_t value = dev->map[v];
            unsigned len = 1;

            if (value == UNMAPPED) {
                v++;
                continue;
            }
            /* One more data block, the same time. */
            while (v + len < setup->nr_vblocks &&
                   dev->map[v + len] == value + mapping_pack(len, 0))
                len++;
            if (len == 1)
                fprintf(f,
                        "    <single_mapping origin_block=\"%u\" data_block=\"%" PRIu64
                        "\" time=\"%" PRIu32 "\"/>\n",
                        v, mapping_block(value), mapping_time(value));
            else
                fprintf(f,
                        "    <range_mapping origin_begin=\"%u\" data_begin=\"%" PRIu64
                        "\" length=\"%u\" time=\"%" PRIu32 "\"/>\n",
                        v, mapping_block(value), len, mapping_time(value));
            v += len;
        }
        fprintf(f, "  </device>\n");
    }
    fprintf(f, "</superblock>\n");
}

static void
check_same_text(struct rig *rig, const char *a_path, const char *b_path)
{
    AUTO_FILE FILE *a = fopen(a_path, "r");
    AUTO_FILE FILE *b = fopen(b_path, "r");
    char la[512], lb[512];
    unsigned line = 0;

    ck_assert_ptr_nonnull(a);
    ck_assert_ptr_nonnull(b);
    for (;;) {
        char *pa = fgets(la, sizeof(la), a), *pb = fgets(lb, sizeof(lb), b);

        line++;
        if (!pa && !pb)
            return;
        if (!pa || !pb || strcmp(la, lb) != 0)
            fail_rig(rig, "thin_dump line %u is %s, not %s", line, pa ? pa : "(end)",
                     pb ? pb : "(end)");
    }
}

static void
check_with_tools(struct rig *rig)
{
    const char *tmp = getenv("TMPDIR");
    char dir[256], image[300], out[300], wanted[300];
    char tool_check[] = "thin_check", tool_dump[] = "thin_dump";
    char *check_argv[] = {tool_check, image, NULL};
    char *dump_argv[] = {tool_dump, image, NULL};
    FILE *f;

    snprintf(dir, sizeof(dir), "%s/prop_metadata.XXXXXX", tmp ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(image, sizeof(image), "%s/image", dir);
    snprintf(out, sizeof(out), "%s/out", dir);
    snprintf(wanted, sizeof(wanted), "%s/wanted", dir);
    write_image(rig, image);

    if (run_tool(check_argv, out) != 0)
        fail_rig(rig, "thin_check refuses %s", image);
    if (run_tool(dump_argv, out) != 0)
        fail_rig(rig, "thin_dump refuses %s", image);
    f = fopen(wanted, "w");
    ck_assert_ptr_nonnull(f);
    print_xml(&rig->durable, rig->setup, f);
    ck_assert_int_eq(fclose(f), 0);
    check_same_text(rig, out, wanted);

    unlink(image);
    unlink(out);
    unlink(wanted);
    rmdir(dir);
    rig->nr_tools++;
}

/* ---- commits -------------------------------------------------------------------------------- */

static int
merge_one(struct metadata *md, void *arg, struct thin_error *err)
{
    return metadata_merge_step(md, arg, err);
}

static void
fill_trailer(void *arg, uint8_t *superblock)
{
    struct rig *rig = arg;

    superblock[SUPERBLOCK_TRAILER_OFFSET + 5] = rig->now.trailer;
}

static int
cut_one(struct metadata *md, void *arg, struct thin_error *err)
{
    struct rig *rig = arg;

    return metadata_cut(md, fill_trailer, rig, &rig->commit_txn, &rig->superblock, err);
}

static void
commit_advanced(void *arg, int result)
{
    struct rig *rig = arg;

    ck_assert_int_eq(result, 0);
    rig->commit++;
}

static void
commit_cut(struct rig *rig)
{
    struct thin_error err;
    bool more = true;

    ck_assert_int_eq(rig->commit, IDLE);
    thin_error_init(&err);
    while (more)
        if (metadata_retry_wait(rig->md, merge_one, &more, &err) < 0)
            fail_rig(rig, "merge: %s", err.text);
    if (metadata_retry_wait(rig->md, cut_one, rig, &err) < 0)
        fail_rig(rig, "cut: %s", err.text);
    rig->committing = rig->now;
    rig->held_committing = rig->held;
    rig->commit = rig->started = BLOCKS;
    bm_write_cut(metadata_bm(rig->md), commit_advanced, rig);
}

/* Runs the commit until it has come to `until`, which is not begun. Its steps may have
   ended on the way of other work; only here the next one is started. */
static void
commit_run(struct rig *rig, enum commit_state until)
{
    while (rig->commit < until) {
        if (rig->started != rig->commit && rig->commit == FLUSH)
            bm_flush(metadata_bm(rig->md), commit_advanced, rig);
        else if (rig->started != rig->commit)
            bm_write_superblock(metadata_bm(rig->md), rig->superblock, commit_advanced,
                                rig);
        rig->started = rig->commit;
        while (rig->commit == rig->started)
            ck_assert_int_eq(loop_run_once(rig->loop), 0);
    }
}

static void
commit_end(struct rig *rig)
{
    if (rig->commit == IDLE)
        return;
    if (below(rig, 3) == 0) {
        /* All blocks are down, block 0 is not: the old state must still be whole. */
        commit_run(rig, SUPERBLOCK);
        check_image(rig, &rig->durable, &rig->held_durable);
    }
    commit_run(rig, WRITTEN);
    metadata_durable(rig->md, rig->commit_txn, NULL, NULL);
    rig->durable = rig->committing;
    rig->held_durable = rig->held_committing;
    rig->commit = IDLE;
    rig->nr_commits++;
    check_image(rig, &rig->durable, &rig->held_durable);
    if (below(rig, 40) == 0)
        check_with_tools(rig);
}

static void
commit_whole(struct rig *rig)
{
    commit_end(rig);
    commit_cut(rig);
    commit_end(rig);
}

static int
load_one(struct metadata *md, void *arg, struct thin_error *err)
{
    (void)arg;
    return metadata_load(md, err);
}

static void
roll_back(struct rig *rig)
{
    struct thin_error err;

    /* With a commit under way: its blocks are down, its superblock never will be. */
    if (rig->commit != IDLE)
        commit_run(rig, SUPERBLOCK);
    rig->commit = IDLE;
    metadata_reset(rig->md);
    thin_error_init(&err);
    if (metadata_retry_wait(rig->md, load_one, NULL, &err) < 0)
        fail_rig(rig, "load: %s", err.text);
    rig->now = rig->durable;
    rig->held = rig->held_durable;
    rig->nr_resets++;
}

static void
open_md(struct rig *rig)
{
    const struct metadata_params params = {
        .dev = rig->dev,
        .cache_blocks = rig->setup->cache,
        .cache_clean = test_cache_clean(),
        .waiting = rig->setup->waiting,
        .leaf_max = rig->setup->node_max,
        .internal_max = rig->setup->node_max,
    };

    ck_assert_int_eq(metadata_create(&params, &rig->md), 0);
}

static void
reopen(struct rig *rig)
{
    struct thin_error err;

    commit_whole(rig);
    metadata_destroy(rig->md);
    open_md(rig);
    thin_error_init(&err);
    if (metadata_retry_wait(rig->md, load_one, NULL, &err) < 0)
        fail_rig(rig, "load: %s", err.text);
}

/* ---- operations ------------------------------------------------------------------------------ */

enum kind { CREATE, SNAP, DELETE, INSERT, UNMAP, GROW, GROW_OWN, IDS, RESERVE, RELEASE };

struct op {
    struct rig *rig;
    enum kind kind;
    unsigned dev, origin, origin2; /* origin2: of a group, or DEVS_MAX */
    unsigned dev2;
    vblock_t vblock, end;
    unsigned nr;     /* blocks inserted in this one operation */
    uint64_t size;   /* GROW */
    bool undo, done; /* undo: change your mind at the end */
    uint64_t values[4], unmapped;
    vblock_t unmapped_to;
};

static int
insert_some(struct metadata *md, struct op *op, struct thin_error *err)
{
    struct rig *rig = op->rig;
    dblock_t from = rig->cursor % rig->now.nr_data;

    for (unsigned i = 0; i < op->nr; i++) {
        dblock_t b = 0, next = from;
        uint64_t len = 0;
        bool wrapped = false;
        int r;

        while (len == 0) {
            r = metadata_find_free(md, next, rig->now.nr_data, 1, &b, &len, &next, err);
            if (r < 0)
                return r;
            if (len == 0 && next >= rig->now.nr_data) {
                if (wrapped)
                    return -THIN_E_NO_DATA_SPACE;
                wrapped = true;
                next = 0;
            }
        }
        r = metadata_take_data(md, b, err);
        if (r < 0)
            return r;
        r = metadata_insert(md, ids[op->dev], op->vblock + i, b, &op->values[i], err);
        if (r < 0)
            return r;
        from = (b + 1) % rig->now.nr_data;
    }
    return 0;
}

static int
change(struct metadata *md, struct op *op, struct thin_error *err)
{
    uint8_t trailer[SUPERBLOCK_TRAILER_BYTES];
    uint32_t budget = (uint32_t)op->nr;
    int r;

    switch (op->kind) {
    case CREATE:
        return metadata_create_thin(md, ids[op->dev], err);
    case SNAP:
        r = metadata_create_snap(md, ids[op->dev], ids[op->origin], err);
        if (r == 0 && op->origin2 < DEVS_MAX)
            r = metadata_create_snap(md, ids[op->dev2], ids[op->origin2], err);
        return r;
    case DELETE:
        return metadata_delete_step(md, ids[op->dev], budget, &op->done, err);
    case INSERT:
        return insert_some(md, op, err);
    case UNMAP:
        return metadata_unmap_step(md, ids[op->dev], op->vblock, op->end, budget,
                                   &op->unmapped_to, &op->unmapped, err);
    case GROW:
        return metadata_grow_data(md, op->size, &op->done, err);
    case GROW_OWN:
        return metadata_grow_own(md, op->size, err);
    case IDS:
        memcpy(trailer, metadata_superblock(md)->trailer, sizeof(trailer));
        trailer[5] = (uint8_t)op->size;
        metadata_set_trailer(md, trailer);
        return metadata_set_trans_id(md, op->rig->now.trans_id, op->size, err);
    case RESERVE:
        return metadata_reserve_snap(md, err);
    case RELEASE:
        return metadata_release_snap_step(md, budget, &op->done, err);
    }
    return -EINVAL;
}

static int
run_op(struct metadata *md, void *arg, struct thin_error *err)
{
    struct op *op = arg;
    bool gives = op->kind == DELETE || op->kind == UNMAP || op->kind == RELEASE;
    int r;

    metadata_op_begin(md, gives ? TM_RESERVE : TM_NORMAL);
    r = change(md, op, err);
    if (r < 0 || op->undo) {
        metadata_op_undo(md);
        return r;
    }
    return metadata_op_end(md, err);
}

/* True if it was kept. Commits if that is what it waits for. */
static bool
perform(struct rig *rig, struct op *op)
{
    struct thin_error err;
    int r = 0;

    op->rig = rig;
    for (unsigned tries = 0; tries < 4; tries++) {
        thin_error_init(&err);
        r = metadata_retry_wait(rig->md, run_op, op, &err);
        if (r != -THIN_E_NEED_COMMIT && r != -THIN_E_CACHE_FULL &&
            r != -THIN_E_NO_DATA_SPACE)
            break;
        say(rig, "waits for a commit: %s", thin_error_name(r));
        commit_whole(rig);
    }
    if (r == -THIN_E_NO_DATA_SPACE || r == -THIN_E_NO_METADATA_SPACE) {
        say(rig, "no space");
        return false;
    }
    if (r < 0)
        fail_rig(rig, "operation %d: %s: %s", op->kind, thin_error_name(r), err.text);
    return !op->undo;
}

static unsigned
pick(struct rig *rig, bool existing)
{
    unsigned start = (unsigned)below(rig, DEVS_MAX);

    for (unsigned i = 0; i < DEVS_MAX; i++)
        if (rig->now.devs[(start + i) % DEVS_MAX].exists == existing)
            return (start + i) % DEVS_MAX;
    return DEVS_MAX;
}

static void
model_create(struct rig *rig, unsigned d)
{
    struct model_dev *dev = &rig->now.devs[d];

    memset(dev, 0, sizeof(*dev));
    dev->exists = true;
    dev->details.transaction_id = rig->now.trans_id;
    dev->details.creation_time = dev->details.snapshotted_time = rig->now.time;
    for (unsigned v = 0; v < VBLOCKS_MAX; v++)
        dev->map[v] = UNMAPPED;
}

static void
model_snap(struct rig *rig, unsigned d, unsigned origin)
{
    struct model_dev *from = &rig->now.devs[origin];

    rig->nr_snaps++;
    model_create(rig, d);
    from->details.snapshotted_time = rig->now.time;
    memcpy(rig->now.devs[d].map, from->map, sizeof(from->map));
    rig->now.devs[d].details.mapped_blocks = from->details.mapped_blocks;
}

static void
do_snap(struct rig *rig, struct op *op)
{
    uint32_t tick;

    op->kind = SNAP;
    op->dev = pick(rig, false);
    op->origin = pick(rig, true);
    op->origin2 = DEVS_MAX;
    if (op->dev == DEVS_MAX || op->origin == DEVS_MAX)
        return;
    if (below(rig, 3) == 0) {
        op->origin2 = pick(rig, true);
        for (op->dev2 = 0; op->dev2 < DEVS_MAX; op->dev2++)
            if (op->dev2 != op->dev && !rig->now.devs[op->dev2].exists)
                break;
        if (op->dev2 == DEVS_MAX || op->origin2 == op->origin)
            op->origin2 = DEVS_MAX;
    }
    say(rig, "snapshot %u of %u, %u of %u", op->dev, op->origin, op->dev2, op->origin2);
    if (!perform(rig, op))
        return;
    /* Whether time moves on is the engine's to say, by one at most. */
    tick = metadata_superblock(rig->md)->time - rig->now.time;
    ck_assert_uint_le(tick, 1);
    rig->nr_ticks += tick;
    if (tick && op->origin2 < DEVS_MAX) {
        struct device_details first;
        bool found;

        /* The first of a group may have been shared before the tick. */
        ck_assert_int_eq(metadata_get_device(rig->md, ids[op->dev], &first, &found, NULL),
                         0);
        rig->now.time = first.creation_time;
        model_snap(rig, op->dev, op->origin);
        rig->now.time = metadata_superblock(rig->md)->time;
    } else {
        rig->now.time += tick;
        model_snap(rig, op->dev, op->origin);
    }
    if (op->origin2 < DEVS_MAX)
        model_snap(rig, op->dev2, op->origin2);
    check_sharing(rig);
}

/* One step of deleting op->dev, done to the model too. */
static bool
delete_step(struct rig *rig, struct op *op)
{
    struct model_dev *dev = &rig->now.devs[op->dev];
    struct device_details details;
    bool found;

    op->kind = DELETE;
    say(rig, "delete step of %u", op->dev);
    if (!perform(rig, op))
        return false;
    if (op->done) {
        dev->exists = false;
        return true;
    }
    /* From the top: as many as the record says are left. */
    ck_assert_int_eq(metadata_get_device(rig->md, ids[op->dev], &details, &found, NULL),
                     0);
    ck_assert(found);
    ck_assert_uint_lt(details.mapped_blocks, dev->details.mapped_blocks);
    for (unsigned v = VBLOCKS_MAX; dev->details.mapped_blocks > details.mapped_blocks;)
        if (dev->map[--v] != UNMAPPED) {
            dev->map[v] = UNMAPPED;
            dev->details.mapped_blocks--;
        }
    return true;
}

static void
do_delete(struct rig *rig, struct op *op)
{
    op->dev = pick(rig, true);
    op->nr = (unsigned)below(rig, 20);
    if (op->dev < DEVS_MAX)
        delete_step(rig, op);
}

static void
do_insert(struct rig *rig, struct op *op)
{
    struct model_dev *dev;

    op->kind = INSERT;
    op->dev = pick(rig, true);
    if (op->dev == DEVS_MAX)
        return;
    dev = &rig->now.devs[op->dev];
    op->nr = 1 + (unsigned)below(rig, 4);
    op->vblock = below(rig, rig->setup->nr_vblocks - op->nr + 1);
    if (below(rig, 4) == 0)
        rig->cursor = random_u64(&rig->rng);
    say(rig, "insert %u at %" PRIu64 " of %u", op->nr, op->vblock, op->dev);
    if (!perform(rig, op))
        return;
    for (unsigned i = 0; i < op->nr; i++) {
        ck_assert_uint_eq(mapping_time(op->values[i]), rig->now.time);
        dev->details.mapped_blocks += dev->map[op->vblock + i] == UNMAPPED;
        dev->map[op->vblock + i] = op->values[i];
        rig->cursor = mapping_block(op->values[i]) + 1;
    }
}

static void
do_unmap(struct rig *rig, struct op *op)
{
    struct model_dev *dev;
    uint64_t gone = 0;

    op->kind = UNMAP;
    op->dev = pick(rig, true);
    if (op->dev == DEVS_MAX)
        return;
    dev = &rig->now.devs[op->dev];
    op->nr = (unsigned)below(rig, 20);
    op->vblock = below(rig, rig->setup->nr_vblocks);
    op->end = op->vblock + 1 + below(rig, below(rig, 2) ? 4 : rig->setup->nr_vblocks);
    say(rig, "unmap %" PRIu64 " to %" PRIu64 " of %u", op->vblock, op->end, op->dev);
    if (!perform(rig, op))
        return;
    ck_assert(op->unmapped_to >= op->vblock && op->unmapped_to <= op->end);
    for (vblock_t v = op->unmapped_to; v < op->end && v < VBLOCKS_MAX; v++)
        if (dev->map[v] != UNMAPPED) {
            dev->map[v] = UNMAPPED;
            gone++;
        }
    ck_assert_uint_eq(gone, op->unmapped);
    dev->details.mapped_blocks -= gone;
}

static void
do_grow(struct rig *rig, struct op *op)
{
    if (below(rig, 2)) {
        op->kind = GROW;
        op->size = rig->now.nr_data + 1 + below(rig, below(rig, 4) ? 100 : 40000);
        if (op->size > 100000)
            return;
        say(rig, "grow data to %" PRIu64, op->size);
        while (!op->done)
            if (!perform(rig, op))
                return;
        rig->now.nr_data = op->size;
    } else {
        op->kind = GROW_OWN;
        op->size = rig->now.nr_metadata + 1 + below(rig, below(rig, 4) ? 100 : 18000);
        if (op->size > rig->dev->size / METADATA_BLOCK_SIZE)
            return;
        say(rig, "grow metadata to %" PRIu64, op->size);
        if (perform(rig, op))
            rig->now.nr_metadata = op->size;
    }
}

static bool
release_step(struct rig *rig, struct op *op)
{
    op->kind = RELEASE;
    say(rig, "release step");
    if (!perform(rig, op))
        return false;
    rig->now.releasing = !op->done;
    rig->now.held = !op->done;
    return true;
}

static void
do_held(struct rig *rig, struct op *op)
{
    if (rig->now.held) {
        op->nr = (unsigned)below(rig, 20);
        release_step(rig, op);
        return;
    }
    op->kind = RESERVE;
    say(rig, "reserve");
    if (!perform(rig, op))
        return;
    rig->now.held = true;
    rig->now.releasing = false;
    rig->held = rig->now;
}

static void
do_other(struct rig *rig, struct op *op)
{
    op->kind = IDS;
    op->size = below(rig, 1000);
    say(rig, "transaction id %" PRIu64, op->size);
    if (!perform(rig, op))
        return;
    rig->now.trans_id = op->size;
    rig->now.trailer = (uint8_t)op->size;
}

static void
look_around(struct rig *rig)
{
    struct look look = {.rig = rig, .dev = pick(rig, true)};
    struct thin_error err;

    thin_error_init(&err);
    if (metadata_retry_wait(rig->md, compare_calls, rig, &err) < 0)
        fail_rig(rig, "devices: %s", err.text);
    if (look.dev == DEVS_MAX)
        return;
    look.vblock = below(rig, rig->setup->nr_vblocks);
    if (metadata_retry_wait(rig->md, compare_leaf, &look, &err) < 0)
        fail_rig(rig, "leaf: %s", err.text);
}

static void
one_step(struct rig *rig)
{
    struct op op = {.undo = below(rig, 8) == 0};
    unsigned dice = (unsigned)below(rig, 1000);

    if (dice < 15) {
        op.kind = CREATE;
        op.dev = pick(rig, false);
        if (op.dev == DEVS_MAX)
            return;
        say(rig, "create %u", op.dev);
        if (perform(rig, &op))
            model_create(rig, op.dev);
    } else if (dice < 40) {
        do_snap(rig, &op);
    } else if (dice < 80) {
        do_delete(rig, &op);
    } else if (dice < 700) {
        do_insert(rig, &op);
    } else if (dice < 800) {
        do_unmap(rig, &op);
    } else if (dice < 806) {
        op.undo = false;
        do_grow(rig, &op);
    } else if (dice < 815) {
        do_other(rig, &op);
    } else if (dice < 835) {
        do_held(rig, &op);
    } else if (dice < 900) {
        look_around(rig);
    } else if (dice < 930) {
        say(rig, "commit");
        commit_whole(rig);
    } else if (dice < 970) {
        say(rig, "%s", rig->commit == IDLE ? "cut" : "end of commit");
        if (rig->commit == IDLE)
            commit_cut(rig);
        else
            commit_end(rig);
    } else if (dice < 980) {
        say(rig, "roll back");
        roll_back(rig);
    } else if (dice < 985) {
        say(rig, "reopen");
        reopen(rig);
    }
}

/* Everything goes, and nothing is left behind. */
static void
take_all_away(struct rig *rig)
{
    struct metadata_space space;

    for (unsigned i = 0; i < DEVS_MAX; i++)
        while (rig->now.devs[i].exists) {
            struct op op = {.dev = i, .nr = 12};

            if (!delete_step(rig, &op))
                fail_rig(rig, "no space to delete");
        }
    while (rig->now.held) {
        struct op op = {.nr = 12};

        if (!release_step(rig, &op))
            fail_rig(rig, "no space to release");
    }
    commit_whole(rig);
    metadata_data_space(rig->md, &space);
    ck_assert_uint_eq(space.nr_free, rig->now.nr_data);
    check_with_tools(rig);
}

static uint64_t
env_number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 0) : otherwise;
}

static void
run(const struct setup *setup)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct thin_error err;
    uint64_t steps = setup->steps * (getenv("THIN_TEST_LONG") ? 20 : 1);

    ck_assert_ptr_nonnull(rig);
    rig->setup = setup;
    rig->seed = env_number("SEED", 20240611);
    rig->verbose = getenv("VERBOSE") != NULL;
    steps = env_number("STEPS", steps);
    printf("%s: SEED=%" PRIu64 " STEPS=%" PRIu64 "\n", setup->name, rig->seed, steps);
    random_seed(&rig->rng, rig->seed);
    for (unsigned i = 0; i < DEVS_MAX; i++)
        ids[i] = i < 6 ? i : i < 10 ? 1000 * i : DEV_ID_MAX - DEVS_MAX + 1 + i;

    rig->loop = poll_loop_create();
    ck_assert_ptr_nonnull(rig->loop);
    ck_assert_int_eq(
        device_mem_open(rig->loop, 40000ull * METADATA_BLOCK_SIZE, &rig->dev), 0);
    /* The device is larger than the pool to begin with: room for growth. */
    rig->dev->size = setup->nr_metadata * METADATA_BLOCK_SIZE;
    open_md(rig);
    thin_error_init(&err);
    if (metadata_format_wait(rig->md, 128, setup->nr_data, NULL, &err) < 0)
        fail_rig(rig, "format: %s", err.text);
    rig->dev->size = 40000ull * METADATA_BLOCK_SIZE;
    rig->now.nr_data = setup->nr_data;
    rig->now.nr_metadata = setup->nr_metadata;
    rig->durable = rig->now;
    check_image(rig, &rig->durable, &rig->held);

    for (rig->step = 0; rig->step < steps; rig->step++)
        one_step(rig);
    commit_whole(rig);
    check_with_tools(rig);

    take_all_away(rig);
    printf("%s: %u commits, %u roll-backs, %u snapshots, %u ticks, %u times the tools\n",
           setup->name, rig->nr_commits, rig->nr_resets, rig->nr_snaps, rig->nr_ticks,
           rig->nr_tools);

    metadata_destroy(rig->md);
    device_close_wait(rig->dev);
    poll_loop_destroy(rig->loop);
    free(rig);
}

static const struct setup setups[] = {
    {"nodes of 6 entries, waiting cache", 6, true, 1024, 200, 3000, 2048, 4000},
    {"nodes of 6 entries, cache that must be fed", 6, false, 160, 200, 3000, 2048, 4000},
    {"nodes of the format, cache that must be fed", 0, false, 128, 3000, 20000, 1024,
     4000},
    {"little space", 6, false, 256, 120, 400, 400, 3000},
};

START_TEST(random_work_equals_the_model)
{
    run(&setups[_i]);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("prop_metadata");
    TCase *tcase = tcase_create("model");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tcase, 280);
    tcase_add_loop_test(tcase, random_work_equals_the_model, 0,
                        (int)(sizeof(setups) / sizeof(setups[0])));
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
