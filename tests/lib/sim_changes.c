/* Changes by name that the simulated administrators make. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "tests/lib/sim_drive.h"

struct change {
    struct sim *sim;
    unsigned index; /* in the model; SIM_CHANGE_NONE: it knows nothing of this one */
    enum sim_change_kind kind;
    unsigned slot;
    uint64_t reserves; /* bytes */
    uint64_t size, data_size;
};

/* ---- answers -------------------------------------------------------------------------------- */

static enum sim_outcome
outcome_of(const struct change *change, int result, const struct thin_error *err)
{
    struct sim *sim = change->sim;

    switch (result) {
    case 0:
        return SIM_DONE;
    case -THIN_E_NO_DATA_SPACE:
    case -THIN_E_NO_METADATA_SPACE:
    case -THIN_E_LIMIT:
        return SIM_REFUSED;
    case -THIN_E_BUSY:
        /* What was beyond the end is being given back; protected; the held root. */
        if (change->index == SIM_CHANGE_NONE || change->kind == SIM_RESIZE ||
            change->kind == SIM_DELETE || change->kind == SIM_ROLLBACK)
            return SIM_REFUSED;
        break;
    case -THIN_E_EXISTS:
    case -THIN_E_NOT_FOUND:
        if (change->index == SIM_CHANGE_NONE) /* the held root */
            return SIM_REFUSED;
        break;
    case -THIN_E_READ_ONLY:
        if (sim->cut) /* the roll-back of a pool whose disks are gone */
            return SIM_UNKNOWN;
        if (sim->faulty)
            return SIM_REFUSED;
        break;
    case -THIN_E_ROLLED_BACK:
    case -THIN_E_SHUTDOWN:
    case -THIN_E_LOST:
    case -THIN_E_FAILED:
    case -THIN_E_CATALOGUE:
    case -EIO:
        if (sim->faulty || sim->cut)
            return SIM_UNKNOWN;
        break;
    default:
        if (sim->damage != SIM_WHOLE)
            return SIM_UNKNOWN;
        break;
    }
    sim_die(sim, "a change of kind %d fails: %s", (int)change->kind,
            thin_error_text(err, result));
}

static void
change_done(void *arg, int result, const struct thin_error *err)
{
    struct change *change = arg;
    struct sim *sim = change->sim;
    struct sim_event ev = {.kind = SIM_EV_CHANGE_ENDED, .index = change->index};

    sim->changes_in_flight--;
    sim->nr_changes++;
    sim_note(sim, (uint64_t)(int64_t)result ^ 0x55);
    ev.outcome = outcome_of(change, result, err);
    if (change->kind == SIM_CREATE && change->index != SIM_CHANGE_NONE && result == 0)
        sim->clients[change->slot].reserved = change->reserves == change->size;
    if (change->index != SIM_CHANGE_NONE)
        sim_model_apply(&sim->model, &ev);
    else if (result == 0 && change->data_size > sim->data_size)
        sim->data_size = change->data_size;
    free(change);
}

/* ---- picking --------------------------------------------------------------------------------- */

/* A volume that may be changed, or a free place. */
static unsigned
pick(struct sim *sim, bool there, bool idle)
{
    unsigned from = (unsigned)random_below(&sim->rng, SIM_VOLUMES);

    for (unsigned i = 0; i < SIM_VOLUMES; i++) {
        unsigned slot = (from + i) % SIM_VOLUMES;
        const struct sim_volume *v = &sim->model.volumes[slot];
        const struct sim_client *client = &sim->clients[slot];

        if (v->now.there != there || v->change != SIM_CHANGE_NONE ||
            sim_model_is_origin(&sim->model, slot))
            continue;
        if (idle && (client->in_flight || client->opening))
            continue;
        return slot;
    }
    return SIM_SLOT_NONE;
}

static void
draw_name(struct sim *sim, char name[SIM_NAME_BYTES])
{
    /* In no order, so that the order of names is not the one of their making. */
    snprintf(name, SIM_NAME_BYTES, "%c%" PRIu64,
             (char)('a' + random_below(&sim->rng, 26)), ++sim->next_name % 1000000);
}

static uint64_t
draw_size(struct sim *sim)
{
    uint64_t size = 512 * (1 + random_below(&sim->rng, SIM_SIZE_MAX / 512));

    return random_below(&sim->rng, 3) ? size : round_up_u64(size, SIM_BLOCK);
}

