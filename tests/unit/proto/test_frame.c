#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/base/crc32c.h"
#include "proto/frame.h"

#define MESSAGE_MAX 100u
#define PAYLOAD_MAX 5000u

static uint8_t frame[FRAME_PREFIX_BYTES + 64];
static struct frame_prefix prefix;
static struct thin_error err;

static void
make(const char *message, uint32_t payload)
{
    size_t len = strlen(message);

    memcpy(frame + FRAME_PREFIX_BYTES, message, len);
    frame_prefix_encode(frame, message, (uint32_t)len, payload);
    thin_error_init(&err);
}

static int
decode(void)
{
    return frame_prefix_decode(frame, MESSAGE_MAX, PAYLOAD_MAX, &prefix, &err);
}

START_TEST(what_is_encoded_is_decoded)
{
    make("hello", 4096);
    ck_assert_int_eq(decode(), 0);
    ck_assert_uint_eq(prefix.message_bytes, 5);
    ck_assert_uint_eq(prefix.payload_bytes, 4096);
    ck_assert_int_eq(frame_check(frame, &prefix, frame + FRAME_PREFIX_BYTES, &err), 0);
}
END_TEST

/* Written down byte by byte once, so that both ends cannot drift together. */
START_TEST(the_bytes_are_those_of_the_header)
{
    static const uint8_t first[16] = {'T', 'H', 'I', 'N', 1, 0, 0, 0,
                                      3,   0,   0,   0,   0, 2, 0, 0};
    uint8_t covered[19];

    make("abc", 512);
    ck_assert_mem_eq(frame, first, sizeof(first));
    memcpy(covered, first, 16);
    memcpy(covered + 16, "abc", 3);
    ck_assert_uint_eq(load_le32(frame + 16), crc32c(covered, sizeof(covered)));
    ck_assert_uint_eq(load_le32(frame + 20), 0);
}
END_TEST

START_TEST(lengths_beyond_the_limits_are_refused)
{
    make("", 0);
    store_le32(frame + 8, MESSAGE_MAX);
    store_le32(frame + 12, PAYLOAD_MAX);
    ck_assert_int_eq(decode(), 0);
    store_le32(frame + 8, MESSAGE_MAX + 1);
    ck_assert_int_eq(decode(), -THIN_E_LIMIT);
    ck_assert_ptr_nonnull(strstr(err.text, "101"));
    ck_assert_ptr_nonnull(strstr(err.text, "100"));
    store_le32(frame + 8, 0);
    store_le32(frame + 12, 0xffffffffu);
    ck_assert_int_eq(decode(), -THIN_E_LIMIT);
}
END_TEST

START_TEST(every_bit_of_prefix_and_message_counts)
{
    size_t bits;

    make("message", 77);
    bits = (FRAME_PREFIX_BYTES + strlen("message")) * 8;
    for (size_t i = 0; i < bits; i++) {
        int r;

        frame[i / 8] ^= (uint8_t)(1u << i % 8);
        r = decode();
        if (r == 0)
            r = frame_check(frame, &prefix, frame + FRAME_PREFIX_BYTES, &err);
        ck_assert_msg(r < 0, "bit %zu changed and nobody saw", i);
        frame[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    ck_assert_int_eq(decode(), 0);
}
END_TEST

START_TEST(another_protocol_is_named_as_such)
{
    memcpy(frame, "GET / HTTP/1.1\r\nHost: x\r\n", FRAME_PREFIX_BYTES);
    ck_assert_int_eq(decode(), -THIN_E_PROTOCOL);
    ck_assert_ptr_nonnull(strstr(err.text, "another protocol"));
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("frame");
    TCase *tc = tcase_create("frame");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_test(tc, what_is_encoded_is_decoded);
    tcase_add_test(tc, the_bytes_are_those_of_the_header);
    tcase_add_test(tc, lengths_beyond_the_limits_are_refused);
    tcase_add_test(tc, every_bit_of_prefix_and_message_counts);
    tcase_add_test(tc, another_protocol_is_named_as_such);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
