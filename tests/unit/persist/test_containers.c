/* The hash and the ordered set below this floor, against plain arrays. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/random.h"
#include "core/persist/bitset.h"
#include "core/persist/u64_map.h"

#define KEYS 400u

START_TEST(map_holds_what_was_set_and_not_removed)
{
    static uint32_t model[KEYS]; /* value + 1 */
    struct u64_map map = {0};
    struct thin_random rng;
    uint32_t nr = 0, value;

    random_seed(&rng, 7);
    for (unsigned n = 0; n < 100000; n++) {
        uint32_t i = (uint32_t)random_below(&rng, KEYS);
        uint64_t key = (uint64_t)i * 0x10000001u; /* many share low bits */

        switch (random_below(&rng, 3)) {
        case 0:
            ck_assert_int_eq(u64_map_reserve(&map, 1), 0);
            nr += model[i] == 0;
            u64_map_set(&map, key, n);
            model[i] = n + 1;
            break;
        case 1:
            nr -= model[i] != 0;
            u64_map_remove(&map, key);
            model[i] = 0;
            break;
        default:
            if (u64_map_get(&map, key, &value) != (model[i] != 0) ||
                (model[i] && value + 1 != model[i]))
                ck_abort_msg("key %u", i);
        }
        if (map.nr != nr)
            ck_abort_msg("%u entries, should be %u", map.nr, nr);
    }
    u64_map_fini(&map);
}
END_TEST

START_TEST(set_is_walked_in_order)
{
    uint64_t sizes[] = {1, 63, 64, 65, 4096, 4097, 300000};
    uint64_t size = sizes[_i], bit;
    struct bitset set = {0};
    struct thin_random rng;
    uint8_t *model = calloc(size * 2, 1);

    ck_assert_ptr_nonnull(model);
    random_seed(&rng, 8);
    ck_assert_int_eq(bitset_resize(&set, size), 0);
    for (unsigned n = 0; n < 2000; n++) {
        bit = random_below(&rng, size);
        if (random_below(&rng, 3)) {
            bitset_set(&set, bit);
            model[bit] = 1;
        } else {
            bitset_clear(&set, bit);
            model[bit] = 0;
        }
        if (n == 1000) {
            ck_assert_int_eq(bitset_resize(&set, size * 2), 0);
            size *= 2;
        }
    }
    bit = 0;
    for (uint64_t i = 0; i < size; i++) {
        if (bitset_test(&set, i) != model[i])
            ck_abort_msg("bit %u", (unsigned)i);
        if (model[i]) {
            uint64_t found = 0;

            if (!bitset_next(&set, bit, &found) || found != i)
                ck_abort_msg("after %u comes %u", (unsigned)bit, (unsigned)found);
            bit = i + 1;
        }
    }
    ck_assert(!bitset_next(&set, bit, &bit));
    bitset_fini(&set);
    free(model);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("containers");
    TCase *tc = tcase_create("all");
    SRunner *sr;
    int failed;

    tcase_add_test(tc, map_holds_what_was_set_and_not_removed);
    tcase_add_loop_test(tc, set_is_walked_in_order, 0, 7);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
