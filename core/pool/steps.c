/*
 * How long steps on the home loop take, by name: a histogram of each, and how many block
 * locks it held at once. Names are literals, so that they are found by their address;
 * what does not fit into the table any more is counted under the last name.
 */
#include <stdio.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/pool/pool_private.h"

const uint64_t pool_step_bounds_ns[POOL_STEP_BUCKETS] = {
    10000, 25000, 50000, 100000, POOL_STEP_NS, 500000, 1000000, UINT64_MAX,
};

static struct pool_step_info *
entry_of(struct pool_steps *steps, const char *name)
{
    struct pool_step_info *entry;

    for (unsigned i = 0; i < steps->nr; i++)
        if (steps->names[i] == name)
            return &steps->entries[i];
    /* The same words may stand at two addresses. */
    for (unsigned i = 0; i < steps->nr; i++)
        if (strcmp(steps->entries[i].name, name) == 0)
            return &steps->entries[i];
    if (steps->nr == POOL_STEPS_MAX)
        return &steps->entries[POOL_STEPS_MAX - 1];
    steps->names[steps->nr] = name;
    entry = &steps->entries[steps->nr++];
    snprintf(entry->name, sizeof(entry->name), "%s",
             steps->nr == POOL_STEPS_MAX ? "others" : name);
    return entry;
}

void
pool_step(struct pool *pool, const char *name, uint64_t began_ns)
{
    struct pool_steps *steps = &pool->steps;
    struct pool_step_info *entry = entry_of(steps, name ? name : "");
    uint64_t took = loop_now_ns(pool->loop) - began_ns;
    unsigned bucket = 0;

    while (took > pool_step_bounds_ns[bucket])
        bucket++;
    entry->buckets[bucket]++;
    entry->count++;
    entry->longest_ns = max_u64(entry->longest_ns, took);
}

void
pool_step_locks(struct pool *pool, const char *name)
{
    struct pool_steps *steps = &pool->steps;
    struct pool_step_info *entry = entry_of(steps, name ? name : "");
    struct bm_stats stats;

    bm_get_stats(pool->bm, &stats);
    bm_reset_high_water(pool->bm);
    if (stats.locks_high_water > entry->locks)
        entry->locks = stats.locks_high_water;
    if (stats.locks_high_water > steps->locks)
        steps->locks = stats.locks_high_water;
}

const struct pool_step_info *
pool_longest_step(const struct pool *pool)
{
    const struct pool_steps *steps = &pool->steps;
    const struct pool_step_info *longest = NULL;

    for (unsigned i = 0; i < steps->nr; i++)
        if (!longest || steps->entries[i].longest_ns > longest->longest_ns)
            longest = &steps->entries[i];
    return longest;
}

unsigned
pool_get_steps(const struct pool *pool, struct pool_step_info *ret_steps, unsigned max)
{
    unsigned nr = pool->steps.nr < max ? pool->steps.nr : max;

    memcpy(ret_steps, pool->steps.entries, nr * sizeof(*ret_steps));
    return nr;
}
