/*
 * A seeded generator (xoshiro256**, Blackman and Vigna): same seed, same numbers,
 * on every machine. Not for secrets: those come from random_secret.
 */
#ifndef THIN_CORE_BASE_RANDOM_H
#define THIN_CORE_BASE_RANDOM_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"

struct thin_random {
    uint64_t state[4];
};

void random_seed(struct thin_random *rng, uint64_t seed);
uint64_t random_u64(struct thin_random *rng);

/* Even over 0 .. n - 1; n > 0. */
uint64_t random_below(struct thin_random *rng, uint64_t n);

/* From the kernel's generator; fails with -errno. */
MUST_CHECK int random_secret(void *bytes, size_t len_bytes);

#endif
