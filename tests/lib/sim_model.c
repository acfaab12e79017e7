#include "tests/lib/sim_model.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"

void
sim_model_init(struct sim_model *m)
{
    memset(m, 0, sizeof(*m));
    for (unsigned i = 0; i < SIM_VOLUMES; i++) {
        m->volumes[i].change = SIM_CHANGE_NONE;
        m->volumes[i].next_origin = SIM_SLOT_NONE;
        m->volumes[i].moment = SIM_SLOT_NONE;
    }
}

void
sim_model_fini(struct sim_model *m)
{
    for (unsigned i = 0; i < SIM_VOLUMES; i++) {
        sim_extents_fini(&m->volumes[i].x);
        sim_extents_fini(&m->volumes[i].next_x);
    }
}

void
sim_model_copy(struct sim_model *to, const struct sim_model *from)
{
    to->now = from->now;
    memcpy(to->changes, from->changes, sizeof(to->changes));
    memcpy(to->moments, from->moments, sizeof(to->moments));
    for (unsigned i = 0; i < SIM_VOLUMES; i++) {
        struct sim_volume *v = &to->volumes[i];
        struct sim_extents x = v->x, next_x = v->next_x;

        *v = from->volumes[i];
        v->x = x;
        v->next_x = next_x;
        sim_extents_copy(&v->x, &from->volumes[i].x);
        sim_extents_copy(&v->next_x, &from->volumes[i].next_x);
    }
}

/* ---- writes -------------------------------------------------------------------------------- */

static void
write_begun(struct sim_model *m, const struct sim_event *ev)
{
    sim_extents_add(&m->volumes[ev->slot].x, ev->begin, ev->end, ev->value, m->now);
    for (unsigned i = 0; i < SIM_VOLUMES; i++)
        if (m->volumes[i].next_origin == ev->slot)
            sim_extents_add(&m->volumes[i].next_x, ev->begin, ev->end, ev->value, m->now);
}

static void
write_ended(struct sim_model *m, const struct sim_event *ev)
{
    sim_extents_end(&m->volumes[ev->slot].x, ev->begin, ev->end, ev->id, m->now, ev->ok,
                    ev->fua);
    for (unsigned i = 0; i < SIM_VOLUMES; i++)
        if (m->volumes[i].next_origin == ev->slot)
            sim_extents_end(&m->volumes[i].next_x, ev->begin, ev->end, ev->id, m->now,
                            ev->ok, ev->fua);
}

static void
flushed(struct sim_model *m, const struct sim_event *ev)
{
    struct sim_volume *v = &m->volumes[ev->slot];

    v->flushed = max_u64(v->flushed, ev->id);
    if (ev->prune)
        sim_extents_prune(&v->x, v->flushed, true, v->made);
}

static void
stable(struct sim_model *m, const struct sim_event *ev)
{
    for (unsigned i = 0; i < SIM_VOLUMES; i++)
        m->volumes[i].flushed = max_u64(m->volumes[i].flushed, ev->id);
}

/* ---- changes ------------------------------------------------------------------------------- */

unsigned
sim_model_free_change(const struct sim_model *m)
{
    unsigned i = 0;

    while (i < SIM_CHANGES && m->changes[i].open)
        i++;
    return i;
}

bool
sim_model_is_origin(const struct sim_model *m, unsigned slot)
{
    for (unsigned i = 0; i < SIM_VOLUMES; i++)
        if (m->volumes[i].next_origin == slot)
            return true;
    return false;
}

/* The contents of `origin`, some time from now on. */
static void
take_contents(struct sim_model *m, struct sim_volume *v, unsigned origin)
{
    const struct sim_volume *from = &m->volumes[origin];

    sim_extents_copy(&v->next_x, &from->x);
    sim_extents_prune(&v->next_x, m->now, true, from->made);
    sim_extents_taken(&v->next_x, from->made);
    v->has_next_x = true;
    v->next_origin = origin;
    v->next.size = from->now.size;
    v->next.over_origin = from->now.over_origin;
}

