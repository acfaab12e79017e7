/*
 * The table of count changes that are not merged yet: found by block, and by bitmap in
 * order. Every change is logged, so that an operation can take it back.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/persist/sm_private.h"

#define POOL_FIRST 64u

/* An entry as one word for the log. */
#define STATE_PRESENT (1ull << 33)
#define STATE_FRESH   (1ull << 32)

static uint64_t
state_of(const struct sm_delta *d)
{
    if (!d)
        return 0;
    return STATE_PRESENT | (d->fresh ? STATE_FRESH : 0) | (uint32_t)d->delta;
}

struct sm_delta *
sm_delta_find(const struct space_map *sm, dblock_t b)
{
    uint32_t at;

    return u64_map_get(&sm->delta_at, b, &at) ? &sm->deltas[at] : NULL;
}

/* Room for one entry and one group more, so that put_state cannot fail. */
static int
reserve(struct space_map *sm)
{
    if (sm->free_delta == SM_NONE && sm->used_deltas == sm->cap_deltas) {
        uint32_t cap = sm->cap_deltas ? sm->cap_deltas * 2 : POOL_FIRST;
        struct sm_delta *bigger = realloc(sm->deltas, cap * sizeof(*bigger));

        if (!bigger)
            return -ENOMEM;
        sm->deltas = bigger;
        sm->cap_deltas = cap;
    }
    if (sm->free_group == SM_NONE && sm->used_groups == sm->cap_groups) {
        uint32_t cap = sm->cap_groups ? sm->cap_groups * 2 : POOL_FIRST;
        struct sm_group *bigger = realloc(sm->groups, cap * sizeof(*bigger));

        if (!bigger)
            return -ENOMEM;
        sm->groups = bigger;
        sm->cap_groups = cap;
    }
    if (u64_map_reserve(&sm->delta_at, 1) < 0 || u64_map_reserve(&sm->group_at, 1) < 0)
        return -ENOMEM;
    return 0;
}

static struct sm_group *
group_of(struct space_map *sm, uint64_t k)
{
    uint32_t at = 0;

    if (u64_map_get(&sm->group_at, k, &at))
        return &sm->groups[at];
    at = sm->free_group;
    if (at != SM_NONE)
        sm->free_group = sm->groups[at].first;
    else
        at = sm->used_groups++;
    THIN_ASSERT(at < sm->cap_groups);
    sm->groups[at] = (struct sm_group){.first = SM_NONE};
    u64_map_set(&sm->group_at, k, at);
    bitset_set(&sm->group_set, k);
    sm->nr_groups++;
    return &sm->groups[at];
}

static void
drop_group(struct space_map *sm, uint64_t k, struct sm_group *group)
{
    group->first = sm->free_group;
    sm->free_group = (uint32_t)(group - sm->groups);
    u64_map_remove(&sm->group_at, k);
    bitset_clear(&sm->group_set, k);
    sm->nr_groups--;
}

static struct sm_delta *
add_entry(struct space_map *sm, dblock_t b)
{
    struct sm_group *group = group_of(sm, b / BITMAP_ENTRIES);
    uint32_t at = sm->free_delta;

    if (at != SM_NONE)
        sm->free_delta = sm->deltas[at].next;
    else
        at = sm->used_deltas++;
    THIN_ASSERT(at < sm->cap_deltas);
    THIN_ASSERT(sm->deltas);
    sm->deltas[at] = (struct sm_delta){.block = b, .next = group->first, .prev = SM_NONE};
    if (group->first != SM_NONE)
        sm->deltas[group->first].prev = at;
    group->first = at;
    group->nr++;
    u64_map_set(&sm->delta_at, b, at);
    sm->nr_deltas++;
    return &sm->deltas[at];
}

static void
remove_entry(struct space_map *sm, struct sm_delta *d)
{
    struct sm_group *group = group_of(sm, d->block / BITMAP_ENTRIES);

    if (d->next != SM_NONE)
        sm->deltas[d->next].prev = d->prev;
    if (d->prev != SM_NONE)
        sm->deltas[d->prev].next = d->next;
    else
        group->first = d->next;
    if (--group->nr == 0)
        drop_group(sm, d->block / BITMAP_ENTRIES, group);
    u64_map_remove(&sm->delta_at, d->block);
    d->next = sm->free_delta;
    sm->free_delta = (uint32_t)(d - sm->deltas);
    sm->nr_deltas--;
}

