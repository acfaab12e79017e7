#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/output.h"

static void
check_size(uint64_t bytes, const char *wanted)
{
    char word[OUTPUT_WORD];

    ck_assert_str_eq(output_size(word, bytes), wanted);
}

START_TEST(sizes_are_short_and_rounded_to_the_nearest_tenth)
{
    check_size(0, "0B");
    check_size(1023, "1023B");
    check_size(1024, "1K");
    check_size(1536, "1.5K");
    check_size(65536, "64K");
    check_size((10ull << 30), "10G");
    check_size((1ull << 30) + (100ull << 20), "1.1G");
    check_size((1ull << 20) - 1, "1M");
    check_size((1ull << 30) - 1, "1G");
    check_size(1ull << 60, "1E");
    check_size(UINT64_MAX, "16E");
    check_size((1ull << 40) + 1, "1T");
}
END_TEST

START_TEST(every_size_has_at_most_one_decimal_and_a_unit)
{
    for (unsigned shift = 0; shift < 64; shift++)
        for (int d = -1; d <= 1; d++) {
            char word[OUTPUT_WORD];
            const char *dot;

            output_size(word, (1ull << shift) + (uint64_t)d);
            dot = strchr(word, '.');
            ck_assert_ptr_nonnull(strchr("BKMGTPE", word[strlen(word) - 1]));
            ck_assert_msg(!dot || strlen(dot) == 3, "%s", word);
            ck_assert_uint_le(strlen(word), 7);
        }
}
END_TEST

START_TEST(shares_and_times_of_nothing_are_a_dash)
{
    char word[OUTPUT_WORD];

    ck_assert_str_eq(output_percent(word, 0, 0), "-");
    ck_assert_str_eq(output_percent(word, 1, 4), "25.0%");
    ck_assert_str_eq(output_time(word, 0), "-");
    ck_assert_int_eq(setenv("TZ", "UTC", 1), 0);
    ck_assert_str_eq(output_time(word, 86400), "1970-01-02 00:00:00");
    ck_assert_str_eq(output_time(word, UINT64_MAX / 2), "-");
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("output");
    TCase *tc = tcase_create("output");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_test(tc, sizes_are_short_and_rounded_to_the_nearest_tenth);
    tcase_add_test(tc, every_size_has_at_most_one_decimal_and_a_unit);
    tcase_add_test(tc, shares_and_times_of_nothing_are_a_dash);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
