#include "core/persist/u64_map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/persist/zeroed.h"

#define MAP_CAP_MIN 64u

static uint32_t
home_of(const struct u64_map *map, uint64_t key)
{
    /* Fibonacci hashing; the upper half holds the well mixed bits. */
    return (uint32_t)((key * 0x9E3779B97F4A7C15u) >> 32) & (map->cap - 1);
}

void
u64_map_fini(struct u64_map *map)
{
    free(map->keys);
    zeroed_free(map->values, map->cap * sizeof(*map->values));
    memset(map, 0, sizeof(*map));
}

void
u64_map_clear(struct u64_map *map)
{
    if (map->cap)
        memset(map->values, 0, map->cap * sizeof(*map->values));
    map->nr = 0;
}

int
u64_map_reserve(struct u64_map *map, uint32_t more)
{
    struct u64_map bigger = {0};
    uint64_t wanted = (uint64_t)map->nr + more;

    /* At most two thirds full, so that probes stay short. */
    if (map->cap && wanted * 3 <= (uint64_t)map->cap * 2)
        return 0;

    bigger.cap = map->cap ? map->cap : MAP_CAP_MIN;
    while (wanted * 3 > (uint64_t)bigger.cap * 2) {
        if (bigger.cap > UINT32_MAX / 2)
            return -ENOMEM;
        bigger.cap *= 2;
    }
    bigger.keys = malloc(bigger.cap * sizeof(*bigger.keys));
    bigger.values = zeroed_alloc(bigger.cap * sizeof(*bigger.values));
    if (!bigger.keys || !bigger.values) {
        u64_map_fini(&bigger);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < map->cap; i++)
        if (map->values[i])
            u64_map_set(&bigger, map->keys[i], map->values[i] - 1);
    u64_map_fini(map);
    *map = bigger;
    return 0;
}

bool
u64_map_get(const struct u64_map *map, uint64_t key, uint32_t *ret_value)
{
    if (map->nr == 0)
        return false;
    for (uint32_t i = home_of(map, key); map->values[i]; i = (i + 1) & (map->cap - 1))
        if (map->keys[i] == key) {
            *ret_value = map->values[i] - 1;
            return true;
        }
    return false;
}

void
u64_map_set(struct u64_map *map, uint64_t key, uint32_t value)
{
    uint32_t i;

    THIN_ASSERT(map->nr < map->cap);
    for (i = home_of(map, key); map->values[i]; i = (i + 1) & (map->cap - 1))
        if (map->keys[i] == key) {
            map->values[i] = value + 1;
            return;
        }
    map->keys[i] = key;
    map->values[i] = value + 1;
    map->nr++;
}

void
u64_map_remove(struct u64_map *map, uint64_t key)
{
    uint32_t mask = map->cap - 1, hole, i;

    if (map->nr == 0)
        return;
    for (hole = home_of(map, key); map->values[hole]; hole = (hole + 1) & mask)
        if (map->keys[hole] == key)
            break;
    if (!map->values[hole])
        return;

    /* Pull back what probed across the hole. */
    for (i = (hole + 1) & mask; map->values[i]; i = (i + 1) & mask) {
        uint32_t home = home_of(map, map->keys[i]);

        if (((i - home) & mask) >= ((i - hole) & mask)) {
            map->keys[hole] = map->keys[i];
            map->values[hole] = map->values[i];
            hole = i;
        }
    }
    map->values[hole] = 0;
    map->nr--;
}
