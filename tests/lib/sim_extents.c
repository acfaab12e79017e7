#include "tests/lib/sim_extents.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/device/device.h"
#include "core/ondisk/block.h"

#define VALUE_SHIFT 16

static uint64_t
pattern(uint64_t value, uint64_t at)
{
    return value ? value << VALUE_SHIFT | (at / SECTOR_SIZE & 0xffff) : 0;
}

void
sim_fill(unsigned char *bytes, uint64_t begin, uint64_t len, uint64_t value)
{
    for (uint64_t at = 0; at < len; at += 8) {
        uint64_t word = pattern(value, begin + at);

        memcpy(bytes + at, &word, 8);
    }
}

/* ---- the list ---------------------------------------------------------------------------- */

static void
reserve(struct sim_extents *x, unsigned nr)
{
    if (nr <= x->room)
        return;
    x->room = nr + nr / 2 + 8;
    x->e = realloc(x->e, x->room * sizeof(*x->e));
    THIN_ASSERT(x->e);
}

void
sim_extents_init(struct sim_extents *x, uint64_t size, uint64_t origin)
{
    memset(x, 0, sizeof(*x));
    x->origin = origin;
    sim_extents_resize(x, size);
}

void
sim_extents_fini(struct sim_extents *x)
{
    free(x->e);
    memset(x, 0, sizeof(*x));
}

void
sim_extents_copy(struct sim_extents *to, const struct sim_extents *from)
{
    reserve(to, from->nr);
    if (from->nr)
        memcpy(to->e, from->e, from->nr * sizeof(*from->e));
    to->nr = from->nr;
    to->size = from->size;
    to->origin = from->origin;
}

