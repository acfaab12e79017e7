#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/cli/cli.h"

#define WORDS_MAX 32

static int
run_nothing(struct cli *cli)
{
    (void)cli;
    return 0;
}

static const struct cli_option make_options[] = {
    {"data", "PATH", "", false},
    {"size", "ID=SIZE", "", true},
    {"force", NULL, "", false},
    {"server", NULL, "", false},
    {0},
};
static const struct cli_verb verbs[] = {
    {"make", "NAME", "", make_options, 1, 2, run_nothing},
    {"list", "", "", NULL, 0, CLI_MANY, run_nothing},
    {0},
};
static const struct cli_noun nouns[] = {
    {"pool", "", verbs}, {"empty", "", verbs + 2}, {0}};

static struct cli cli;
static char *words[WORDS_MAX];
static char *line;

/* Parses a line of words separated by blanks. */
static int
parse(const char *text)
{
    int n = 0;
    char *save = NULL;

    cli_fini(&cli);
    free(line);
    line = NULL;
    ck_assert_int_gt(asprintf(&line, "thincli %s", text), 0);
    for (char *w = strtok_r(line, " ", &save); w; w = strtok_r(NULL, " ", &save))
        words[n++] = w;
    words[n] = NULL;
    return cli_parse(&cli, nouns, n, words);
}

static void
finish(void)
{
    cli_fini(&cli);
    free(line);
    line = NULL;
}

START_TEST(global_options_stand_before_and_behind)
{
    const char *lines[] = {
        "--json --server unix:/s pool list",
        "pool --json --server=unix:/s list",
        "pool list --json --server unix:/s",
        "--server unix:/s pool list --json",
    };

    for (unsigned i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        ck_assert_int_eq(parse(lines[i]), 0);
        ck_assert_str_eq(cli.noun->name, "pool");
        ck_assert_str_eq(cli.verb->name, "list");
        ck_assert(cli.json);
        ck_assert_str_eq(cli.server, "unix:/s");
        ck_assert_uint_eq(cli.nr_args, 0);
    }
}
END_TEST

START_TEST(options_and_arguments_come_in_any_order)
{
    ck_assert_int_eq(parse("pool make --data /d tank --force two"), 0);
    ck_assert_uint_eq(cli.nr_args, 2);
    ck_assert_str_eq(cli.args[0], "tank");
    ck_assert_str_eq(cli.args[1], "two");
    ck_assert_str_eq(cli_option(&cli, "data"), "/d");
    ck_assert(cli_has(&cli, "force"));
    ck_assert(!cli_has(&cli, "size"));
    ck_assert_int_eq(setenv("POSIXLY_CORRECT", "1", 1), 0);
    ck_assert_int_eq(parse("pool make tank --data /d"), 0);
    unsetenv("POSIXLY_CORRECT");
    ck_assert_uint_eq(cli.nr_args, 1);
    ck_assert_str_eq(cli_option(&cli, "data"), "/d");
}
END_TEST

START_TEST(behind_two_dashes_all_are_arguments)
{
    ck_assert_int_eq(parse("pool make -- --data --json"), 0);
    ck_assert_uint_eq(cli.nr_args, 2);
    ck_assert_str_eq(cli.args[0], "--data");
    ck_assert(!cli.json);
}
END_TEST

START_TEST(an_option_that_may_repeat_keeps_all_its_values)
{
    ck_assert_int_eq(parse("pool make tank --size 1=1M --size 2=2M"), 0);
    ck_assert_uint_eq(cli.nr_values, 2);
    ck_assert_str_eq(cli.values[1].value, "2=2M");
    ck_assert_int_eq(parse("pool make tank --data a --data b"), CLI_USAGE);
    ck_assert_ptr_nonnull(strstr(cli.err.text, "--data"));
}
END_TEST

START_TEST(a_verbs_option_hides_the_global_one)
{
    ck_assert_int_eq(parse("--server unix:/s pool make tank --server"), 0);
    ck_assert_str_eq(cli.server, "unix:/s");
    ck_assert(cli_has(&cli, "server"));
    ck_assert_int_eq(parse("pool make --server tank"), 0);
    ck_assert_str_eq(cli.args[0], "tank");
}
END_TEST

START_TEST(wrong_lines_are_named)
{
    static const struct {
        const char *line, *words;
    } wrong[] = {
        {"", "missing"},
        {"frob", "no such noun: frob"},
        {"pool", "VERB is missing"},
        {"empty list", "no such verb"},
        {"pool frob", "no such verb: frob"},
        {"pool make", "argument is missing"},
        {"pool make a b c", "one argument too many: c"},
        {"pool list --frob", "no such option: --frob"},
        {"pool list -x", "no such option: -x"},
        {"--frob pool list", "no such option: --frob"},
        {"pool list --server", "--server needs a value"},
        {"pool list --json=yes", "--json takes no value"},
        {"pool make a --force=1", "--force takes no value"},
        {"pool list --connect-timeout never", "bad duration"},
        {"pool list --connect-timeout 0", "bad --connect-timeout"},
    };

    for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        ck_assert_int_eq(parse(wrong[i].line), CLI_USAGE);
        ck_assert_msg(strstr(cli.err.text, wrong[i].words) != NULL, "'%s' says: %s",
                      wrong[i].line, cli.err.text);
    }
}
END_TEST

START_TEST(help_and_version_need_nothing_else)
{
    ck_assert_int_eq(parse("--help"), 0);
    ck_assert(cli.help && !cli.noun);
    ck_assert_int_eq(parse("pool --help"), 0);
    ck_assert(cli.help && cli.noun && !cli.verb);
    ck_assert_int_eq(parse("pool make -h"), 0);
    ck_assert(cli.help && cli.verb);
    ck_assert_int_eq(parse("--version"), 0);
    ck_assert(cli.version);
}
END_TEST