/* `by` is 1 or -1. */
static void
count_entry(struct space_map *sm, const struct sm_delta *d, uint32_t by)
{
    if (d->fresh && d->delta > 0)
        sm->nr_fresh += by;
    if (d->delta < 0)
        sm->nr_down += by;
    else if (!d->fresh || d->delta >= (int32_t)BITMAP_COUNT_OVERFLOW)
        sm->nr_up += by;
}

/* `d`: the block's entry, or NULL if it has none. */
static void
put_state(struct space_map *sm, dblock_t b, struct sm_delta *d, uint64_t state)
{
    if (d)
        count_entry(sm, d, UINT32_MAX);
    if (!(state & STATE_PRESENT)) {
        if (d)
            remove_entry(sm, d);
        return;
    }
    if (!d)
        d = add_entry(sm, b);
    d->delta = (int32_t)(uint32_t)state;
    d->fresh = state & STATE_FRESH;
    count_entry(sm, d, 1);
}

static void
undo_delta(void *arg, uint64_t b, uint64_t state)
{
    struct space_map *sm = arg;

    put_state(sm, b, sm_delta_find(sm, b), state);
}

static int
change_state(struct space_map *sm, dblock_t b, struct sm_delta *d, uint64_t state,
             struct thin_error *err)
{
    int r;

    if (!d && sm->nr_deltas >= SM_DELTAS_MAX)
        return thin_fail(err, -THIN_E_NEED_COMMIT,
                         "counts of %u data blocks changed since the last commit",
                         SM_DELTAS_MAX);
    r = d ? 0 : reserve(sm);
    if (r == 0)
        r = tm_op_on_undo(sm->tm, undo_delta, sm, b, state_of(d));
    if (r < 0)
        return thin_fail_code(err, r, "count of data block %" PRIu64, b);
    put_state(sm, b, d, state);
    return 0;
}

int
sm_delta_add(struct space_map *sm, dblock_t b, int change, struct thin_error *err)
{
    struct sm_delta *d = sm_delta_find(sm, b);
    struct sm_delta next = {.delta = change};

    if (sm_is_parked(sm, b))
        return 0;
    if (d) {
        if (__builtin_add_overflow(d->delta, change, &next.delta))
            return thin_fail_code(err, -THIN_E_LIMIT, "count of data block %" PRIu64, b);
        next.fresh = d->fresh;
    }
    if (next.fresh && next.delta < 0)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "count of data block %" PRIu64 " falls below 0", b);
    if (d && next.delta == 0 && !next.fresh)
        return change_state(sm, b, d, 0, err);
    return change_state(sm, b, d, state_of(&next), err);
}

int
sm_delta_alloc(struct space_map *sm, dblock_t b, struct thin_error *err)
{
    struct sm_delta next = {.delta = 1, .fresh = true};

    THIN_ASSERT(!sm_delta_find(sm, b));
    return change_state(sm, b, NULL, state_of(&next), err);
}

int
sm_delta_remove(struct space_map *sm, dblock_t b, struct thin_error *err)
{
    return change_state(sm, b, sm_delta_find(sm, b), 0, err);
}

int
sm_deltas_prepare(struct space_map *sm, uint64_t nr_blocks)
{
    uint32_t nr = (uint32_t)min_u64(nr_blocks, SM_DELTAS_MAX);
    uint32_t nr_groups = (uint32_t)min_u64(nr, div_up_u64(nr_blocks, BITMAP_ENTRIES));

    if (nr == 0)
        return 0;
    sm->deltas = malloc(nr * sizeof(*sm->deltas));
    sm->groups = malloc(nr_groups * sizeof(*sm->groups));
    if (!sm->deltas || !sm->groups)
        return -ENOMEM;
    sm->cap_deltas = nr;
    sm->cap_groups = nr_groups;
    if (u64_map_reserve(&sm->delta_at, nr) < 0 ||
        u64_map_reserve(&sm->group_at, nr_groups) < 0)
        return -ENOMEM;
    return 0;
}

void
sm_deltas_fini(struct space_map *sm)
{
    u64_map_fini(&sm->delta_at);
    u64_map_fini(&sm->group_at);
    bitset_fini(&sm->group_set);
    free(sm->deltas);
    free(sm->groups);
}