static bool
fill_snapshot(struct sim *sim, struct sim_change *c)
{
    unsigned wanted = random_below(&sim->rng, 3) ? 1 : SIM_GROUP;
    unsigned from = (unsigned)random_below(&sim->rng, SIM_VOLUMES);

    c->nr = 0;
    for (unsigned i = 0; i < SIM_VOLUMES && c->nr < wanted; i++) {
        unsigned slot = (from + i) % SIM_VOLUMES;
        const struct sim_volume *v = &sim->model.volumes[slot];
        unsigned origin;

        if (v->now.there || v->change != SIM_CHANGE_NONE)
            continue;
        origin = pick(sim, true, false);
        if (origin == SIM_SLOT_NONE)
            break;
        for (unsigned k = 0; k < c->nr; k++)
            if (c->origins[k] == origin)
                origin = SIM_SLOT_NONE;
        if (origin == SIM_SLOT_NONE)
            break;
        c->slots[c->nr] = slot;
        c->origins[c->nr] = origin;
        draw_name(sim, c->names[c->nr]);
        c->nr++;
    }
    return c->nr > 0;
}

/* False: there is nothing to do it with. */
static bool
fill(struct sim *sim, struct sim_change *c)
{
    const struct sim_volume *v;
    bool idle = c->kind == SIM_DELETE || c->kind == SIM_ROLLBACK || c->kind == SIM_RESIZE;

    if (c->kind == SIM_SNAPSHOT)
        return fill_snapshot(sim, c);
    c->nr = 1;
    c->slots[0] = pick(sim, c->kind != SIM_CREATE, idle);
    if (c->slots[0] == SIM_SLOT_NONE)
        return false;
    v = &sim->model.volumes[c->slots[0]];
    switch (c->kind) {
    case SIM_CREATE:
        draw_name(sim, c->names[0]);
        c->value = draw_size(sim);
        if (random_below(&sim->rng, 100) < sim->mix.origin)
            c->origin_size = sim->origin_size;
        break;
    case SIM_RENAME:
        draw_name(sim, c->names[0]);
        break;
    case SIM_RESIZE:
        c->value = draw_size(sim);
        if (c->value == v->now.size)
            return false;
        if (c->value < v->now.size &&
            !sim_extents_have_room(&v->x, c->value, v->now.size))
            return false;
        break;
    case SIM_ROLLBACK:
        c->origins[0] = pick(sim, true, false);
        if (c->origins[0] == c->slots[0] || v->now.is_protected)
            return false;
        sim_client_close(sim, c->slots[0]);
        break;
    case SIM_DELETE:
        if (v->now.is_protected && random_below(&sim->rng, 4))
            return false;
        sim_client_close(sim, c->slots[0]);
        break;
    case SIM_ATTACH:
        c->value = v->now.epoch + random_below(&sim->rng, 2);
        break;
    case SIM_PROTECT:
        c->value = !v->now.is_protected;
        break;
    case SIM_SNAPSHOT:
    case SIM_CHANGE_KINDS:
        break;
    }
    return true;
}

/* ---- doing ----------------------------------------------------------------------------------- */

static void
submit(struct sim *sim, const struct sim_change *c, const char *name, uint64_t reserves,
       struct pool_done done)
{
    const char *origins[SIM_GROUP], *names[SIM_GROUP];
    struct volume_spec spec = {
        .name = c->names[0], .size = c->value, .reserve = reserves};
    struct pool_attachment attachment = {.epoch = c->value, .holder = "cert:somebody"};

    for (unsigned i = 0; i < c->nr; i++) {
        origins[i] = sim->model.volumes[c->origins[i]].now.name;
        names[i] = c->names[i];
    }
    switch (c->kind) {
    case SIM_CREATE:
        if (c->origin_size > 0)
            spec.origin = "sim:origin";
        pool_volume_create(sim->pool, &spec, done);
        break;
    case SIM_SNAPSHOT:
        pool_volume_snapshot(sim->pool, origins, names, c->nr, done);
        break;
    case SIM_DELETE:
        pool_volume_delete(sim->pool, name, done);
        break;
    case SIM_RENAME:
        pool_volume_rename(sim->pool, name, c->names[0], done);
        break;
    case SIM_RESIZE:
        pool_volume_resize(sim->pool, name, c->value, true, done);
        break;
    case SIM_ROLLBACK:
        pool_volume_rollback(sim->pool, name, origins[0], done);
        break;
    case SIM_ATTACH:
        attachment.session = c->value;
        pool_volume_attach(sim->pool, name, &attachment, done);
        break;
    case SIM_PROTECT:
        pool_volume_set(sim->pool, name, VOLUME_PROTECTED, c->value, done);
        break;
    case SIM_CHANGE_KINDS:
        break;
    }
}

