#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/name.h"
#include "core/base/random.h"

static struct thin_error err;

static int
check(const char *name)
{
    thin_error_init(&err);
    return name_check(name, strlen(name), &err);
}

START_TEST(names_are_made_of_the_alphabet)
{
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-";

    for (unsigned c = 0; c < 256; c++) {
        char name[3] = {'v', (char)c, 'x'};
        int wanted = c && strchr(alphabet, (int)c) ? 0 : -THIN_E_INVALID;

        ck_assert_int_eq(name_check(name, 3, &err), wanted);
    }
    ck_assert_int_eq(check("vm-disk_1.raw+old"), 0);
}
END_TEST

START_TEST(names_begin_with_a_letter_or_digit)
{
    ck_assert_int_eq(check("a"), 0);
    ck_assert_int_eq(check("Z"), 0);
    ck_assert_int_eq(check("0"), 0);
    for (const char *c = "._+-"; *c; c++) {
        char name[3] = {*c, 'a', '\0'};

        ck_assert_int_eq(check(name), -THIN_E_INVALID);
    }
    ck_assert_int_eq(check(".."), -THIN_E_INVALID);
    ck_assert_int_eq(check(""), -THIN_E_INVALID);
}
END_TEST

START_TEST(names_have_at_most_127_bytes)
{
    char name[130];

    memset(name, 'n', sizeof(name));
    ck_assert_int_eq(name_check(name, 127, &err), 0);
    ck_assert_int_eq(name_check(name, 128, &err), -THIN_E_INVALID);
    ck_assert_ptr_nonnull(strstr(err.text, "128"));
    ck_assert_ptr_nonnull(strstr(err.text, "127"));
}
END_TEST

START_TEST(a_bad_name_is_named_harmlessly)
{
    ck_assert_int_eq(check("a\nb"), -THIN_E_INVALID);
    ck_assert_ptr_nonnull(strstr(err.text, "\"a\\x0ab\""));
    ck_assert_ptr_null(strchr(err.text, '\n'));
}
END_TEST

static uint64_t
size_of(const char *text)
{
    uint64_t bytes = 0;

    thin_error_init(&err);
    ck_assert_msg(size_parse(text, &bytes, &err) == 0, "%s: %s", text, err.text);
    return bytes;
}

START_TEST(sizes_are_powers_of_1024)
{
    ck_assert_uint_eq(size_of("512"), 512);
    ck_assert_uint_eq(size_of("64k"), 65536);
    ck_assert_uint_eq(size_of("64K"), 65536);
    ck_assert_uint_eq(size_of("1m"), 1u << 20);
    ck_assert_uint_eq(size_of("10G"), 10ull << 30);
    ck_assert_uint_eq(size_of("1T"), 1ull << 40);
    ck_assert_uint_eq(size_of("3p"), 3ull << 50);
    ck_assert_uint_eq(size_of("16383P"), 16383ull << 50);
    ck_assert_uint_eq(size_of("18446744073709551104"), 18446744073709551104u);
}
END_TEST

START_TEST(bad_sizes_are_refused_and_named)
{
    static const char *const texts[] = {"",
                                        "0",
                                        "0k",
                                        "1",
                                        "511",
                                        "513",
                                        "-512",
                                        "+512",
                                        " 512",
                                        "512 ",
                                        "1.5G",
                                        "64kB",
                                        "64KiB",
                                        "k",
                                        "64x",
                                        "64kk",
                                        "0x200",
                                        "16384P",
                                        "18446744073709551616",
                                        "18446744073709551615",
                                        "99999999999999999999999G"};

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        uint64_t bytes = 77;
        char words[64];

        thin_error_init(&err);
        ck_assert_msg(size_parse(texts[i], &bytes, &err) == -THIN_E_INVALID, "%s",
                      texts[i]);
        ck_assert_uint_eq(bytes, 77);
        snprintf(words, sizeof(words), "\"%s\"", texts[i]);
        ck_assert_ptr_nonnull(strstr(err.text, words));
    }
}
END_TEST

START_TEST(durations_have_units)
{
    static const struct {
        const char *text;
        uint64_t ms;
    } good[] = {{"250ms", 250},  {"5s", 5000}, {"2m", 120000},
                {"1h", 3600000}, {"7", 7000},  {"0", 0},
                {"0s", 0},       {"0ms", 0},   {"18446744073709551615ms", UINT64_MAX}};
    static const char *const wrong[] = {"",
                                        "s",
                                        "ms",
                                        "-1s",
                                        "1.5s",
                                        "5 s",
                                        "5S",
                                        "1d",
                                        "1hh",
                                        " 1s",
                                        "1s ",
                                        "18446744073709551615",
                                        "18446744073709551616ms",
                                        "5124095576030432h"};
    uint64_t ms;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        ms = 1;
        ck_assert_int_eq(duration_parse_ms(good[i].text, &ms, &err), 0);
        ck_assert_uint_eq(ms, good[i].ms);
    }
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        ms = 77;
        ck_assert_msg(duration_parse_ms(wrong[i], &ms, &err) == -THIN_E_INVALID, "%s",
                      wrong[i]);
        ck_assert_uint_eq(ms, 77);
    }
}
END_TEST

