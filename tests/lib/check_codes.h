/*
 * Expectations on result codes, in the words of the error table. For tests with one
 * pool under `static struct pool_rig rig`, whose last error's words are shown.
 */
#ifndef THIN_TESTS_LIB_CHECK_CODES_H
#define THIN_TESTS_LIB_CHECK_CODES_H

#include <check.h>

#define ck_ok(expr)                                                                    \
    do {                                                                               \
        int ok_result = (expr);                                                        \
        ck_assert_msg(ok_result == 0, "%s: %s: %s", #expr, thin_error_name(ok_result), \
                      thin_error_text(&rig.err, ok_result));                           \
    } while (0)
/* ck_code(pool_create(...), EEXIST): the code by its name. */
#define ck_code(expr, code) ck_assert_str_eq(thin_error_name(expr), #code)

#endif
