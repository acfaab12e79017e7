/* The fault and log wrappers do what their headers say. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "tests/lib/device_fault.h"
#include "tests/lib/device_log.h"
#include "tests/lib/sim_loop.h"

enum { SIZE = 64 * 1024 };

static struct thin_loop *loop;
static struct device *mem, *dev;
static struct device_log *dlog;

static void
begin_fault(void)
{
    loop = sim_loop_create(1);
    ck_assert_int_eq(device_mem_open(loop, SIZE, &mem), 0);
    dev = device_fault_open(mem);
}

static void
end(void)
{
    device_close_wait(dev);
    sim_loop_destroy(loop);
    device_log_destroy(take(dlog));
}

static int
write_byte(int byte, uint64_t offset, uint64_t len)
{
    static char buf[SIZE];

    memset(buf, byte, len);
    return device_write_wait(dev, offset, buf, len, 0);
}

static int
byte_at(struct device *d, uint64_t offset)
{
    char buf[512];

    ck_assert_int_eq(device_read_wait(d, offset - offset % 512, buf, 512), 0);
    return buf[offset % 512];
}

START_TEST(the_nth_fails_and_only_it)
{
    begin_fault();
    device_fault_order(dev, FAULT_FAIL, FAULT_OP(DEVICE_WRITE), 3, 1, -EIO, 0);
    ck_assert_int_eq(write_byte(1, 0, 512), 0);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    ck_assert_int_eq(write_byte(2, 0, 512), 0);
    ck_assert_int_eq(write_byte(3, 0, 512), -EIO);
    ck_assert_int_eq(byte_at(dev, 0), 2);
    ck_assert_int_eq(write_byte(4, 0, 512), 0);
    ck_assert_uint_eq(device_fault_nr_met(dev), 1);
    ck_assert_uint_eq(device_fault_nr_op(dev, DEVICE_WRITE), 4);
    end();
}
END_TEST

START_TEST(all_fail_until_cleared)
{
    begin_fault();
    device_fault_order(dev, FAULT_FAIL, FAULT_OP(DEVICE_FLUSH), 1, 0, -ENOSPC, 0);
    for (int i = 0; i < 5; i++)
        ck_assert_int_eq(device_flush_wait(dev), -ENOSPC);
    device_fault_clear(dev);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    end();
}
END_TEST

START_TEST(a_write_may_happen_and_be_said_to_have_failed)
{
    begin_fault();
    device_fault_order(dev, FAULT_FAIL_AFTER, FAULT_OP(DEVICE_WRITE), 1, 1, -EIO, 0);
    ck_assert_int_eq(write_byte(7, 0, 512), -EIO);
    ck_assert_int_eq(byte_at(dev, 0), 7);
    end();
}
END_TEST

START_TEST(a_write_may_be_torn_loudly_or_silently)
{
    begin_fault();
    device_fault_order(dev, FAULT_TEAR, FAULT_OP(DEVICE_WRITE), 1, 1, -EIO, 1024);
    device_fault_order(dev, FAULT_TEAR_SILENT, FAULT_OP(DEVICE_WRITE), 2, 1, 0, 0);
    ck_assert_int_eq(write_byte(7, 0, 4096), -EIO);
    ck_assert_int_eq(byte_at(dev, 1023), 7);
    ck_assert_int_eq(byte_at(dev, 1024), 0);
    ck_assert_int_eq(write_byte(8, 0, 4096), 0);
    ck_assert_int_eq(byte_at(dev, 0), 7);
    end();
}
END_TEST

START_TEST(a_read_may_be_corrupted)
{
    char buf[1024];

    begin_fault();
    ck_assert_int_eq(write_byte(7, 0, 1024), 0);
    device_fault_order(dev, FAULT_CORRUPT, FAULT_OP(DEVICE_READ), 1, 1, 0, 600);
    ck_assert_int_eq(device_read_wait(dev, 0, buf, sizeof(buf)), 0);
    for (int i = 0; i < 1024; i++)
        ck_assert_int_eq(buf[i], i == 600 ? (char)~7 : 7);
    ck_assert_int_eq(byte_at(dev, 600), 7);
    end();
}
END_TEST

START_TEST(a_request_may_be_delayed)
{
    uint64_t t;

    begin_fault();
    t = loop_now_ns(loop);
    device_fault_order(dev, FAULT_DELAY, FAULT_ALL_OPS, 1, 1, 0, 5 * NS_PER_SEC);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    ck_assert_uint_eq(loop_now_ns(loop), t + 5 * NS_PER_SEC);
    end();
}
END_TEST

static unsigned nr_done;

static void
count_done(struct device_io *io, int result)
{
    (void)io;
    ck_assert_int_eq(result, 0);
    nr_done++;
}

START_TEST(held_requests_start_when_released)
{
    struct device_io io[3];

    begin_fault();
    nr_done = 0;
    device_fault_order(dev, FAULT_HOLD, FAULT_OP(DEVICE_FLUSH), 1, 0, 0, 0);
    for (int i = 0; i < 3; i++) {
        io[i] = (struct device_io){.op = DEVICE_FLUSH, .done = count_done};
        device_submit(dev, &io[i]);
    }
    sim_loop_run_until_idle(loop, 0);
    ck_assert_uint_eq(nr_done, 0);
    ck_assert_uint_eq(device_fault_nr_held(dev), 3);
    ck_assert_uint_eq(device_fault_release(dev), 3);
    sim_loop_run_until_idle(loop, 0);
    ck_assert_uint_eq(nr_done, 3);
    end();
}
END_TEST

START_TEST(a_prefix_of_the_log_gives_the_state_of_then)
{
    static char b[SIZE];
    struct device *copy;
    char *states[20];
    size_t ends[20];

    loop = sim_loop_create(1);
    dlog = device_log_create();
    ck_assert_int_eq(device_mem_open(loop, SIZE, &mem), 0);
    dev = device_log_open(dlog, mem);
    for (int i = 0; i < 20; i++) {
        if (i % 5 == 4)
            ck_assert_int_eq(device_zero_wait(dev, i * 512u, 4096, 0), 0);
        else
            ck_assert_int_eq(write_byte(i + 1, i * 1024u, 3072), 0);
        ck_assert_int_eq(device_flush_wait(dev), 0);
        states[i] = malloc(SIZE);
        ck_assert_ptr_nonnull(states[i]);
        ends[i] = device_log_length(dlog);
        ck_assert_int_eq(device_read_wait(mem, 0, states[i], SIZE), 0);
    }
    ck_assert_int_eq(device_mem_open(loop, SIZE, &copy), 0);
    for (int i = 0; i < 20; i++) {
        ck_assert_int_eq(device_log_replay(dlog, i ? ends[i - 1] : 0, ends[i], copy), 0);
        ck_assert_int_eq(device_read_wait(copy, 0, b, SIZE), 0);
        ck_assert_mem_eq(states[i], b, SIZE);
        free(states[i]);
    }
    device_close_wait(copy);
    end();
}
END_TEST

START_TEST(the_log_knows_what_a_flush_covers)
{
    static char buf[512];
    struct iovec iov = {buf, 512};
    struct device_io w = {
        .op = DEVICE_WRITE, .len = 512, .iov = &iov, .nr_iov = 1, .done = count_done};
    struct device_io f = {.op = DEVICE_FLUSH, .done = count_done};

    loop = sim_loop_create(1);
    dlog = device_log_create();
    ck_assert_int_eq(device_mem_open(loop, SIZE, &mem), 0);
    dev = device_log_open(dlog, mem);
    ck_assert_int_eq(write_byte(1, 0, 512), 0); /* 0 */
    device_submit(dev, &w);                     /* 1 */
    device_submit(dev, &f);                     /* 2: submitted before 1 was done */
    sim_loop_run_until_idle(loop, 0);
    ck_assert_int_eq(device_flush_wait(dev), 0);                          /* 3 */
    ck_assert_int_eq(device_write_wait(dev, 0, buf, 512, DEVICE_FUA), 0); /* 4 */
    ck_assert(device_log_covers(dlog, 2, 0));
    ck_assert(!device_log_covers(dlog, 2, 1));
    ck_assert(device_log_covers(dlog, 3, 1));
    ck_assert(!device_log_covers(dlog, 3, 4));
    ck_assert(device_log_covers(dlog, 4, 4));
    ck_assert(!device_log_covers(dlog, 4, 1));
    end();
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("wrappers");
    TCase *tc = tcase_create("wrappers");
    SRunner *sr;
    int failed;

    tcase_add_test(tc, the_nth_fails_and_only_it);
    tcase_add_test(tc, all_fail_until_cleared);
    tcase_add_test(tc, a_write_may_happen_and_be_said_to_have_failed);
    tcase_add_test(tc, a_write_may_be_torn_loudly_or_silently);
    tcase_add_test(tc, a_read_may_be_corrupted);
    tcase_add_test(tc, a_request_may_be_delayed);
    tcase_add_test(tc, held_requests_start_when_released);
    tcase_add_test(tc, a_prefix_of_the_log_gives_the_state_of_then);
    tcase_add_test(tc, the_log_knows_what_a_flush_covers);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
