#include "core/persist/bitset.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/persist/zeroed.h"

void
bitset_fini(struct bitset *set)
{
    uint64_t words = set->nr_bits ? set->nr_bits : 1;

    for (unsigned l = 0; l < BITSET_LEVELS_MAX; l++) {
        words = div_up_u64(words, 64);
        zeroed_free(set->level[l], words * sizeof(uint64_t));
    }
    memset(set, 0, sizeof(*set));
}

int
bitset_resize(struct bitset *set, uint64_t nr_bits)
{
    struct bitset bigger = {0};
    uint64_t bits = nr_bits ? nr_bits : 1, bit;

    if (set->nr_levels && nr_bits <= set->nr_bits)
        return 0;

    bigger.nr_bits = nr_bits;
    do {
        uint64_t words = div_up_u64(bits, 64);

        THIN_ASSERT(bigger.nr_levels < BITSET_LEVELS_MAX);
        bigger.level[bigger.nr_levels] = zeroed_alloc(words * sizeof(uint64_t));
        if (!bigger.level[bigger.nr_levels++]) {
            bitset_fini(&bigger);
            return -ENOMEM;
        }
        bits = words;
    } while (bits > 1);

    for (bit = 0; bitset_next(set, bit, &bit); bit++)
        bitset_set(&bigger, bit);
    bitset_fini(set);
    *set = bigger;
    return 0;
}

void
bitset_set(struct bitset *set, uint64_t bit)
{
    THIN_ASSERT(bit < set->nr_bits);
    for (unsigned l = 0; l < set->nr_levels; l++) {
        uint64_t *word = &set->level[l][bit / 64];
        uint64_t before = *word;

        *word |= 1ull << (bit % 64);
        if (before)
            return;
        bit /= 64;
    }
}

void
bitset_clear(struct bitset *set, uint64_t bit)
{
    THIN_ASSERT(bit < set->nr_bits);
    for (unsigned l = 0; l < set->nr_levels; l++) {
        uint64_t *word = &set->level[l][bit / 64];

        *word &= ~(1ull << (bit % 64));
        if (*word)
            return;
        bit /= 64;
    }
}

bool
bitset_next(const struct bitset *set, uint64_t from, uint64_t *ret_bit)
{
    unsigned l = 0;

    if (from >= set->nr_bits)
        return false;

    /* Up until some word holds a bit at or after the place, ... */
    for (uint64_t limit = set->nr_bits;;) {
        uint64_t word = 0;

        if (from < limit)
            word = set->level[l][from / 64] & ~0ull << (from % 64);
        if (word) {
            from = round_down_u64(from, 64) + (unsigned)__builtin_ctzll(word);
            break;
        }
        if (++l >= set->nr_levels)
            return false;
        from = from / 64 + 1;
        limit = div_up_u64(limit, 64);
    }
    /* ... then down to the lowest below it. */
    while (l > 0) {
        l--;
        from = from * 64 + (unsigned)__builtin_ctzll(set->level[l][from]);
    }
    *ret_bit = from;
    return true;
}
