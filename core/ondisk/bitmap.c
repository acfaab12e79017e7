#include "core/ondisk/bitmap.h"

#define WORD_ENTRIES 32u

static uint32_t
round_down_entry(uint32_t e)
{
    return e - e % WORD_ENTRIES;
}

/* One bit (the lower of each pair) for every entry of the word that is not 0. */
static uint64_t
used_bits(const void *block, uint32_t word)
{
    uint64_t w =
        load_le64((const uint8_t *)block + BITMAP_HEADER_BYTES + 8 * (size_t)word);

    return (w | w >> 1) & 0x5555555555555555u;
}

/* How many of a byte's four even bits are set, in each byte. By hand: a processor's own
   instruction cannot be taken for granted, and the compiler's table is slower. */
static uint64_t
count_in_bytes(uint64_t even_bits)
{
    even_bits =
        (even_bits & 0x3333333333333333u) + (even_bits >> 2 & 0x3333333333333333u);
    return (even_bits + (even_bits >> 4)) & 0x0f0f0f0f0f0f0f0fu;
}

static uint64_t
sum_bytes(uint64_t bytes)
{
    return bytes * 0x0101010101010101u >> 56;
}

uint32_t
bitmap_find_free(const void *block, uint32_t begin, uint32_t end)
{
    uint32_t e = begin;

    while (e < end) {
        uint64_t used = used_bits(block, e / WORD_ENTRIES);
        uint64_t before = (1ull << (2 * (e % WORD_ENTRIES))) - 1;
        uint64_t free_bits = ~used & 0x5555555555555555u & ~before;

        if (free_bits) {
            e = round_down_entry(e) + (uint32_t)__builtin_ctzll(free_bits) / 2;
            return e < end ? e : end;
        }
        e = round_down_entry(e) + WORD_ENTRIES;
    }
    return end;
}

uint32_t
bitmap_count_overflows(const void *block)
{
    uint32_t nr = 0;

    for (uint32_t w = 0; w < BITMAP_ENTRIES / WORD_ENTRIES; w++) {
        uint64_t bits =
            load_le64((const uint8_t *)block + BITMAP_HEADER_BYTES + 8ull * w);

        nr += (uint32_t)__builtin_popcountll(bits & bits >> 1 & 0x5555555555555555u);
    }
    return nr;
}

uint32_t
bitmap_count_free(const void *block, uint32_t end)
{
    uint64_t used = 0;
    uint32_t whole = end / WORD_ENTRIES;

    for (uint32_t w = 0; w < whole; w++)
        used += sum_bytes(count_in_bytes(used_bits(block, w)));
    if (end % WORD_ENTRIES)
        used += sum_bytes(count_in_bytes(used_bits(block, whole) &
                                         ((1ull << (2 * (end % WORD_ENTRIES))) - 1)));
    return end - (uint32_t)used;
}