static void
begin_one(struct sim_model *m, const struct sim_change *c, unsigned i)
{
    struct sim_volume *v = &m->volumes[c->slots[i]];

    v->next = v->now;
    switch (c->kind) {
    case SIM_CREATE:
    case SIM_SNAPSHOT:
        THIN_ASSERT(!v->now.there);
        memset(&v->next, 0, sizeof(v->next));
        v->next.there = true;
        memcpy(v->next.name, c->names[i], SIM_NAME_BYTES);
        if (c->kind == SIM_SNAPSHOT) {
            take_contents(m, v, c->origins[i]);
        } else {
            v->next.size = c->value;
            v->next.over_origin = c->origin_size > 0;
            sim_extents_fini(&v->next_x);
            sim_extents_init(&v->next_x, c->value, c->origin_size);
            v->has_next_x = true;
        }
        break;
    case SIM_DELETE:
        v->next.there = false;
        break;
    case SIM_RENAME:
        memcpy(v->next.name, c->names[i], SIM_NAME_BYTES);
        break;
    case SIM_RESIZE:
        v->next.size = c->value;
        if (c->value < v->now.size) {
            /* Zeroed before the change is made, so also if it never is. */
            sim_extents_add(&v->x, c->value, v->now.size, 0, m->now);
            v->next.epoch++;
        }
        break;
    case SIM_ROLLBACK:
        take_contents(m, v, c->origins[i]);
        v->next.epoch++;
        break;
    case SIM_ATTACH:
        v->next.epoch = c->value;
        break;
    case SIM_PROTECT:
        v->next.is_protected = c->value != 0;
        break;
    case SIM_CHANGE_KINDS:
        break;
    }
}

static unsigned
free_moment(const struct sim_model *m)
{
    for (unsigned k = 0; k < SIM_VOLUMES; k++) {
        bool used = false;

        for (unsigned i = 0; i < SIM_VOLUMES; i++)
            used = used || m->volumes[i].moment == k;
        for (unsigned i = 0; i < SIM_CHANGES; i++)
            used = used || (m->changes[i].open && m->changes[i].moment == k);
        if (!used)
            return k;
    }
    return SIM_SLOT_NONE;
}

static void
change_begun(struct sim_model *m, const struct sim_event *ev)
{
    const struct sim_change *c = &ev->change;
    unsigned index = sim_model_free_change(m);

    THIN_ASSERT(index != SIM_CHANGE_NONE);
    for (unsigned i = 0; i < c->nr; i++) {
        THIN_ASSERT(m->volumes[c->slots[i]].change == SIM_CHANGE_NONE);
        m->volumes[c->slots[i]].change = index;
        begin_one(m, c, i);
    }
    m->changes[index].moment = free_moment(m);
    m->changes[index].open = true;
    m->changes[index].unknown = false;
    m->changes[index].id = m->now;
    m->changes[index].c = *c;
}

static void
volume_becomes(struct sim_model *m, struct sim_volume *v, unsigned moment)
{
    v->now = v->next;
    if (v->has_next_x) {
        struct sim_extents old = v->x;

        v->x = v->next_x;
        v->next_x = old;
        v->flushed = 0;
        v->made = v->next_origin == SIM_SLOT_NONE ? 0 : m->now;
        sim_extents_settle(&v->x, m->now);
        v->moment = moment;
    }
    if (v->now.there)
        sim_extents_resize(&v->x, v->now.size);
    else
        v->moment = SIM_SLOT_NONE;
}

void
sim_model_judge(struct sim_model *m, unsigned index, bool done)
{
    const struct sim_change *c = &m->changes[index].c;
    unsigned moment = m->changes[index].moment;

    THIN_ASSERT(m->changes[index].open);
    if (moment != SIM_SLOT_NONE)
        m->moments[moment] = (struct sim_moment){.low = 0, .high = SIM_NEVER};
    for (unsigned i = 0; i < c->nr; i++) {
        struct sim_volume *v = &m->volumes[c->slots[i]];

        if (done)
            volume_becomes(m, v,
                           v->next_origin == SIM_SLOT_NONE ? SIM_SLOT_NONE : moment);
        v->change = SIM_CHANGE_NONE;
        v->next_origin = SIM_SLOT_NONE;
        v->has_next_x = false;
    }
    m->changes[index].open = false;
}

static void
change_ended(struct sim_model *m, const struct sim_event *ev)
{
    if (ev->outcome == SIM_UNKNOWN)
        m->changes[ev->index].unknown = true;
    else
        sim_model_judge(m, ev->index, ev->outcome == SIM_DONE);
}

