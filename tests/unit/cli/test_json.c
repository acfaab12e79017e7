#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/json.h"

static char *text;
static size_t text_bytes;
static struct json json;

static void
begin(bool compact)
{
    free(text);
    text = NULL;
    json_init(&json, open_memstream(&text, &text_bytes), compact);
    ck_assert_ptr_nonnull(json.f);
}

static const char *
end(void)
{
    json_finish(&json);
    fclose(json.f);
    return text;
}

START_TEST(a_document_is_indented_with_commas_between_members)
{
    begin(false);
    json_open_object(&json, NULL);
    json_open_array(&json, "pools");
    json_open_object(&json, NULL);
    json_string(&json, "name", "tank");
    json_u64(&json, "size", UINT64_MAX);
    json_close(&json);
    json_open_object(&json, NULL);
    json_close(&json);
    json_close(&json);
    json_close(&json);
    ck_assert_str_eq(end(), "{\n"
                            "  \"pools\": [\n"
                            "    {\n"
                            "      \"name\": \"tank\",\n"
                            "      \"size\": 18446744073709551615\n"
                            "    },\n"
                            "    {}\n"
                            "  ]\n"
                            "}\n");
}
END_TEST

START_TEST(a_compact_document_is_one_line)
{
    begin(true);
    json_open_object(&json, NULL);
    json_bool(&json, "a", true);
    json_null(&json, "b");
    json_i64(&json, "c", INT64_MIN);
    json_open_array(&json, "d");
    json_u64(&json, NULL, 1);
    json_bool(&json, NULL, false);
    json_close(&json);
    json_close(&json);
    ck_assert_str_eq(end(), "{\"a\": true, \"b\": null, \"c\": -9223372036854775808, "
                            "\"d\": [1, false]}\n");
}
END_TEST

START_TEST(an_empty_list_is_a_list)
{
    begin(false);
    json_open_object(&json, NULL);
    json_open_array(&json, "volumes");
    json_close(&json);
    json_close(&json);
    ck_assert_str_eq(end(), "{\n  \"volumes\": []\n}\n");
}
END_TEST

static const char *
string_of(const void *bytes, size_t len)
{
    begin(true);
    json_bytes(&json, NULL, bytes, len);
    end();
    text[strlen(text) - 1] = '\0';
    return text;
}
#define STRING_OF(literal) string_of(literal, sizeof(literal) - 1)

START_TEST(quotes_backslashes_and_control_bytes_are_escaped)
{
    ck_assert_str_eq(STRING_OF("a\"b\\c"), "\"a\\\"b\\\\c\"");
    ck_assert_str_eq(STRING_OF("\n\t\r"), "\"\\n\\t\\r\"");
    ck_assert_str_eq(STRING_OF("\x01\x1f\x7f"), "\"\\u0001\\u001f\\u007f\"");
    ck_assert_str_eq(STRING_OF("a\0b"), "\"a\\u0000b\"");
    ck_assert_str_eq(STRING_OF("\x1b[31m"), "\"\\u001b[31m\"");
    ck_assert_str_eq(STRING_OF(""), "\"\"");
}
END_TEST

START_TEST(utf8_passes_as_it_is)
{
    ck_assert_str_eq(STRING_OF("\xc3\xa9"), "\"\xc3\xa9\"");
    ck_assert_str_eq(STRING_OF("\xe2\x82\xac"), "\"\xe2\x82\xac\"");
    ck_assert_str_eq(STRING_OF("\xf0\x9f\x92\xbe"), "\"\xf0\x9f\x92\xbe\"");
    ck_assert_str_eq(STRING_OF("\xf4\x8f\xbf\xbf"), "\"\xf4\x8f\xbf\xbf\"");
}
END_TEST

START_TEST(what_is_not_utf8_is_replaced_byte_by_byte)
{
    ck_assert_str_eq(STRING_OF("\xff"), "\"\\ufffd\"");
    ck_assert_str_eq(STRING_OF("a\x80z"), "\"a\\ufffdz\"");
    ck_assert_str_eq(STRING_OF("\xc3"), "\"\\ufffd\"");         /* cut */
    ck_assert_str_eq(STRING_OF("\xc3(\""), "\"\\ufffd(\\\"\""); /* its end is missing */
    ck_assert_str_eq(STRING_OF("\xc0\x80"), "\"\\ufffd\\ufffd\""); /* overlong */
    ck_assert_str_eq(STRING_OF("\xe0\x80\x80"), "\"\\ufffd\\ufffd\\ufffd\"");
    ck_assert_str_eq(STRING_OF("\xed\xa0\x80"), "\"\\ufffd\\ufffd\\ufffd\"");
    ck_assert_str_eq(STRING_OF("\xf0\x80\x80\x80"), "\"\\ufffd\\ufffd\\ufffd\\ufffd\"");
    ck_assert_str_eq(STRING_OF("\xf4\x90\x80\x80"), "\"\\ufffd\\ufffd\\ufffd\\ufffd\"");
}
END_TEST

START_TEST(keys_are_escaped_too)
{
    begin(true);
    json_open_object(&json, NULL);
    json_string_or_null(&json, "a\"", "");
    json_string_or_null(&json, "b", NULL);
    json_string_or_null(&json, "c", "x");
    json_close(&json);
    ck_assert_str_eq(end(), "{\"a\\\"\": null, \"b\": null, \"c\": \"x\"}\n");
}
END_TEST

START_TEST(a_key_in_an_array_stops_the_program)
{
    begin(true);
    json_open_array(&json, NULL);
    json_u64(&json, "key", 1);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("json");
    TCase *tc = tcase_create("json");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_test(tc, a_document_is_indented_with_commas_between_members);
    tcase_add_test(tc, a_compact_document_is_one_line);
    tcase_add_test(tc, an_empty_list_is_a_list);
    tcase_add_test(tc, quotes_backslashes_and_control_bytes_are_escaped);
    tcase_add_test(tc, utf8_passes_as_it_is);
    tcase_add_test(tc, what_is_not_utf8_is_replaced_byte_by_byte);
    tcase_add_test(tc, keys_are_escaped_too);
    tcase_add_test_raise_signal(tc, a_key_in_an_array_stops_the_program, SIGABRT);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    free(text);
    return failed ? 1 : 0;
}
