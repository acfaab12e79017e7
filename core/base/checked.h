/* Overflow-checked arithmetic for sizes that came from outside, and rounding. */
#ifndef THIN_CORE_BASE_CHECKED_H
#define THIN_CORE_BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

#define SECTOR_SHIFT 9
#define SECTOR_SIZE  512u

/* True and *ret set if the result fits. */
static inline bool
checked_add_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    return !__builtin_add_overflow(a, b, ret);
}

static inline bool
checked_mul_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    return !__builtin_mul_overflow(a, b, ret);
}

/* True if [offset, offset + len) lies inside [0, size). */
static inline bool
range_inside(uint64_t offset, uint64_t len, uint64_t size)
{
    return offset <= size && len <= size - offset;
}

static inline uint64_t
div_up_u64(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

/* `unit` need not be a power of two. */
static inline uint64_t
round_down_u64(uint64_t a, uint64_t unit)
{
    return a - a % unit;
}

/* The caller knows that the result fits. */
static inline uint64_t
round_up_u64(uint64_t a, uint64_t unit)
{
    return div_up_u64(a, unit) * unit;
}

static inline uint64_t
min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t
max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

#endif
