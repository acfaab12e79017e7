/* The simulated run's frame: turns, the pool's life, and the comparison with the model. */
#include "tests/lib/sim_drive.h"
#include "tests/lib/test_cache.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"

void
sim_die(const struct sim *sim, const char *fmt, ...)
{
    va_list ap;

    fflush(stdout);
    fprintf(stderr, "SEED=%" PRIu64 ": ", sim->seed);
    if (sim->label)
        fprintf(stderr, "%s %" PRIu64 ": ", sim->label, sim->label_nr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
    exit(EXIT_FAILURE);
}

void
sim_note(struct sim *sim, uint64_t what)
{
    sim->hash = (sim->hash ^ what) * 0x9e3779b97f4a7c15u;
    sim->hash ^= sim->hash >> 29;
}

void
sim_judge_error(struct sim *sim, int result, const char *what, unsigned slot)
{
    bool known = false;

    /* Damage below one volume is no matter of the others. */
    if (sim->damage == SIM_BELOW_VOLUME && !sim->clients[slot].touched &&
        (result == -EIO || result == -THIN_E_CHECKSUM || result == -THIN_E_BAD_BLOCK))
        sim_die(sim, "%s of volume %s meets the damage of another: %s", what,
                sim->model.volumes[slot].now.name, thin_error_name(result));
    switch (result) {
    case -THIN_E_NO_DATA_SPACE:
        if (sim->clients[slot].reserved && !sim->faulty && !sim->cut)
            sim_die(sim, "%s of volume %s, all of which is reserved, finds no room", what,
                    sim->model.volumes[slot].now.name);
        known = true;
        break;
    case -THIN_E_NO_METADATA_SPACE:
        known = true;
        break;
    case -THIN_E_SHUTDOWN:
    case -THIN_E_LOST:
        known = sim->cut;
        break;
    case -THIN_E_READ_ONLY:
    case -THIN_E_ROLLED_BACK:
    case -THIN_E_FAILED:
    case -EIO:
        known = sim->faulty || sim->cut;
        break;
    case -THIN_E_CHECKSUM:
    case -THIN_E_BAD_BLOCK:
    case -THIN_E_NEEDS_CHECK:
        known = sim->damage != SIM_WHOLE;
        break;
    default:
        break;
    }
    if (!known)
        sim_die(sim, "%s of volume %s fails: %s", what, sim->model.volumes[slot].now.name,
                thin_error_name(result));
}

/* ---- life ------------------------------------------------------------------------------------ */

static unsigned
some(struct sim *sim, unsigned from, unsigned to)
{
    return from + (unsigned)random_below(&sim->rng, to - from + 1);
}

/* One time in `in` it does not happen at all. */
static unsigned
maybe(struct sim *sim, unsigned in, unsigned from, unsigned to)
{
    return random_below(&sim->rng, in) == 0 ? 0 : some(sim, from, to);
}

void
sim_init(struct sim *sim, uint64_t seed)
{
    struct sim_mix *x = &sim->mix;

    memset(sim, 0, sizeof(*sim));
    sim->seed = seed;
    random_seed(&sim->rng, seed);
    sim->loop = sim_loop_create(random_u64(&sim->rng));
    sim_model_init(&sim->model);
    x->read = some(sim, 5, 25);
    x->look = some(sim, 1, 5);
    x->write = some(sim, 20, 60);
    x->zeroes = maybe(sim, 4, 2, 12);
    x->discard = maybe(sim, 4, 2, 15);
    x->flush = maybe(sim, 6, 3, 20);
    x->prefetch = maybe(sim, 2, 1, 3);
    x->whole = some(sim, 3, 20);
    x->part = maybe(sim, 2, 5, 40);
    x->fua = maybe(sim, 3, 5, 30);
    x->hot = maybe(sim, 2, 20, 80);
    x->origin = maybe(sim, 2, 10, 70);
    x->changes = some(sim, 20, 120);
    x->change[SIM_CREATE] = some(sim, 3, 15);
    x->change[SIM_SNAPSHOT] = maybe(sim, 6, 10, 40);
    x->change[SIM_DELETE] = maybe(sim, 6, 3, 15);
    x->change[SIM_RENAME] = maybe(sim, 3, 2, 8);
    x->change[SIM_RESIZE] = maybe(sim, 3, 3, 15);
    x->change[SIM_ROLLBACK] = maybe(sim, 3, 2, 10);
    x->change[SIM_ATTACH] = maybe(sim, 3, 2, 6);
    x->change[SIM_PROTECT] = maybe(sim, 3, 1, 4);
    x->grow = maybe(sim, 2, 3, 15);
    x->snap_metadata = maybe(sim, 4, 3, 15);
    sim->origin_size = 512 * some(sim, 1, SIM_SIZE_MAX / 512 - 1);
    sim->hot_at = random_below(&sim->rng, SIM_SIZE_MAX / 8) * 8;
}

void
sim_fini(struct sim *sim)
{
    sim_model_fini(&sim->model);
    sim_loop_destroy(sim->loop);
}

static void
event(void *arg, struct pool *pool, const char *name, const char *words)
{
    struct sim *sim = arg;
    struct pool_info info;

    if (strcmp(name, "mode") == 0 && strcmp(words, "read-only") == 0) {
        pool_get_info(pool, &info);
        /* One that could not be settled has nothing to roll back. */
        sim->rolling |= !strstr(info.why, "the superblock cannot be written");
    }
    if (strcmp(name, "damaged") == 0 && strstr(words, "counts of data blocks"))
        sim->in_doubt = true;
    if (strcmp(name, "rolled-back") != 0)
        return;
    pool_get_info(pool, &info);
    /* One that cannot be read again serves nobody. */
    if (sim->pool && info.mode != POOL_FAIL && info.incarnation == sim->incarnation)
        sim_die(sim, "the pool has rolled back, and has the incarnation of before");
    sim->rolled_back = true;
    sim->has_lost |= !sim->cut;
    sim->nr_rollbacks++;
    /* Who has no handle is told by the incarnation. */
    for (unsigned i = 0; i < SIM_VOLUMES; i++)
        if (!sim->clients[i].volume)
            sim->clients[i].lossy = true;
}

static void
opened(void *arg, struct pool *pool, int result, const struct thin_error *err)
{
    struct sim *sim = arg;

    sim->pool = pool;
    sim->call_ended = true;
    sim->call_result = result;
    sim_note(sim, (uint64_t)(int64_t)result);
    if (result < 0 && !sim->faulty && !sim->cut)
        sim_die(sim, "the pool does not open: %s", thin_error_text(err, result));
}

void
sim_open_begin(struct sim *sim, struct device *data, struct device *metadata, bool format)
{
    struct pool_params params;
    struct pool_config *config = &sim->config;

    memset(&params, 0, sizeof(params));
    params.loop = sim->loop;
    params.name = "tank";
    params.data = data;
    params.metadata = metadata;
    pool_config_default(config);
    config->metadata_cache_blocks = 128 + (uint32_t)random_below(&sim->rng, 128);
    params.cache_clean = test_cache_clean();
    config->mapping_cache_pages = 4 + (uint32_t)random_below(&sim->rng, 5);
    config->commit_interval_ms = 1 + random_below(&sim->rng, 40);
    config->on_full = random_below(&sim->rng, 2) ? POOL_ERROR : POOL_QUEUE;
    config->no_space_timeout_ms = 1 + random_below(&sim->rng, 100);
    config->extend_metadata = random_below(&sim->rng, 2);
    if (random_below(&sim->rng, 4) == 0) {
        config->extend_data.percent = 80;
        config->extend_data.step_bytes = 5 * SIM_BLOCK;
        config->extend_data.limit_bytes = sim->data_size_max;
    }
    if (random_below(&sim->rng, 4) == 0)
        config->discards = POOL_DISCARD_UNMAP;
    params.config = *config;
    params.seed = random_u64(&sim->rng);
    params.wall_clock_s = 1700000000;
    /* With a mark each opening commits; without one an idle pool writes nothing. */
    if (sim->seed % 2) {
        memset(params.owner_host, 1, sizeof(params.owner_host));
        memset(params.owner_boot, 1, sizeof(params.owner_boot));
    }
    params.data_block_sectors = SIM_BLOCK / 512;
    params.format = format;
    params.leaf_max = params.internal_max = 6;
    params.origin_open = sim_origin_open;
    params.origin_open_arg = sim;
    params.event = event;
    params.event_arg = sim;
    sim->pool = NULL;
    sim->rolled_back = sim->rolling = sim->cut = sim->call_ended = false;
    pool_open(&params, opened, sim);
}

void
sim_wait_call(struct sim *sim, const char *what)
{
    for (uint64_t steps = 0; !sim->call_ended; steps++) {
        if (!sim_loop_step(sim->loop))
            sim_die(sim, "nothing is left to run, but %s has not ended", what);
        if (steps > SIM_STEPS_MAX)
            sim_die(sim, "%s does not end", what);
    }
}

void
sim_opened(struct sim *sim)
{
    struct sim_event all = {.kind = SIM_EV_STABLE, .id = sim->model.now};
    struct pool_info info;

    pool_get_info(sim->pool, &info);
    if (info.incarnation == sim->incarnation) {
        /* It says that nothing acknowledged since it was drawn is lost. What was lost
           before, in a roll-back, may stand there or not. */
        if (!sim->has_lost)
            sim_model_apply(&sim->model, &all);
        sim->nr_kept_incarnations++;
    } else if (sim->closed_well) {
        sim_die(sim, "the pool was closed in good order, and has another incarnation");
    } else {
        memset(sim->marks, 0, sizeof(sim->marks));
    }
    if (info.data_size < sim->data_size)
        sim_die(sim, "the pool has %" PRIu64 " bytes of data, had grown to %" PRIu64,
                info.data_size, sim->data_size);
    sim->incarnation = info.incarnation;
    sim->data_size = info.data_size;
    sim->closed_well = sim->has_lost = false;
    for (unsigned i = 0; i < SIM_VOLUMES; i++) {
        const struct sim_state *now = &sim->model.volumes[i].now;
        struct volume_info found;

        sim->clients[i].lossy = false;
        sim->clients[i].reserved =
            now->there && sim->model.volumes[i].change == SIM_CHANGE_NONE &&
            pool_volume_peek(sim->pool, now->name, &found) && found.reserve >= found.size;
    }
}

void
sim_drain(struct sim *sim)
{
    for (uint64_t steps = 0; sim->ops_in_flight || sim->changes_in_flight; steps++)
        if (!sim_loop_step(sim->loop) || steps > SIM_STEPS_MAX)
            sim_die(sim, "%u requests and %u changes have no end", sim->ops_in_flight,
                    sim->changes_in_flight);
}

static void
closed(void *arg, int result, const struct thin_error *err)
{
    struct sim *sim = arg;

    (void)err;
    sim->call_ended = true;
    sim->call_result = result;
}

static void
wait_opened(struct sim *sim, unsigned slot)
{
    while (sim->clients[slot].opening)
        if (!sim_loop_step(sim->loop))
            sim_die(sim, "opening volume %s has no end",
                    sim->model.volumes[slot].now.name);
}

static void
close_all(struct sim *sim)
{
    for (unsigned i = 0; i < SIM_VOLUMES; i++) {
        wait_opened(sim, i);
        sim_client_close(sim, i);
    }
}

void
sim_abandon(struct sim *sim)
{
    struct pool_done done = {closed, sim};

    sim_pin_end(sim);
    sim->cut = true;
    sim->call_ended = false;
    pool_close(sim->pool, true, done);
    sim_wait_call(sim, "closing the pool by force");
    sim->pool = NULL;
    sim_origin_closed(sim);
    if (sim->ops_in_flight || sim->changes_in_flight)
        sim_die(sim, "the pool is closed, %u requests and %u changes were never answered",
                sim->ops_in_flight, sim->changes_in_flight);
    close_all(sim);
}

int
sim_close(struct sim *sim)
{
    struct pool_done done = {closed, sim};
    struct sim_event ev = {.kind = SIM_EV_STABLE, .id = sim->model.now};

    struct pool_info info;

    sim_pin_end(sim);
    close_all(sim);
    pool_get_info(sim->pool, &info);
    sim->call_ended = false;
    pool_close(sim->pool, false, done);
    sim_wait_call(sim, "closing the pool");
    sim->pool = NULL;
    sim_origin_closed(sim);
    if (sim->call_result == 0 && !sim->rolled_back) {
        sim_model_apply(&sim->model, &ev);
        /* One that was only looked at may stay as it was found. */
        sim->closed_well = !sim->rolling && !sim->faulty && info.commits;
    }
    return sim->call_result;
}

void
sim_heed_marks(struct sim *sim)
{
    struct sim_event ev = {.kind = SIM_EV_STABLE};
    struct pool_marks marks;

    if (sim->rolled_back || !sim->pool)
        return;
    pool_get_marks(sim->pool, &marks);
    if (marks.incarnation != sim->incarnation)
        return;
    for (unsigned i = 0; i < SIM_MARKS; i++)
        if (sim->marks[i].change <= marks.stable)
            ev.id = max_u64(ev.id, sim->marks[i].at);
    if (ev.id)
        sim_model_apply(&sim->model, &ev);
}

/* ---- turns ------------------------------------------------------------------------------------ */

uint64_t
sim_usable(const struct sim *sim, unsigned slot)
{
    const struct sim_volume *v = &sim->model.volumes[slot];

    return v->change == SIM_CHANGE_NONE ? v->now.size
                                        : min_u64(v->now.size, v->next.size);
}

static void
client_opened(void *arg, struct volume *volume, int result, const struct thin_error *err)
{
    struct sim_client *client = arg;

    (void)result;
    (void)err;
    client->opening = false;
    client->volume = volume;
    client->fenced = false;
}

void
sim_client_open(struct sim *sim, unsigned slot)
{
    struct sim_client *client = &sim->clients[slot];

    client->opening = true;
    pool_volume_open(sim->pool, sim->model.volumes[slot].now.name, false, client_opened,
                     client);
}

void
sim_client_close(struct sim *sim, unsigned slot)
{
    struct sim_client *client = &sim->clients[slot];

    THIN_ASSERT(!client->opening);
    if (client->volume && sim->rolled_back)
        client->lossy = true;
    volume_close(take(client->volume));
}

void
sim_work(struct sim *sim, uint64_t steps)
{
    while (steps-- > 0 && !sim->rolled_back) {
        unsigned slot = (unsigned)random_below(&sim->rng, SIM_VOLUMES);
        struct sim_client *client = &sim->clients[slot];
        const struct sim_volume *v = &sim->model.volumes[slot];

        if (sim->metadata && random_below(&sim->rng, 400) == 0)
            sim_pin_turn(sim);
        if (sim->ops_in_flight < SIM_DEPTH && random_below(&sim->rng, 4) == 0) {
            if (v->now.there && client->volume && !client->fenced)
                sim_op_start(sim, slot);
        } else if (sim->changes_in_flight < 3 &&
                   random_below(&sim->rng, 1000) < sim->mix.changes) {
            sim_change_start(sim);
        } else if (v->now.there && !client->volume && !client->opening &&
                   v->change == SIM_CHANGE_NONE) {
            sim_client_open(sim, slot);
        } else if (client->volume && client->in_flight == 0 &&
                   random_below(&sim->rng, 100) == 0) {
            sim_client_close(sim, slot);
        } else {
            sim_loop_step(sim->loop);
        }
        /* So that the power goes in the middle of a roll-back, too. */
        if (sim->rolling && random_below(&sim->rng, 40) == 0)
            return;
    }
}

/* ---- comparing ---------------------------------------------------------------------------------- */

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

static int
read_piece(struct sim *sim, unsigned slot, unsigned char *bytes, uint64_t offset,
           uint64_t len)
{
    struct whole_read w;

    memset(&w, 0, sizeof(w));
    w.iov.iov_base = bytes;
    w.iov.iov_len = len;
    w.io.op = VOLUME_READ;
    w.io.offset = offset;
    w.io.len = len;
    w.io.iov = &w.iov;
    w.io.nr_iov = 1;
    w.io.done = whole_read_done;
    volume_submit(sim->clients[slot].volume, &w.io);
    while (!w.done)
        if (!sim_loop_step(sim->loop))
            sim_die(sim, "reading volume %s has no end",
                    sim->model.volumes[slot].now.name);
    return w.result;
}

static void
read_whole(struct sim *sim, unsigned slot, unsigned char *bytes)
{
    const struct sim_volume *v = &sim->model.volumes[slot];
    struct sim_client *client = &sim->clients[slot];
    int r;

    sim_client_open(sim, slot);
    wait_opened(sim, slot);
    if (!client->volume)
        sim_die(sim, "volume %s does not open", v->now.name);
    if (volume_size(client->volume) != v->now.size)
        sim_die(sim, "volume %s has %" PRIu64 " bytes, not %" PRIu64, v->now.name,
                volume_size(client->volume), v->now.size);
    r = read_piece(sim, slot, bytes, 0, v->now.size);
    /* An origin that has failed is tried again after a while. */
    if (r == -EIO && sim_origin_wait(sim))
        r = read_piece(sim, slot, bytes, 0, v->now.size);
    if (r < 0)
        sim_die(sim, "volume %s does not read: %s", v->now.name, thin_error_name(r));
}

/* Block by block: each can be read and is right, or fails and is told of. */
static void
compare_pieces(struct sim *sim, unsigned slot)
{
    const struct sim_volume *v = &sim->model.volumes[slot];
    struct sim_look look = {.by = v->flushed, .fua = true, .made = v->made};
    static unsigned char bytes[SIM_BLOCK];
    struct volume_info info;
    char why[512];

    if (v->change != SIM_CHANGE_NONE) /* nobody could tell what became of it */
        return;
    sim_client_open(sim, slot);
    wait_opened(sim, slot);
    if (!sim->clients[slot].volume)
        return;
    for (uint64_t at = 0; at < v->now.size; at += SIM_BLOCK) {
        uint64_t len = min_u64(SIM_BLOCK, v->now.size - at);
        int r = read_piece(sim, slot, bytes, at, len);

        if (r == 0 &&
            !sim_extents_allow(&v->x, at, at + len, bytes, &look, why, sizeof(why)))
            sim_die(sim, "damaged volume %s is wrong: %s", v->now.name, why);
        if (r < 0)
            sim_judge_error(sim, r, "a read", slot);
        if (r < 0 && sim->damage == SIM_BELOW_VOLUME &&
            (!pool_volume_peek(sim->pool, v->now.name, &info) || !info.damaged))
            sim_die(sim, "volume %s does not read (%s), and is not called damaged",
                    v->now.name, thin_error_name(r));
    }
}

static unsigned char whole[SIM_SIZE_MAX];

static void
compare(struct sim *sim, unsigned slot, bool fix)
{
    char why[512];

    read_whole(sim, slot, whole);
    if (!sim_model_compare(&sim->model, slot, whole, false, 0, why, sizeof(why)))
        sim_die(sim, "volume %s is wrong: %s", sim->model.volumes[slot].now.name, why);
    if (fix)
        sim_model_fix(&sim->model, slot, whole);
}

static bool
is_state(struct sim *sim, const struct sim_state *state)
{
    struct volume_info info;

    return pool_volume_peek(sim->pool, state->name, &info) == state->there &&
           (!state->there ||
            (info.size == state->size && info.attachment.epoch == state->epoch &&
             info.is_protected == state->is_protected));
}

/* The volumes of one change have all gone its way, or none. */
static void
judge_change(struct sim *sim, unsigned index)
{
    const struct sim_change *c = &sim->model.changes[index].c;
    unsigned nr_now = 0, nr_next = 0;

    for (unsigned i = 0; i < c->nr; i++) {
        const struct sim_volume *v = &sim->model.volumes[c->slots[i]];
        struct sim_state absent = v->next;

        /* Not there has no name of its own to look for. */
        absent.there = false;
        if (!v->now.there)
            nr_now += is_state(sim, &absent);
        else
            nr_now += is_state(sim, &v->now);
        absent = v->now;
        absent.there = false;
        if (!v->next.there)
            nr_next += is_state(sim, &absent);
        else
            nr_next += is_state(sim, &v->next);
    }
    if (nr_now != c->nr && nr_next != c->nr)
        sim_die(sim,
                "a change of kind %d to %s is half done: %u of %u as before, %u as after",
                (int)c->kind, sim->model.volumes[c->slots[0]].next.name, nr_now, c->nr,
                nr_next);
    sim_model_judge(&sim->model, index, nr_next == c->nr);
}

static void
verify_names(struct sim *sim)
{
    char name[THIN_NAME_MAX + 1] = "";
    struct volume_info info;
    unsigned nr = 0, wanted = 0;

    for (unsigned i = 0; i < SIM_VOLUMES; i++) {
        const struct sim_state *now = &sim->model.volumes[i].now;

        if (!now->there)
            continue;
        wanted++;
        if (!pool_volume_peek(sim->pool, now->name, &info))
            sim_die(sim, "volume %s is gone", now->name);
        if (!is_state(sim, now))
            sim_die(sim,
                    "volume %s has %" PRIu64 " bytes, epoch %" PRIu64
                    ", protected %d; wanted are %" PRIu64 ", %" PRIu64 ", %d",
                    now->name, info.size, info.attachment.epoch, info.is_protected,
                    now->size, now->epoch, now->is_protected);
    }
    while (nr <= SIM_VOLUMES &&
           pool_volume_next(sim->pool, name[0] ? name : NULL, &info)) {
        memcpy(name, info.name, sizeof(name));
        nr++;
    }
    if (nr != wanted)
        sim_die(sim, "%u volumes are listed, not %u; the last is %s", nr, wanted, name);
}

void
sim_verify(struct sim *sim)
{
    for (unsigned i = 0; i < SIM_CHANGES; i++)
        if (sim->model.changes[i].open)
            judge_change(sim, i);
    verify_names(sim);
    for (unsigned i = 0; i < SIM_VOLUMES; i++)
        if (sim->model.volumes[i].now.there)
            compare(sim, i, true);
}

void
sim_verify_damaged(struct sim *sim)
{
    bool named = sim->damage < SIM_BELOW_NAMES;

    for (unsigned i = 0; named && i < SIM_CHANGES; i++)
        if (sim->model.changes[i].open)
            judge_change(sim, i);
    if (named)
        verify_names(sim);
    for (unsigned i = 0; i < SIM_VOLUMES; i++) {
        struct volume_info info;

        if (!sim->model.volumes[i].now.there)
            continue;
        if (named && !sim->clients[i].touched) {
            compare(sim, i, false);
            if (pool_volume_peek(sim->pool, sim->model.volumes[i].now.name, &info) &&
                info.damaged)
                sim_die(sim, "volume %s is called damaged, and is not",
                        sim->model.volumes[i].now.name);
        } else if (named || sim->damage == SIM_ABOVE_ALL) {
            compare_pieces(sim, i);
        }
    }
}

/* Of what compare has read. */
static uint64_t
hash_of(const struct sim *sim, unsigned slot)
{
    uint64_t hash = 0, word;

    for (uint64_t at = 0; at < sim->model.volumes[slot].now.size; at += 8) {
        memcpy(&word, whole + at, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    return hash;
}

void
sim_verify_rolled_back(struct sim *sim)
{
    sim_drain(sim);
    while (!sim->rolled_back)
        if (!sim_loop_step(sim->loop))
            sim_die(sim, "a roll-back has no end");
    memset(sim->rolled, 0, sizeof(sim->rolled));
    for (unsigned i = 0; i < SIM_VOLUMES; i++) {
        struct volume *fenced;

        if (!sim->model.volumes[i].now.there ||
            sim->model.volumes[i].change != SIM_CHANGE_NONE)
            continue;
        wait_opened(sim, i);
        /* Beside the old handle: what the engine remembers of the volume stays. */
        fenced = take(sim->clients[i].volume);
        compare(sim, i, false);
        sim->rolled[i].known = true;
        sim->rolled[i].hash = hash_of(sim, i);
        sim->clients[i].lossy = true;
        volume_close(fenced);
    }
}

void
sim_verify_as_before(struct sim *sim)
{
    for (unsigned i = 0; i < SIM_VOLUMES; i++) {
        if (!sim->rolled[i].known)
            continue;
        compare(sim, i, false);
        if (hash_of(sim, i) != sim->rolled[i].hash)
            sim_die(sim, "volume %s held something else after the roll-back than now",
                    sim->model.volumes[i].now.name);
    }
}

void
sim_recount(struct sim *sim, const struct recount_source *source)
{
    const unsigned char *block0 = source->page(source->arg, 0);
    struct recount rc;
    bool blank = true;

    for (unsigned i = 0; block0 && i < 4096 && blank; i++)
        blank = block0[i] == 0;
    if (blank) /* the format was not durable yet */
        return;
    if (recount_pages(source, NULL, &rc) < 0)
        sim_die(sim, "the recount differs: %s", rc.why);
}
