/* bytes.h, checked.h, cleanup.h, crc32c.h and random.h: the small tools. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/crc32c.h"
#include "core/base/random.h"

START_TEST(integers_have_their_order_at_any_alignment)
{
    static const uint8_t le[8] = {0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01};
    static const uint8_t be[8] = {0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef};

    for (size_t at = 0; at < 8; at++) {
        uint8_t b[16];

        memset(b, 0x5a, sizeof(b));
        store_le64(b + at, 0x0123456789abcdefu);
        ck_assert_mem_eq(b + at, le, 8);
        ck_assert_uint_eq(load_le64(b + at), 0x0123456789abcdefu);
        ck_assert_uint_eq(load_be64(b + at), 0xefcdab8967452301u);
        store_be64(b + at, 0x0123456789abcdefu);
        ck_assert_mem_eq(b + at, be, 8);
        store_le32(b + at, 0x89abcdefu);
        ck_assert_mem_eq(b + at, le, 4);
        ck_assert_uint_eq(load_le32(b + at), 0x89abcdefu);
        store_be32(b + at, 0x01234567u);
        ck_assert_mem_eq(b + at, be, 4);
        ck_assert_uint_eq(load_be32(b + at), 0x01234567u);
        store_le16(b + at, 0xcdef);
        ck_assert_mem_eq(b + at, le, 2);
        ck_assert_uint_eq(load_le16(b + at), 0xcdef);
        store_be16(b + at, 0x0123);
        ck_assert_mem_eq(b + at, be, 2);
        ck_assert_uint_eq(load_be16(b + at), 0x0123);
        for (size_t i = 0; i < sizeof(b); i++)
            if (i < at || i >= at + 8)
                ck_assert_uint_eq(b[i], 0x5a);
    }
}
END_TEST

START_TEST(checked_arithmetic_knows_the_edge)
{
    uint64_t v;

    ck_assert(checked_add_u64(UINT64_MAX - 5, 5, &v));
    ck_assert_uint_eq(v, UINT64_MAX);
    ck_assert(!checked_add_u64(UINT64_MAX - 5, 6, &v));
    ck_assert(!checked_add_u64(UINT64_MAX, UINT64_MAX, &v));
    ck_assert(checked_add_u64(0, 0, &v));
    ck_assert_uint_eq(v, 0);
    ck_assert(checked_mul_u64(1ull << 32, (1ull << 32) - 1, &v));
    ck_assert_uint_eq(v, 0xffffffff00000000u);
    ck_assert(!checked_mul_u64(1ull << 32, 1ull << 32, &v));
    ck_assert(checked_mul_u64(UINT64_MAX, 1, &v));
    ck_assert_uint_eq(v, UINT64_MAX);
    ck_assert(checked_mul_u64(UINT64_MAX, 0, &v));
    ck_assert_uint_eq(v, 0);
}
END_TEST

START_TEST(a_range_is_inside_only_as_a_whole)
{
    ck_assert(range_inside(0, 10, 10));
    ck_assert(range_inside(9, 1, 10));
    ck_assert(range_inside(10, 0, 10));
    ck_assert(range_inside(0, 0, 0));
    ck_assert(!range_inside(9, 2, 10));
    ck_assert(!range_inside(10, 1, 10));
    ck_assert(!range_inside(11, 0, 10));
    /* The sum would wrap. */
    ck_assert(!range_inside(5, UINT64_MAX, 10));
    ck_assert(!range_inside(UINT64_MAX, 2, 10));
    ck_assert(range_inside(UINT64_MAX - 1, 1, UINT64_MAX));
}
END_TEST

START_TEST(rounding_takes_any_unit)
{
    ck_assert_uint_eq(div_up_u64(0, 7), 0);
    ck_assert_uint_eq(div_up_u64(1, 7), 1);
    ck_assert_uint_eq(div_up_u64(7, 7), 1);
    ck_assert_uint_eq(div_up_u64(8, 7), 2);
    ck_assert_uint_eq(div_up_u64(UINT64_MAX, 2), 1ull << 63); /* the usual form wraps */
    ck_assert_uint_eq(round_down_u64(196607, 196608), 0);
    ck_assert_uint_eq(round_down_u64(196609, 196608), 196608);
    ck_assert_uint_eq(round_up_u64(0, 4096), 0);
    ck_assert_uint_eq(round_up_u64(1, 4096), 4096);
    ck_assert_uint_eq(round_up_u64(4096, 4096), 4096);
    ck_assert_uint_eq(round_up_u64(196609, 196608), 393216);
    ck_assert_uint_eq(min_u64(3, 4), 3);
    ck_assert_uint_eq(max_u64(3, UINT64_MAX), UINT64_MAX);
}
END_TEST

START_TEST(taking_leaves_nothing_behind)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC), other;
    void *p = malloc(1), *q;

    q = take(p);
    ck_assert_ptr_null(p);
    ck_assert_ptr_nonnull(q);
    free(q);
    other = take_fd(&fd);
    ck_assert_int_eq(fd, -1);
    ck_assert_int_ge(other, 0);
    {
        AUTO_FD int scoped = other;

        ck_assert_int_ge(fcntl(scoped, F_GETFD), 0);
    }
    ck_assert_int_eq(fcntl(other, F_GETFD), -1);
    ck_assert_int_eq(errno, EBADF);
}
END_TEST

