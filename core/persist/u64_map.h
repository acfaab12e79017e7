/*
 * A small open hash from 64-bit keys to 32-bit values, for block numbers. Linear
 * probing, no tombstones. Private to this floor: order of iteration is never used.
 */
#ifndef THIN_CORE_PERSIST_U64_MAP_H
#define THIN_CORE_PERSIST_U64_MAP_H

#include <stdbool.h>
#include <stdint.h>

struct u64_map {
    uint64_t *keys;
    uint32_t *values; /* value + 1; 0 is an empty slot */
    uint32_t nr, cap; /* cap: a power of two, or 0 */
};

/* An empty map is all zeros; fini leaves one. */
void u64_map_fini(struct u64_map *map);
void u64_map_clear(struct u64_map *map);

/* After it, `more` sets of new keys cannot fail. -ENOMEM. */
int u64_map_reserve(struct u64_map *map, uint32_t more);

bool u64_map_get(const struct u64_map *map, uint64_t key, uint32_t *ret_value);

/* Overwrites or adds; room was reserved. `value` is below UINT32_MAX. */
void u64_map_set(struct u64_map *map, uint64_t key, uint32_t value);
void u64_map_remove(struct u64_map *map, uint64_t key);

#endif
