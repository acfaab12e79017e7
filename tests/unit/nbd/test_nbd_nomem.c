/* The n-th allocation fails, for each n until none fails: an end, never a crash or a leak. */
#include <check.h>

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
#endif
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    nr_failed = srunner_ntests_failed(r);
    srunner_free(r);
    return nr_failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
