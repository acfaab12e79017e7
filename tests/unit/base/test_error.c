#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/error.h"

static struct thin_error err;

static const struct {
    int code;
    int number;
    int nearest;
    const char *name;
} rows[] = {
#define ROW(name, number, err, text) {-THIN_E_##name, (number), (err), #name},
    THIN_ERROR_TABLE(ROW)
#undef ROW
};
#define NR_ROWS (sizeof(rows) / sizeof(rows[0]))

START_TEST(numbers_are_for_ever)
{
    /* The ends and some between, written down: they also travel on the wire. */
    ck_assert_int_eq(THIN_E_WOULD_BLOCK, 1001);
    ck_assert_int_eq(THIN_E_CHECKSUM, 1002);
    ck_assert_int_eq(THIN_E_NO_DATA_SPACE, 1008);
    ck_assert_int_eq(THIN_E_NOT_FOUND, 1013);
    ck_assert_int_eq(THIN_E_ROLLED_BACK, 1018);
    ck_assert_int_eq(THIN_E_DENIED, 1020);
    ck_assert_int_eq(THIN_E_MOVED, 1031);
    ck_assert_int_eq(THIN_E_NEED_COMMIT, 1037);
    for (size_t i = 0; i < NR_ROWS; i++)
        ck_assert_int_eq(rows[i].number, 1001 + (int)i);
}
END_TEST

START_TEST(every_code_has_name_text_and_errno)
{
    for (size_t i = 0; i < NR_ROWS; i++) {
        ck_assert_str_eq(thin_error_name(rows[i].code), rows[i].name);
        ck_assert_int_eq(thin_error_errno(rows[i].code), rows[i].nearest);
        ck_assert_int_gt(thin_error_errno(rows[i].code), 0);
        ck_assert_str_ne(thin_strerror(rows[i].code), "unknown error");
        ck_assert_uint_gt(strlen(thin_strerror(rows[i].code)), 3);
    }
}
END_TEST

START_TEST(errno_codes_speak_as_the_system_does)
{
    ck_assert_str_eq(thin_strerror(-ENOSPC), "No space left on device");
    ck_assert_str_eq(thin_error_name(-EIO), "EIO");
    ck_assert_int_eq(thin_error_errno(-EAGAIN), EAGAIN);
}
END_TEST

START_TEST(success_and_unknown_codes_have_words_too)
{
    ck_assert_str_eq(thin_strerror(0), "success");
    ck_assert_str_eq(thin_error_name(0), "OK");
    ck_assert_int_eq(thin_error_errno(0), 0);
    ck_assert_int_eq(thin_error_errno(17), 0);
    ck_assert_str_eq(thin_strerror(-999), "unknown error");
    ck_assert_str_eq(thin_error_name(-999), "UNKNOWN");
    ck_assert_str_eq(thin_strerror(-5000), "unknown error");
    ck_assert_str_eq(thin_error_name(-5000), "UNKNOWN");
    ck_assert_int_eq(thin_error_errno(-5000), EIO);
}
END_TEST

START_TEST(each_floor_adds_one_phrase_in_front)
{
    thin_error_init(&err);
    ck_assert_int_eq(thin_fail_code(&err, -EIO, "read metadata block %d", 0), -EIO);
    ck_assert_str_eq(err.text, "read metadata block 0: Input/output error");
    ck_assert_int_eq(thin_wrap(&err, -EIO, "read the superblock"), -EIO);
    ck_assert_int_eq(thin_wrap(&err, -THIN_E_FAILED, "open pool %s", "tank"),
                     -THIN_E_FAILED);
    ck_assert_str_eq(err.text, "open pool tank: read the superblock: "
                               "read metadata block 0: Input/output error");
    ck_assert_int_eq(err.code, -THIN_E_FAILED);
}
END_TEST