START_TEST(globs_match_whole_texts)
{
    ck_assert(glob_match("tank", "tank"));
    ck_assert(!glob_match("tank", "tank2"));
    ck_assert(!glob_match("tank", "tan"));
    ck_assert(!glob_match("tank", ""));
    ck_assert(glob_match("", ""));
    ck_assert(!glob_match("", "a"));
    ck_assert(glob_match("t?nk", "tank"));
    ck_assert(!glob_match("t?nk", "tnk"));
    ck_assert(!glob_match("tank?", "tank"));
    ck_assert(glob_match("*", ""));
    ck_assert(glob_match("*", "anything"));
    ck_assert(glob_match("vm-*", "vm-"));
    ck_assert(glob_match("**", "x"));
    ck_assert(glob_match("*a*", "banana"));
    ck_assert(!glob_match("*x*", "banana"));
    /* No other special bytes, and case counts. */
    ck_assert(!glob_match("[ab]", "a"));
    ck_assert(glob_match("[ab]", "[ab]"));
    ck_assert(!glob_match("\\*", "*"));
    ck_assert(!glob_match("Tank", "tank"));
}
END_TEST

START_TEST(a_glob_takes_steps_back)
{
    ck_assert(glob_match("*ab", "aab"));
    ck_assert(glob_match("*ab", "abab"));
    ck_assert(glob_match("a*b*c", "abbcbc"));
    ck_assert(glob_match("*aab*", "aaaaab"));
    ck_assert(!glob_match("a*b*c", "abbcb"));
    ck_assert(glob_match("*?a", "aaa"));
    ck_assert(!glob_match("*?a", "a"));
}
END_TEST

START_TEST(nothing_but_a_slash_matches_a_slash)
{
    ck_assert(!glob_match("*", "tank/vol"));
    ck_assert(!glob_match("tank?vol", "tank/vol"));
    ck_assert(!glob_match("tank*", "tank/vol"));
    ck_assert(!glob_match("*vol", "tank/vol"));
    ck_assert(glob_match("*/*", "tank/vol"));
    ck_assert(glob_match("tank/*", "tank/vol"));
    ck_assert(glob_match("tank/*", "tank/"));
    ck_assert(!glob_match("tank/*", "tank"));
    ck_assert(!glob_match("*/vol", "a/b/vol"));
    ck_assert(!glob_match("t*/v*1", "tank/vol2"));
    ck_assert(glob_match("t*/v*1", "tank/vol11"));
}
END_TEST

/* The definition, written down without a thought for its cost. */
static bool
naive_match(const char *glob, const char *text)
{
    if (!*glob)
        return !*text;
    if (*glob == '*')
        return naive_match(glob + 1, text) ||
               (*text && *text != '/' && naive_match(glob, text + 1));
    if (!*text || (*glob == '?' ? *text == '/' : *glob != *text))
        return false;
    return naive_match(glob + 1, text + 1);
}

static void
draw(struct thin_random *rng, const char *alphabet, char *ret, size_t max)
{
    size_t len = random_below(rng, max);

    for (size_t i = 0; i < len; i++)
        ret[i] = alphabet[random_below(rng, strlen(alphabet))];
    ret[len] = '\0';
}

START_TEST(globs_match_as_their_definition_says)
{
    const char *env = getenv("SEED");
    uint64_t seed = env ? strtoull(env, NULL, 10) : (uint64_t)time(NULL);
    struct thin_random rng;
    unsigned matches = 0;

    printf("SEED=%" PRIu64 "\n", seed);
    random_seed(&rng, seed);
    for (int i = 0; i < 200000; i++) {
        char glob[10], text[12];

        draw(&rng, "ab/*?*", glob, sizeof(glob));
        draw(&rng, "aab/", text, sizeof(text));
        ck_assert_msg(glob_match(glob, text) == naive_match(glob, text), "%s on %s", glob,
                      text);
        matches += glob_match(glob, text);
    }
    ck_assert_uint_gt(matches, 1000);
}
END_TEST

START_TEST(a_hostile_glob_costs_little)
{
    /* Exponential if each star kept its own place to come back to. */
    char glob[128], text[128];

    for (size_t i = 0; i < 126; i += 2)
        memcpy(glob + i, "*a", 2);
    memcpy(glob + 126, "b", 2);
    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    ck_assert(!glob_match(glob, text));
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("name");
    TCase *tc = tcase_create("name");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 30);
    tcase_add_test(tc, names_are_made_of_the_alphabet);
    tcase_add_test(tc, names_begin_with_a_letter_or_digit);
    tcase_add_test(tc, names_have_at_most_127_bytes);
    tcase_add_test(tc, a_bad_name_is_named_harmlessly);
    tcase_add_test(tc, sizes_are_powers_of_1024);
    tcase_add_test(tc, bad_sizes_are_refused_and_named);
    tcase_add_test(tc, durations_have_units);
    tcase_add_test(tc, globs_match_whole_texts);
    tcase_add_test(tc, a_glob_takes_steps_back);
    tcase_add_test(tc, nothing_but_a_slash_matches_a_slash);
    tcase_add_test(tc, globs_match_as_their_definition_says);
    tcase_add_test(tc, a_hostile_glob_costs_little);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
