/*
 * A set of numbers below a limit that is walked in order: a bit for each, and above it
 * levels that say which words are not zero. Private to this floor.
 */
#ifndef THIN_CORE_PERSIST_BITSET_H
#define THIN_CORE_PERSIST_BITSET_H

#include <stdbool.h>
#include <stdint.h>

#define BITSET_LEVELS_MAX 7u /* 2^42 bits */

struct bitset {
    uint64_t *level[BITSET_LEVELS_MAX]; /* [0] holds the members */
    uint64_t nr_bits;
    unsigned nr_levels;
};

/* Zero it before the first use. Keeps the members; never shrinks. -ENOMEM. */
int bitset_resize(struct bitset *set, uint64_t nr_bits);
void bitset_fini(struct bitset *set);

static inline bool
bitset_test(const struct bitset *set, uint64_t bit)
{
    return bit < set->nr_bits && (set->level[0][bit / 64] >> (bit % 64) & 1);
}

void bitset_set(struct bitset *set, uint64_t bit);
void bitset_clear(struct bitset *set, uint64_t bit);

/* The first member at or after `from`; false if there is none. */
bool bitset_next(const struct bitset *set, uint64_t from, uint64_t *ret_bit);

#endif
