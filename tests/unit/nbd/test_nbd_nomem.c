/* The n-th allocation fails, for each n until none fails: an end, never a crash or a leak. */
#include <check.h>

#include "proto/nbd/nbd_input.h"
#include "tests/lib/nomem.h"
#include "tests/unit/nbd/ram_export.h"

#ifdef NOMEM
START_TEST(each_failed_allocation_ends_the_connection_cleanly)
{
    static const char *const base[] = {"base:allocation", NULL};
    struct bytes in = {0}, out = {0};
    unsigned n = 0, transmissions = 0;
    long before = 0;
    bool failed;

    put32(&in, 3);
    put_option(&in, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    put_option(&in, NBD_OPT_LIST, NULL, 0);
    put_contexts(&in, NBD_OPT_SET_META_CONTEXT, "e0", base);
    put_go(&in, NBD_OPT_INFO, "e0", NULL);
    put_go(&in, NBD_OPT_GO, "e0", NULL);
    do {
        struct ram *ram = ram_create(NBD_TLS_OFF, 4);
        struct nbd_config config = {.ops = &ram_ops, .arg = ram};
        int r;

        nbd_conn_destroy(ram->conn);
        ram->conn = NULL;
        nomem_arm(n);
        r = nbd_conn_create(&config, &ram->conn, NULL);
        if (r == 0)
            nbd_conn_input(ram->conn, in.p, in.len);
        failed = nomem_disarm();
        if (r < 0) {
            ck_assert_int_eq(r, -ENOMEM);
            ck_assert_int_eq(nbd_conn_create(&config, &ram->conn, NULL), 0);
        }
        ram_drain_output(ram, &out, 0);
        if (nbd_conn_phase(ram->conn) == NBD_PHASE_TRANSMISSION)
            transmissions++;
        else if (r == 0)
            ck_assert_int_eq(nbd_conn_phase(ram->conn), NBD_PHASE_FINISHED);
        ram_destroy(ram);
        ck_assert_msg(n < 2 || nomem.live == before,
                      "n %u: %ld pieces of memory are lost", n, nomem.live - before);
        before = nomem.live; /* asserts may keep something, and `out` grows once */
        n++;
    } while (failed);
    ck_assert_uint_gt(n, 8);
    ck_assert_uint_ge(transmissions, 1);
    free(in.p);
    free(out.p);
}
END_TEST

static ssize_t
give_all(void *arg, void *place, size_t len)
{
    const struct bytes *in = arg;

    THIN_ASSERT(len >= in->len);
    memcpy(place, in->p, in->len);
    return (ssize_t)in->len;
}

START_TEST(bytes_that_cannot_be_kept_end_the_connection)
{
    struct ram *ram = ram_create(NBD_TLS_OFF, 2);
    struct nbd_input input = {.conn = ram->conn};
    struct bytes in = {0};
    uint8_t place[4096];

    /* The open waits, so that what stands behind it has to be kept. */
    ram->defer = true;
    put32(&in, 3);
    put_go(&in, NBD_OPT_GO, "e0", NULL);
    put_request(&in, 0, NBD_CMD_FLUSH, 1, 0, 0);
    for (unsigned n = 0;; n++) {
        ssize_t got;

        ck_assert_uint_lt(n, 100);
        nomem_arm(n);
        got = nbd_input_read(&input, place, sizeof(place), give_all, &in);
        if (!nomem_disarm()) {
            ck_assert_ptr_nonnull(input.kept);
            break;
        }
        ck_assert(got == -ENOMEM || nbd_conn_phase(ram->conn) != NBD_PHASE_HANDSHAKE);
        ck_assert_ptr_null(input.kept);
        ram_destroy(ram);
        ram = ram_create(NBD_TLS_OFF, 2);
        ram->defer = true;
        input.conn = ram->conn;
    }
    nbd_input_drop(&input);
    ram_destroy(ram);
    free(in.p);
}
END_TEST
#endif

int
main(void)
{
    Suite *s = suite_create("nbd_nomem");
    TCase *t = tcase_create("allocations");
    SRunner *r;
    int nr_failed;

#ifdef NOMEM
    tcase_add_test(t, each_failed_allocation_ends_the_connection_cleanly);
    tcase_add_test(t, bytes_that_cannot_be_kept_end_the_connection);
#endif
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    nr_failed = srunner_ntests_failed(r);
    srunner_free(r);
    return nr_failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