START_TEST(wrapping_silence_gives_the_text_of_the_code)
{
    thin_error_init(&err);
    ck_assert_int_eq(thin_wrap(&err, -THIN_E_BUSY, "close pool tank"), -THIN_E_BUSY);
    ck_assert_str_eq(err.text, "close pool tank: in use");
    ck_assert_int_eq(err.code, -THIN_E_BUSY);
}
END_TEST

START_TEST(failing_again_replaces_the_words)
{
    thin_error_init(&err);
    thin_fail(&err, -EIO, "the first words, which are long");
    ck_assert_int_eq(thin_fail(&err, -THIN_E_RANGE, "second"), -THIN_E_RANGE);
    ck_assert_str_eq(err.text, "second");
    ck_assert_int_eq(err.code, -THIN_E_RANGE);
}
END_TEST

START_TEST(without_a_place_for_words_the_code_goes_up)
{
    ck_assert_int_eq(thin_fail(NULL, -EIO, "%s", "x"), -EIO);
    ck_assert_int_eq(thin_fail_code(NULL, -EIO, "%s", "x"), -EIO);
    ck_assert_int_eq(thin_wrap(NULL, -THIN_E_LOST, "%s", "x"), -THIN_E_LOST);
    ck_assert_str_eq(thin_error_text(NULL, -THIN_E_LOST), "device is lost");
}
END_TEST

START_TEST(text_is_words_if_there_are_any)
{
    thin_error_init(&err);
    ck_assert_str_eq(thin_error_text(&err, -EIO), "Input/output error");
    thin_fail(&err, -EIO, "words");
    ck_assert_str_eq(thin_error_text(&err, -EIO), "words");
}
END_TEST

START_TEST(long_chains_are_cut_at_the_end)
{
    char phrase[THIN_ERROR_TEXT_MAX * 2];

    memset(phrase, 'a', sizeof(phrase) - 1);
    phrase[sizeof(phrase) - 1] = '\0';
    thin_error_init(&err);
    thin_fail(&err, -EIO, "%s", phrase);
    ck_assert_uint_eq(strlen(err.text), THIN_ERROR_TEXT_MAX - 1);
    thin_wrap(&err, -EIO, "front");
    ck_assert_uint_eq(strlen(err.text), THIN_ERROR_TEXT_MAX - 1);
    ck_assert_int_eq(strncmp(err.text, "front: aaa", 10), 0);
    phrase[THIN_ERROR_TEXT_MAX - 3] = '\0'; /* ": " and the NUL just fit */
    thin_error_init(&err);
    thin_wrap(&err, -EIO, "%s", phrase);
    ck_assert_uint_eq(strlen(err.text), THIN_ERROR_TEXT_MAX - 1);
    ck_assert_str_eq(err.text + THIN_ERROR_TEXT_MAX - 3, ": ");
}
END_TEST

START_TEST(errno_is_kept)
{
    thin_error_init(&err);
    errno = EXDEV;
    thin_fail(&err, -EIO, "%s", "x");
    thin_fail_code(&err, -EIO, "%s", "x");
    thin_wrap(&err, -EIO, "%s", "x");
    ck_assert_int_eq(errno, EXDEV);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("error");
    TCase *tc = tcase_create("error");
    SRunner *runner;
    int failed;

    tcase_add_test(tc, numbers_are_for_ever);
    tcase_add_test(tc, every_code_has_name_text_and_errno);
    tcase_add_test(tc, errno_codes_speak_as_the_system_does);
    tcase_add_test(tc, success_and_unknown_codes_have_words_too);
    tcase_add_test(tc, each_floor_adds_one_phrase_in_front);
    tcase_add_test(tc, wrapping_silence_gives_the_text_of_the_code);
    tcase_add_test(tc, failing_again_replaces_the_words);
    tcase_add_test(tc, without_a_place_for_words_the_code_goes_up);
    tcase_add_test(tc, text_is_words_if_there_are_any);
    tcase_add_test(tc, long_chains_are_cut_at_the_end);
    tcase_add_test(tc, errno_is_kept);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
