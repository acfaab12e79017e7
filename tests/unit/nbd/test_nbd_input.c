/* Bytes on their way into the state machine: in any cuts, while it takes them or not. */
#include <check.h>

#include "core/base/random.h"
#include "proto/nbd/nbd_input.h"
#include "tests/unit/nbd/ram_export.h"

#define WRITES 40u

/* A socket for tests: gives at most `most` bytes at once, sometimes none. */
struct source {
    const struct bytes *bytes;
    size_t at, most;
    ssize_t dry; /* what it says when all is given */
    struct thin_random *rng;
};

static ssize_t
read_some(void *arg, void *place, size_t len)
{
    struct source *s = arg;
    size_t n = min_u64(min_u64(len, s->bytes->len - s->at),
                       s->rng ? 1 + random_below(s->rng, s->most) : s->most);

    if (s->at == s->bytes->len)
        return s->dry;
    if (n == 0 || (s->rng && random_below(s->rng, 4) == 0))
        return -EAGAIN;
    memcpy(place, s->bytes->p + s->at, n);
    s->at += n;
    return (ssize_t)n;
}

static void
drop_output(struct nbd_conn *conn)
{
    struct iovec iov[16];
    unsigned nr;

    while ((nr = nbd_conn_output(conn, iov, 16)) > 0) {
        size_t len = 0;

        for (unsigned i = 0; i < nr; i++)
            len += iov[i].iov_len;
        nbd_conn_sent(conn, len);
    }
}

/* The handshake and WRITES writes of odd lengths, one behind the other. */
static void
put_session(struct bytes *in)
{
    put32(in, 3);
    put_go(in, NBD_OPT_GO, "e0", NULL);
    for (unsigned i = 0; i < WRITES; i++) {
        uint32_t len = 1 + i * 211;

        put_request(in, 0, NBD_CMD_WRITE, i, (uint64_t)i * 16384, len);
        put_fill(in, (uint8_t)(i + 1), len);
    }
    put_request(in, 0, NBD_CMD_DISC, 0, 0, 0);
}

START_TEST(slow_answers_and_odd_cuts_lose_no_byte)
{
    struct thin_random rng;
    struct bytes in = {0};
    uint8_t place[3000];

    put_session(&in);
    random_seed(&rng, (uint64_t)_i + 1);
    struct ram *ram = ram_create(NBD_TLS_OFF, 2);
    struct nbd_input input = {.conn = ram->conn};
    struct source source = {&in, 0, 1 + random_below(&rng, 4000), -EAGAIN, &rng};
    unsigned stopped = 0;

    ram->defer = true;
    for (unsigned turns = 0; nbd_conn_phase(ram->conn) != NBD_PHASE_FINISHED; turns++) {
        ck_assert_uint_lt(turns, 1000000);
        if (nbd_input_give(&input) && nbd_input_wants(&input)) {
            ssize_t got =
                nbd_input_read(&input, place, sizeof(place), read_some, &source);

            ck_assert(got > 0 || got == -EAGAIN);
        }
        stopped += input.kept != NULL;
        if (ram->open_waits)
            ram_answer_open(ram);
        if (ram->nr_waiting > 0 && random_below(&rng, 3) == 0)
            ram_answer_one(ram, (unsigned)random_below(&rng, ram->nr_waiting));
        drop_output(ram->conn);
    }
    ck_assert_uint_eq(ram->nr_seen[NBD_OP_WRITE], WRITES);
    for (unsigned i = 0; i < WRITES; i++)
        for (uint32_t k = 0; k < 1 + i * 211; k++)
            ck_assert_uint_eq(ram->disk[(size_t)i * 16384 + k], (uint8_t)(i + 1));
    if (source.most > 500)
        ck_assert_uint_gt(stopped, 0); /* two requests at once: some bytes had to wait */
    nbd_input_drop(&input);
    ram_destroy(ram);
    free(in.p);
}
END_TEST

START_TEST(plain_bytes_behind_starttls_are_thrown_away)
{
    struct ram *ram = ram_create(NBD_TLS_REQUIRED, 2);
    struct nbd_input input = {.conn = ram->conn};
    struct bytes in = {0};
    struct source source = {&in, 0, 4096, -EAGAIN, NULL};
    uint8_t place[4096];

    put32(&in, 3);
    put_option(&in, NBD_OPT_STARTTLS, NULL, 0);
    put_go(&in, NBD_OPT_GO, "e0", NULL);
    ck_assert_int_eq(nbd_input_read(&input, place, sizeof(place), read_some, &source),
                     (ssize_t)in.len);
    ck_assert_int_eq(nbd_conn_phase(ram->conn), NBD_PHASE_WANT_TLS);
    ck_assert_ptr_null(input.kept);
    ck_assert(!nbd_input_wants(&input));
    drop_output(ram->conn);
    nbd_conn_tls_started(ram->conn);
    ck_assert(nbd_input_wants(&input));
    ck_assert_uint_eq(ram->nr_opened, 0);
    ram_destroy(ram);
    free(in.p);
}
END_TEST

START_TEST(the_end_and_errors_of_the_source_are_handed_on)
{
    static const ssize_t codes[] = {-EAGAIN, -ECONNRESET, 0};
    struct ram *ram = ram_create(NBD_TLS_OFF, 2);
    struct nbd_input input = {.conn = ram->conn};
    struct bytes in = {0};
    uint8_t place[64];

    for (unsigned i = 0; i < 3; i++) {
        struct source source = {&in, 0, 4096, codes[i], NULL};

        ck_assert(nbd_input_wants(&input));
        ck_assert_int_eq(nbd_input_read(&input, place, sizeof(place), read_some, &source),
                         codes[i]);
        ck_assert(nbd_input_give(&input));
    }
    ram_destroy(ram);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("nbd_input");
    TCase *tc = tcase_create("nbd_input");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, slow_answers_and_odd_cuts_lose_no_byte, 0, 30);
    tcase_add_test(tc, plain_bytes_behind_starttls_are_thrown_away);
    tcase_add_test(tc, the_end_and_errors_of_the_source_are_handed_on);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