/* The extent that holds `at`, or x->nr. */
static unsigned
find(const struct sim_extents *x, uint64_t at)
{
    unsigned lo = 0, hi = x->nr;

    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;

        if (x->e[mid].end > at)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

/* An extent begins at `at`; its index. */
static unsigned
split(struct sim_extents *x, uint64_t at)
{
    unsigned i = find(x, at);

    if (i == x->nr || x->e[i].begin == at)
        return i;
    reserve(x, x->nr + 1);
    memmove(&x->e[i + 1], &x->e[i], (x->nr - i) * sizeof(*x->e));
    x->nr++;
    x->e[i].end = at;
    x->e[i + 1].begin = at;
    return i + 1;
}

static void
add_new(struct sim_extents *x, uint64_t size, uint64_t value)
{
    struct sim_extent *e;

    if (size <= x->size)
        return;
    reserve(x, x->nr + 1);
    e = &x->e[x->nr++];
    memset(e, 0, sizeof(*e));
    e->begin = x->size;
    e->end = size;
    e->nr = 1;
    e->c[0].value = value;
    e->c[0].ok = true;
    x->size = size;
}

void
sim_extents_resize(struct sim_extents *x, uint64_t size)
{
    if (size < x->size) {
        x->nr = split(x, size);
        x->size = size;
        x->origin = min_u64(x->origin, size);
    }
    if (x->size < min_u64(size, x->origin) && x->size % SIM_BLOCK > 0) {
        struct sim_extent *e;

        add_new(x, min_u64(min_u64(size, x->origin), round_up_u64(x->size, SIM_BLOCK)),
                SIM_ORIGIN);
        e = &x->e[x->nr - 1];
        e->c[0].ok = false; /* neither hides the other */
        e->c[e->nr++] = (struct sim_candidate){.value = 0};
    }
    add_new(x, min_u64(size, x->origin), SIM_ORIGIN);
    add_new(x, size, 0);
}

/* ---- writes ------------------------------------------------------------------------------ */

bool
sim_extents_have_room(const struct sim_extents *x, uint64_t begin, uint64_t end)
{
    for (unsigned i = find(x, begin); i < x->nr && x->e[i].begin < end; i++)
        if (x->e[i].nr == SIM_CANDIDATES)
            return false;
    return true;
}

void
sim_extents_add(struct sim_extents *x, uint64_t begin, uint64_t end, uint64_t value,
                uint64_t submitted)
{
    unsigned i = split(x, begin);

    split(x, end);
    for (; i < x->nr && x->e[i].begin < end; i++) {
        struct sim_extent *e = &x->e[i];

        THIN_ASSERT(e->nr < SIM_CANDIDATES);
        e->c[e->nr++] = (struct sim_candidate){
            .value = value, .submitted = submitted, .ended = SIM_NEVER};
    }
}

void
sim_extents_end(struct sim_extents *x, uint64_t begin, uint64_t end, uint64_t submitted,
                uint64_t at, bool ok, bool durable)
{
    unsigned i = split(x, begin);

    split(x, end);
    for (; i < x->nr && x->e[i].begin < end; i++) {
        struct sim_extent *e = &x->e[i];

        for (unsigned k = 0; k < e->nr; k++) {
            if (e->c[k].submitted != submitted || submitted == 0)
                continue;
            e->c[k].ended = at;
            e->c[k].ok = ok;
            e->c[k].durable = ok && durable;
        }
    }
}

/* The newest write that hides others, 0: none. */
static uint64_t
hides_from(const struct sim_extent *e, uint64_t by, bool fua, uint64_t made)
{
    uint64_t newest = 0;

    for (unsigned k = 0; k < e->nr; k++)
        if (e->c[k].ok && e->c[k].submitted > made &&
            (e->c[k].ended <= by || (fua && e->c[k].durable)))
            newest = max_u64(newest, e->c[k].submitted);
    return newest;
}

static bool
is_hidden(const struct sim_candidate *c, uint64_t newest)
{
    return c->ended <= newest && c->submitted != newest;
}

void
sim_extents_prune(struct sim_extents *x, uint64_t by, bool fua, uint64_t made)
{
    for (unsigned i = 0; i < x->nr; i++) {
        struct sim_extent *e = &x->e[i];
        uint64_t newest;
        unsigned kept = 0;

        if (e->nr == 1)
            continue;
        newest = hides_from(e, by, fua, made);
        for (unsigned k = 0; k < e->nr; k++)
            if (!is_hidden(&e->c[k], newest))
                e->c[kept++] = e->c[k];
        e->nr = kept;
    }
}

void
sim_extents_settle(struct sim_extents *x, uint64_t at)
{
    for (unsigned i = 0; i < x->nr; i++)
        for (unsigned k = 0; k < x->e[i].nr; k++)
            x->e[i].c[k].ended = min_u64(x->e[i].c[k].ended, at);
}

void
sim_extents_taken(struct sim_extents *x, uint64_t made)
{
    for (unsigned i = 0; i < x->nr; i++)
        for (unsigned k = 0; k < x->e[i].nr; k++)
            if (x->e[i].c[k].submitted <= made)
                x->e[i].c[k] = (struct sim_candidate){.value = x->e[i].c[k].value};
}

/* ---- looking ------------------------------------------------------------------------------- */

static uint64_t
word_at(const unsigned char *bytes)
{
    uint64_t word;

    memcpy(&word, bytes, 8);
    return word;
}

/* True: one pattern from end to end. *ret_value is its write. */
static bool
piece_value(const unsigned char *bytes, uint64_t at, uint64_t len, uint64_t *ret_value)
{
    uint64_t word = bytes ? word_at(bytes) : 0;

    if (bytes && len > 8 && memcmp(bytes, bytes + 8, len - 8) != 0)
        return false;
    *ret_value = word >> VALUE_SHIFT;
    return word == pattern(*ret_value, at);
}

static void
tell(const struct sim_extent *e, uint64_t at, uint64_t end, const unsigned char *bytes,
     char *why, unsigned why_bytes)
{
    int n = snprintf(why, why_bytes,
                     "bytes %" PRIu64 " to %" PRIu64 " (sector %" PRIu64
                     ") begin with %" PRIx64 ", allowed are writes",
                     at, end, at / SECTOR_SIZE, bytes ? word_at(bytes) : 0);

    for (unsigned k = 0; k < e->nr && n > 0 && (unsigned)n < why_bytes; k++)
        n += snprintf(why + n, why_bytes - (unsigned)n,
                      " %" PRIx64 "[%" PRIu64 "-%" PRIu64 "%s%s]", e->c[k].value,
                      e->c[k].submitted, e->c[k].ended == SIM_NEVER ? 0 : e->c[k].ended,
                      e->c[k].ok ? "" : " not ok", e->c[k].durable ? " FUA" : "");
}

/* What the moment of a snapshot must have been, if this piece holds `value`. */
static void
narrow(const struct sim_extent *e, uint64_t value, uint64_t newest,
       const struct sim_look *look)
{
    uint64_t first = SIM_NEVER, last_end = 0;

    for (unsigned k = 0; k < e->nr; k++) {
        const struct sim_candidate *c = &e->c[k];

        if (c->value != value || is_hidden(c, newest))
            continue;
        if (c->submitted > look->made)
            return; /* its own write */
        first = min_u64(first, c->submitted);
        last_end = max_u64(last_end, c->ended);
    }
    look->moment->low = max_u64(look->moment->low, first);
    for (unsigned k = 0; k < e->nr; k++) {
        const struct sim_candidate *c = &e->c[k];

        if (c->ok && c->submitted <= look->made && c->value != value &&
            c->submitted >= last_end)
            look->moment->high = min_u64(look->moment->high, c->ended);
    }
}

static bool
value_allowed(const struct sim_extent *e, uint64_t value, uint64_t newest)
{
    for (unsigned k = 0; k < e->nr; k++)
        if (e->c[k].value == value && !is_hidden(&e->c[k], newest))
            return true;
    return false;
}

bool
sim_extents_allow(const struct sim_extents *x, uint64_t begin, uint64_t end,
                  const unsigned char *bytes, const struct sim_look *look, char *why,
                  unsigned why_bytes)
{
    for (unsigned i = find(x, begin); i < x->nr && x->e[i].begin < end; i++) {
        const struct sim_extent *e = &x->e[i];
        uint64_t newest = hides_from(e, look->by, look->fua, look->made);
        uint64_t at = max_u64(begin, e->begin), to = min_u64(end, e->end),
                 last = SIM_NEVER;

        while (at < to) {
            uint64_t next = min_u64(to, round_down_u64(at, SECTOR_SIZE) + SECTOR_SIZE);
            const unsigned char *here = bytes ? bytes + (at - begin) : NULL;
            uint64_t value;

            if (!here)
                next = to;
            if (!piece_value(here, at, next - at, &value) ||
                (value != last && !value_allowed(e, value, newest))) {
                tell(e, at, next, here, why, why_bytes);
                return false;
            }
            if (look->moment && value != last)
                narrow(e, value, newest, look);
            last = value;
            at = next;
        }
    }
    return true;
}

/* ---- knowing ------------------------------------------------------------------------------- */

static bool
same_candidates(const struct sim_extent *a, const struct sim_extent *b)
{
    if (a->nr != b->nr)
        return false;
    for (unsigned k = 0; k < a->nr; k++)
        if (a->c[k].submitted != b->c[k].submitted || a->c[k].value != b->c[k].value ||
            a->c[k].ended != b->c[k].ended || a->c[k].ok != b->c[k].ok ||
            a->c[k].durable != b->c[k].durable)
            return false;
    return true;
}

static void
append(struct sim_extents *x, const struct sim_extent *e)
{
    struct sim_extent *last = x->nr ? &x->e[x->nr - 1] : NULL;

    if (last && same_candidates(last, e)) {
        last->end = e->end;
        return;
    }
    reserve(x, x->nr + 1);
    x->e[x->nr++] = *e;
}

/* Cuts `from` into runs of one value; `each` makes of one what is to stand in `to`. */
static void
rebuild(struct sim_extents *x, const unsigned char *bytes,
        void (*each)(struct sim_extent *e, uint64_t value, uint64_t made), uint64_t made)
{
    struct sim_extents to = {0};

    reserve(&to, x->nr);
    for (unsigned i = 0; i < x->nr; i++) {
        for (uint64_t at = x->e[i].begin; at < x->e[i].end;) {
            uint64_t next =
                min_u64(x->e[i].end, round_down_u64(at, SECTOR_SIZE) + SECTOR_SIZE);
            struct sim_extent e = x->e[i];

            e.begin = at;
            e.end = next;
            each(&e, word_at(bytes + at) >> VALUE_SHIFT, made);
            append(&to, &e);
            at = next;
        }
    }
    to.size = x->size;
    to.origin = x->origin;
    free(x->e);
    *x = to;
}

static void
collapse_one(struct sim_extent *e, uint64_t value, uint64_t made)
{
    (void)made;
    e->nr = 1;
    e->c[0] = (struct sim_candidate){.value = value, .ok = true};
}

void
sim_extents_collapse(struct sim_extents *x, const unsigned char *bytes)
{
    rebuild(x, bytes, collapse_one, 0);
}

static void
see_one(struct sim_extent *e, uint64_t value, uint64_t made)
{
    unsigned kept = 0;

    for (unsigned k = 0; k < e->nr; k++)
        if (e->c[k].submitted > made)
            return;
    for (unsigned k = 0; k < e->nr; k++)
        if (e->c[k].value == value)
            e->c[kept++] = e->c[k];
    e->nr = kept;
}

void
sim_extents_seen(struct sim_extents *x, const unsigned char *bytes, uint64_t made)
{
    rebuild(x, bytes, see_one, made);
}
