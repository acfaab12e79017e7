/*
 * Clean frames in the metadata caches of tests (bm_params.nr_clean). With
 * THIN_TEST_SMALLEST_CACHE as few as the engine promises to work with: one more than
 * block locks can be held at once.
 */
#ifndef THIN_TESTS_LIB_TEST_CACHE_H
#define THIN_TESTS_LIB_TEST_CACHE_H

#include <stdlib.h>

#include "core/persist/block_manager.h"

static inline uint32_t
test_cache_clean(void)
{
    return getenv("THIN_TEST_SMALLEST_CACHE") ? BM_CLEAN_MIN : 0;
}

/* The marks of a whole test: what was measured is never above what the source allows. */
#define test_locks_within_bound(high_water)            \
    do {                                               \
        ck_assert_uint_gt((high_water), 0);            \
        ck_assert_uint_le((high_water), BM_LOCKS_MAX); \
    } while (0)

#endif
