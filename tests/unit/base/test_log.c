#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/log.h"

static char said[8192];

/* Standard error goes into a pipe between these two. */
static int pipe_fds[2];
static int stderr_copy;

static void
listen_begin(void)
{
    ck_assert_int_eq(pipe(pipe_fds), 0);
    stderr_copy = dup(STDERR_FILENO);
    ck_assert_int_ge(stderr_copy, 0);
    ck_assert_int_eq(dup2(pipe_fds[1], STDERR_FILENO), STDERR_FILENO);
    close(pipe_fds[1]);
}

static void
listen_end(void)
{
    size_t n = 0;
    ssize_t got;

    ck_assert_int_eq(dup2(stderr_copy, STDERR_FILENO), STDERR_FILENO);
    close(stderr_copy);
    while ((got = read(pipe_fds[0], said + n, sizeof(said) - 1 - n)) > 0)
        n += (size_t)got;
    close(pipe_fds[0]);
    said[n] = '\0';
}

START_TEST(one_event_is_one_line_with_its_level)
{
    listen_begin();
    log_error("pool failed pool=%s", "tank");
    log_warning("space is short");
    log_notice("ready");
    listen_end();
    ck_assert_str_eq(said, "error: pool failed pool=tank\n"
                           "warning: space is short\n"
                           "notice: ready\n");
}
END_TEST

START_TEST(lines_above_the_level_are_dropped)
{
    ck_assert(!thin_log_enabled(THIN_LOG_DEBUG)); /* the default is notice */
    ck_assert(thin_log_enabled(THIN_LOG_NOTICE));
    listen_begin();
    log_debug("not said");
    thin_log_set_level(THIN_LOG_ERROR);
    log_warning("not said");
    log_error("said");
    thin_log_set_level(THIN_LOG_DEBUG);
    log_debug("said too");
    listen_end();
    ck_assert_str_eq(said, "error: said\ndebug: said too\n");
}
END_TEST

START_TEST(arguments_of_a_dropped_debug_line_are_not_evaluated)
{
    int n = 0;

    log_debug("%d", ++n);
    ck_assert_int_eq(n, 0);
}
END_TEST

START_TEST(a_line_too_long_is_cut_and_still_ends)
{
    char text[5000];
    size_t len;

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    listen_begin();
    log_error("%s", text);
    log_error("next");
    listen_end();
    len = strcspn(said, "\n");
    ck_assert_uint_gt(len, 1000);
    ck_assert_uint_lt(len, 2048);
    ck_assert_str_eq(said + len, "\nerror: next\n");
    for (size_t i = strlen("error: "); i < len; i++)
        ck_assert_int_eq(said[i], 'x');
}
END_TEST

START_TEST(errno_survives)
{
    listen_begin();
    errno = EXDEV;
    log_error("%s", "x");
    ck_assert_int_eq(errno, EXDEV);
    listen_end();
}
END_TEST

START_TEST(levels_have_words)
{
    enum thin_log_level level;

    ck_assert_int_eq(thin_log_parse_level("error", &level), 0);
    ck_assert_int_eq(level, THIN_LOG_ERROR);
    ck_assert_int_eq(thin_log_parse_level("warning", &level), 0);
    ck_assert_int_eq(level, THIN_LOG_WARNING);
    ck_assert_int_eq(thin_log_parse_level("notice", &level), 0);
    ck_assert_int_eq(level, THIN_LOG_NOTICE);
    ck_assert_int_eq(thin_log_parse_level("debug", &level), 0);
    ck_assert_int_eq(level, THIN_LOG_DEBUG);
    level = THIN_LOG_WARNING;
    ck_assert_int_eq(thin_log_parse_level("Error", &level), -THIN_E_INVALID);
    ck_assert_int_eq(thin_log_parse_level("", &level), -THIN_E_INVALID);
    ck_assert_int_eq(thin_log_parse_level("debug ", &level), -THIN_E_INVALID);
    ck_assert_int_eq(level, THIN_LOG_WARNING); /* untouched */
}
END_TEST

START_TEST(a_kind_of_line_is_limited_and_the_dropped_are_told)
{
    struct thin_log_limit limit = {.period_ms = 1000, .burst = 2};
    unsigned dropped = 99;

    ck_assert(thin_log_allowed(&limit, 5000, &dropped));
    ck_assert_uint_eq(dropped, 0);
    ck_assert(thin_log_allowed(&limit, 5100, &dropped));
    for (int i = 0; i < 7; i++)
        ck_assert(!thin_log_allowed(&limit, 5200, &dropped));
    ck_assert(!thin_log_allowed(&limit, 5999, &dropped));
    ck_assert(thin_log_allowed(&limit, 6000, &dropped));
    ck_assert_uint_eq(dropped, 8);
    ck_assert(thin_log_allowed(&limit, 6001, &dropped));
    ck_assert_uint_eq(dropped, 0);
}
END_TEST

static const char *
quoted(const char *bytes, size_t len)
{
    static char buf[64];

    return thin_log_quote(buf, sizeof(buf), bytes, len);
}

START_TEST(names_from_outside_cannot_forge_a_line)
{
    ck_assert_str_eq(quoted("vol-1", 5), "\"vol-1\"");
    ck_assert_str_eq(quoted("", 0), "\"\"");
    ck_assert_str_eq(quoted("a\nerror: b", 10), "\"a\\x0aerror: b\"");
    ck_assert_str_eq(quoted("\0\x1b\x7f\xff", 4), "\"\\x00\\x1b\\x7f\\xff\"");
    ck_assert_str_eq(quoted("\"\\", 2), "\"\\x22\\x5c\"");
}
END_TEST

START_TEST(a_quoted_name_is_cut_to_its_buffer)
{
    char big[200];

    memset(big, '\n', sizeof(big));
    for (size_t size = 0; size < 40; size++) {
        char buf[64];
        const char *s;

        memset(buf, '#', sizeof(buf));
        s = thin_log_quote(buf, size, big, sizeof(big));
        for (size_t i = size; i < sizeof(buf); i++)
            ck_assert_int_eq(buf[i], '#');
        if (size < 3) {
            ck_assert_str_eq(s, "");
            continue;
        }
        ck_assert_uint_lt(strlen(s), size);
        ck_assert_int_eq(s[0], '"');
        ck_assert_int_eq(s[strlen(s) - 1], '"');
        ck_assert_uint_eq((strlen(s) - 2) % 4, 0); /* no half escape */
    }
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("log");
    TCase *tc = tcase_create("log");
    SRunner *runner;
    int failed;

    tcase_add_test(tc, one_event_is_one_line_with_its_level);
    tcase_add_test(tc, lines_above_the_level_are_dropped);
    tcase_add_test(tc, arguments_of_a_dropped_debug_line_are_not_evaluated);
    tcase_add_test(tc, a_line_too_long_is_cut_and_still_ends);
    tcase_add_test(tc, errno_survives);
    tcase_add_test(tc, levels_have_words);
    tcase_add_test(tc, a_kind_of_line_is_limited_and_the_dropped_are_told);
    tcase_add_test(tc, names_from_outside_cannot_forge_a_line);
    tcase_add_test(tc, a_quoted_name_is_cut_to_its_buffer);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