/* RFC 3720, B.4 (with the final inversion), and FORMAT.md (without it). */
START_TEST(crc32c_gives_the_known_values)
{
    static uint8_t zeros[4092];
    uint8_t b[32];

    ck_assert_uint_eq(crc32c("123456789", 9), 0xE3069283u);
    ck_assert_uint_eq(crc32c_update(CRC32C_INIT, "123456789", 9), 0x1CF96D7Cu);
    ck_assert_uint_eq(crc32c_update(CRC32C_INIT, zeros, sizeof(zeros)), 0x58CDA791u);
    ck_assert_uint_eq(crc32c("", 0), 0);
    memset(b, 0, sizeof(b));
    ck_assert_uint_eq(crc32c(b, 32), 0x8A9136AAu);
    memset(b, 0xff, sizeof(b));
    ck_assert_uint_eq(crc32c(b, 32), 0x62A8AB43u);
    for (uint8_t i = 0; i < 32; i++)
        b[i] = i;
    ck_assert_uint_eq(crc32c(b, 32), 0x46DD794Eu);
    for (uint8_t i = 0; i < 32; i++)
        b[i] = (uint8_t)(31 - i);
    ck_assert_uint_eq(crc32c(b, 32), 0x113FDB5Cu);
}
END_TEST

static uint32_t
naive_crc32c(uint32_t crc, const uint8_t *p, size_t len)
{
    while (len--) {
        crc ^= *p++;
        for (int k = 0; k < 8; k++)
            crc = crc >> 1 ^ (0x82F63B78u & (0u - (crc & 1)));
    }
    return crc;
}

START_TEST(crc32c_goes_on_where_it_stopped_at_any_cut)
{
    struct thin_random rng;
    uint8_t b[600];

    random_seed(&rng, 1);
    for (size_t i = 0; i < sizeof(b); i++)
        b[i] = (uint8_t)random_u64(&rng);
    for (size_t len = 0; len <= sizeof(b); len++) {
        size_t cut = len ? random_below(&rng, len) : 0;
        uint32_t wanted = naive_crc32c(CRC32C_INIT, b, len);
        uint32_t first = crc32c_update(CRC32C_INIT, b, cut);

        ck_assert_uint_eq(crc32c_update(CRC32C_INIT, b, len), wanted);
        ck_assert_uint_eq(crc32c_update(first, b + cut, len - cut), wanted);
    }
}
END_TEST

START_TEST(the_same_seed_gives_the_same_numbers_on_every_machine)
{
    struct thin_random a, b;

    random_seed(&a, 42);
    random_seed(&b, 42);
    for (int i = 0; i < 1000; i++)
        ck_assert_uint_eq(random_u64(&a), random_u64(&b));
    random_seed(&b, 43);
    ck_assert_uint_ne(random_u64(&a), random_u64(&b));
    /* xoshiro256** from the state 1, 2, 3, 4: the authors' first numbers. */
    a = (struct thin_random){{1, 2, 3, 4}};
    ck_assert_uint_eq(random_u64(&a), 11520);
    ck_assert_uint_eq(random_u64(&a), 0);
    ck_assert_uint_eq(random_u64(&a), 1509978240);
    ck_assert_uint_eq(random_u64(&a), 1215971899390074240u);
    /* splitmix64 from 0 fills the state. */
    random_seed(&a, 0);
    ck_assert_uint_eq(a.state[0], 0xe220a8397b1dcdafu);
    ck_assert_uint_eq(a.state[1], 0x6e789e6aa1b965f4u);
    ck_assert_uint_eq(a.state[2], 0x06c45d188009454fu);
}
END_TEST

START_TEST(random_below_is_below_and_even)
{
    struct thin_random rng;
    unsigned counts[7] = {0};

    random_seed(&rng, 7);
    for (int i = 0; i < 70000; i++) {
        uint64_t r = random_below(&rng, 7);

        ck_assert_uint_lt(r, 7);
        counts[r]++;
    }
    for (int i = 0; i < 7; i++) {
        ck_assert_uint_gt(counts[i], 9500);
        ck_assert_uint_lt(counts[i], 10500);
    }
    for (int i = 0; i < 100; i++)
        ck_assert_uint_eq(random_below(&rng, 1), 0);
    /* A modulus alone would give the lower half twice as often. */
    counts[0] = 0;
    for (int i = 0; i < 10000; i++)
        counts[0] += random_below(&rng, 3ull << 62) < (1ull << 63);
    ck_assert_uint_gt(counts[0], 6300);
    ck_assert_uint_lt(counts[0], 7000);
}
END_TEST

START_TEST(secrets_differ)
{
    uint8_t a[300] = {0}, b[300] = {0};

    ck_assert_int_eq(random_secret(a, sizeof(a)), 0);
    ck_assert_int_eq(random_secret(b, sizeof(b)), 0);
    ck_assert_mem_ne(a, b, sizeof(a));
    ck_assert_mem_ne(a, a + 150, 150);
    ck_assert_int_eq(random_secret(a, 0), 0);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("bytes");
    TCase *tc = tcase_create("bytes");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 30);
    tcase_add_test(tc, integers_have_their_order_at_any_alignment);
    tcase_add_test(tc, checked_arithmetic_knows_the_edge);
    tcase_add_test(tc, a_range_is_inside_only_as_a_whole);
    tcase_add_test(tc, rounding_takes_any_unit);
    tcase_add_test(tc, taking_leaves_nothing_behind);
    tcase_add_test(tc, crc32c_gives_the_known_values);
    tcase_add_test(tc, crc32c_goes_on_where_it_stopped_at_any_cut);
    tcase_add_test(tc, the_same_seed_gives_the_same_numbers_on_every_machine);
    tcase_add_test(tc, random_below_is_below_and_even);
    tcase_add_test(tc, secrets_differ);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