static struct change *
change_create(struct sim *sim)
{
    struct change *change = calloc(1, sizeof(*change));

    THIN_ASSERT(change);
    change->sim = sim;
    change->index = SIM_CHANGE_NONE;
    sim->changes_in_flight++;
    return change;
}

/* Of the pool itself: the model has no part in these. */
static bool
pool_change_start(struct sim *sim)
{
    uint64_t dice = random_below(&sim->rng, 100), data, metadata = 0;
    struct pool_info info;
    struct change *change;
    struct pool_done done;

    if (dice >= sim->mix.grow + sim->mix.snap_metadata)
        return false;
    change = change_create(sim);
    done = (struct pool_done){change_done, change};
    if (dice >= sim->mix.grow) {
        if (random_below(&sim->rng, 2))
            pool_reserve_snap(sim->pool, done);
        else
            pool_release_snap(sim->pool, done);
        return true;
    }
    pool_get_info(sim->pool, &info);
    data = min_u64(info.data_size + (1 + random_below(&sim->rng, 9)) * SIM_BLOCK,
                   max_u64(sim->data_size_max, info.data_size));
    if (random_below(&sim->rng, 2))
        metadata = min_u64(info.metadata_size + (1 + random_below(&sim->rng, 99)) * 4096,
                           max_u64(sim->metadata_size_max, info.metadata_size));
    /* Two growths may be on their way, and one by itself: the later may be too small. */
    if (sim->changes_in_flight > 1 || sim->config.extend_data.percent ||
        info.data_size == 0 || sim->cut) {
        sim->changes_in_flight--;
        free(change);
        return false;
    }
    change->data_size = data;
    pool_grow(sim->pool, data, metadata, done);
    return true;
}

void
sim_change_start(struct sim *sim)
{
    struct sim_event ev = {.kind = SIM_EV_CHANGE};
    struct sim_change *c = &ev.change;
    struct change *change;
    char name[SIM_NAME_BYTES];
    unsigned sum = 0, kind = 0;
    uint64_t dice;

    if (pool_change_start(sim))
        return;
    for (unsigned i = 0; i < SIM_CHANGE_KINDS; i++)
        sum += sim->mix.change[i];
    dice = random_below(&sim->rng, sum);
    while (dice >= sim->mix.change[kind])
        dice -= sim->mix.change[kind++];
    c->kind = (enum sim_change_kind)kind;
    for (unsigned i = 0; i < SIM_GROUP; i++)
        c->slots[i] = c->origins[i] = 0;
    if (sim_model_free_change(&sim->model) == SIM_CHANGE_NONE || !fill(sim, c))
        return;
    memcpy(name, sim->model.volumes[c->slots[0]].now.name, sizeof(name));
    change = change_create(sim);
    change->kind = c->kind;
    change->index = sim_model_free_change(&sim->model);
    change->slot = c->slots[0];
    change->size = c->value;
    /* All of it, or half: that one may want more than it was promised. */
    if (c->kind == SIM_CREATE && random_below(&sim->rng, 4) == 0)
        change->reserves = random_below(&sim->rng, 2) ? c->value : c->value / 2;
    if (c->kind != SIM_SNAPSHOT && c->kind != SIM_RENAME)
        sim->clients[c->slots[0]].reserved = false;
    for (unsigned i = 0; i < c->nr; i++)
        if (c->kind == SIM_SNAPSHOT || c->kind == SIM_ROLLBACK)
            sim->clients[c->slots[i]].touched |= sim->clients[c->origins[i]].touched;
        else if (c->kind == SIM_CREATE)
            sim->clients[c->slots[i]].touched = false;
    sim_model_apply(&sim->model, &ev);
    submit(sim, c, name, change->reserves, (struct pool_done){change_done, change});
}