static void
check_split(const char *word, const char *path, uint64_t size)
{
    uint64_t got_size = 1;
    char *got = NULL;

    ck_assert_int_eq(cli_split_path_size(word, &got, &got_size), 0);
    ck_assert_str_eq(got, path);
    ck_assert_uint_eq(got_size, size);
    free(got);
}

START_TEST(only_a_size_behind_the_last_colon_is_one)
{
    char *path = NULL;
    uint64_t size;

    check_split("/a/b:10G", "/a/b", 10ull << 30);
    check_split("/a/b", "/a/b", 0);
    check_split("/a:b/c", "/a:b/c", 0);
    check_split("/a:1M:2M", "/a:1M", 2u << 20);
    check_split("/a:", "/a:", 0);
    check_split("/a:10X", "/a:10X", 0);
    check_split("/a:0", "/a:0", 0);
    check_split("/a:1000", "/a:1000", 0); /* no multiple of 512 */
    check_split("/a:1024", "/a", 1024);
    check_split("/a:-512", "/a:-512", 0);
    check_split("nbd://host:10809/x", "nbd://host:10809/x", 0);
    check_split("nbd://host:10240", "nbd://host:10240", 0);
    check_split("pci-0000:00:1f.2", "pci-0000:00:1f.2", 0);
    ck_assert_int_eq(cli_split_path_size(":1M", &path, &size), -THIN_E_INVALID);
    ck_assert_int_eq(cli_split_path_size("", &path, &size), -THIN_E_INVALID);
}
END_TEST

static void
check_absolute(const char *word, const char *wanted)
{
    char *got = NULL;

    ck_assert_int_eq(cli_absolute_path(word, &got), 0);
    ck_assert_str_eq(got, wanted);
    free(got);
}

START_TEST(relative_paths_are_made_absolute_and_uris_are_not)
{
    ck_assert_int_eq(chdir("/usr"), 0);
    check_absolute("demo.data", "/usr/demo.data");
    check_absolute("./demo.data", "/usr/demo.data");
    check_absolute(".//./x", "/usr/x");
    check_absolute("../x", "/usr/../x");
    check_absolute("/x", "/x");
    check_absolute("nbd+unix:///x?socket=s", "nbd+unix:///x?socket=s");
    ck_assert_int_eq(chdir("/"), 0);
    check_absolute("x", "/x");
}
END_TEST

START_TEST(keys_and_values_part_at_the_first_equals_sign)
{
    struct cli_key_values values;

    ck_assert_int_eq(parse("pool list a=b c== d="), 0);
    ck_assert_int_eq(cli_key_values(&cli, 0, &values), 0);
    ck_assert_uint_eq(values.nr, 3);
    ck_assert_str_eq(values.list[0]->key, "a");
    ck_assert_str_eq(values.list[0]->value, "b");
    ck_assert_str_eq(values.list[1]->key, "c");
    ck_assert_str_eq(values.list[1]->value, "=");
    ck_assert_str_eq(values.list[2]->value, "");
    cli_key_values_fini(&values);
    ck_assert_int_eq(parse("pool list a=b c"), 0);
    ck_assert_int_eq(cli_key_values(&cli, 0, &values), CLI_USAGE);
    ck_assert_int_eq(parse("pool list =b"), 0);
    ck_assert_int_eq(cli_key_values(&cli, 0, &values), CLI_USAGE);
}
END_TEST

START_TEST(names_and_sizes_are_checked_before_anything_is_asked)
{
    uint64_t size = 7;

    ck_assert_int_eq(cli_check_volume(&cli, "tank/a"), 0);
    ck_assert_int_eq(cli_check_volume(&cli, "tank"), CLI_USAGE);
    ck_assert_int_eq(cli_check_volume(&cli, "tank/"), CLI_USAGE);
    ck_assert_int_eq(cli_check_volume(&cli, "/a"), CLI_USAGE);
    ck_assert_int_eq(cli_check_volume(&cli, "a/b/c"), CLI_USAGE);
    ck_assert_int_eq(cli_check_name(&cli, "-a"), CLI_USAGE);
    ck_assert_int_eq(cli_size(&cli, NULL, &size), 0);
    ck_assert_uint_eq(size, 7);
    ck_assert_int_eq(cli_size(&cli, "64k", &size), 0);
    ck_assert_uint_eq(size, 65536);
    ck_assert_int_eq(cli_size(&cli, "1000", &size), CLI_USAGE);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("args");
    TCase *tc = tcase_create("args");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(tc, NULL, finish);
    tcase_add_test(tc, global_options_stand_before_and_behind);
    tcase_add_test(tc, options_and_arguments_come_in_any_order);
    tcase_add_test(tc, behind_two_dashes_all_are_arguments);
    tcase_add_test(tc, an_option_that_may_repeat_keeps_all_its_values);
    tcase_add_test(tc, a_verbs_option_hides_the_global_one);
    tcase_add_test(tc, wrong_lines_are_named);
    tcase_add_test(tc, help_and_version_need_nothing_else);
    tcase_add_test(tc, only_a_size_behind_the_last_colon_is_one);
    tcase_add_test(tc, relative_paths_are_made_absolute_and_uris_are_not);
    tcase_add_test(tc, keys_and_values_part_at_the_first_equals_sign);
    tcase_add_test(tc, names_and_sizes_are_checked_before_anything_is_asked);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