void
sim_event_print(const struct sim_event *ev, uint64_t time)
{
    static const char *const events[] = {
        [SIM_EV_WRITE] = "write",     [SIM_EV_WRITE_ENDED] = "ended",
        [SIM_EV_FLUSHED] = "flushed", [SIM_EV_STABLE] = "stable",
        [SIM_EV_CHANGE] = "change",   [SIM_EV_CHANGE_ENDED] = "change ended",
        [SIM_EV_TICK] = "tick"};
    static const char *const changes[] = {
        [SIM_CREATE] = "create", [SIM_SNAPSHOT] = "snapshot",
        [SIM_DELETE] = "delete", [SIM_RENAME] = "rename",
        [SIM_RESIZE] = "resize", [SIM_ROLLBACK] = "roll back",
        [SIM_ATTACH] = "attach", [SIM_PROTECT] = "protect"};
    const struct sim_change *c = &ev->change;

    printf("%6" PRIu64 " %-12s", time, events[ev->kind]);
    switch (ev->kind) {
    case SIM_EV_WRITE:
        printf(" volume %u bytes %" PRIu64 " to %" PRIu64 " value %" PRIx64, ev->slot,
               ev->begin, ev->end, ev->value);
        break;
    case SIM_EV_WRITE_ENDED:
        printf(" volume %u bytes %" PRIu64 " to %" PRIu64 " of %" PRIu64 "%s%s", ev->slot,
               ev->begin, ev->end, ev->id, ev->ok ? "" : " failed",
               ev->fua ? " FUA" : "");
        break;
    case SIM_EV_FLUSHED:
    case SIM_EV_STABLE:
        printf(" volume %u up to %" PRIu64, ev->slot, ev->id);
        break;
    case SIM_EV_CHANGE:
        printf(" %s value %" PRIu64, changes[c->kind], c->value);
        for (unsigned i = 0; i < c->nr; i++)
            printf("; volume %u origin %u name %s", c->slots[i], c->origins[i],
                   c->names[i]);
        break;
    case SIM_EV_CHANGE_ENDED:
        printf(" %u outcome %d", ev->index, (int)ev->outcome);
        break;
    case SIM_EV_TICK:
        break;
    }
    printf("\n");
}

uint64_t
sim_model_apply(struct sim_model *m, const struct sim_event *ev)
{
    if (m->listener)
        m->listener(m->listener_arg, ev);
    m->now++;
    switch (ev->kind) {
    case SIM_EV_WRITE:
        write_begun(m, ev);
        break;
    case SIM_EV_WRITE_ENDED:
        write_ended(m, ev);
        break;
    case SIM_EV_FLUSHED:
        flushed(m, ev);
        break;
    case SIM_EV_STABLE:
        stable(m, ev);
        break;
    case SIM_EV_CHANGE:
        change_begun(m, ev);
        break;
    case SIM_EV_CHANGE_ENDED:
        change_ended(m, ev);
        break;
    case SIM_EV_TICK:
        break;
    }
    return m->now;
}

/* ---- comparing ----------------------------------------------------------------------------- */

bool
sim_model_compare(struct sim_model *m, unsigned slot, const unsigned char *bytes,
                  bool live, uint64_t by, char *why, unsigned why_bytes)
{
    struct sim_volume *v = &m->volumes[slot];
    struct sim_moment *moment =
        v->moment == SIM_SLOT_NONE ? NULL : &m->moments[v->moment];
    struct sim_look look = {
        .by = live ? by : v->flushed, .fua = !live, .made = v->made, .moment = moment};

    if (!sim_extents_allow(&v->x, 0, v->now.size, bytes, &look, why, why_bytes))
        return false;
    if (moment && moment->low >= moment->high) {
        snprintf(why, why_bytes,
                 "it is no point in time: it holds a write submitted at %" PRIu64
                 " and lacks one that had ended at %" PRIu64,
                 moment->low, moment->high);
        return false;
    }
    return true;
}

void
sim_model_fix(struct sim_model *m, unsigned slot, const unsigned char *bytes)
{
    struct sim_volume *v = &m->volumes[slot];

    sim_extents_collapse(&v->x, bytes);
    v->flushed = v->made = 0;
    v->moment = SIM_SLOT_NONE;
}

void
sim_model_seen(struct sim_model *m, unsigned slot, const unsigned char *bytes)
{
    struct sim_volume *v = &m->volumes[slot];

    if (v->moment != SIM_SLOT_NONE)
        sim_extents_seen(&v->x, bytes, v->made);
}
