/* The alphabet and the size words that every face shares: names, sizes, globs. */
#ifndef THIN_CORE_BASE_NAME_H
#define THIN_CORE_BASE_NAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"

#define THIN_NAME_MAX 127 /* bytes of a pool's or a volume's name, without NUL */

/*
 * 1 to 127 bytes of A-Z a-z 0-9 . _ + -, beginning with a letter or digit.
 * `len_bytes` may hold a NUL: then it is refused. -THIN_E_INVALID with the reason.
 */
int name_check(const char *name, size_t len_bytes, struct thin_error *err);

/*
 * "512", "64k", "10G", "1T" (powers of 1024; k M G T P, either case) in bytes; a
 * multiple of 512, above 0. -THIN_E_INVALID with the reason, naming the text.
 */
int size_parse(const char *text, uint64_t *ret_bytes, struct thin_error *err);

/* "250ms", "5s", "2m", "1h"; bare numbers are seconds. -THIN_E_INVALID. */
int duration_parse_ms(const char *text, uint64_t *ret_ms, struct thin_error *err);

/* `*` and `?` never match '/'. No other special bytes. */
bool glob_match(const char *glob, const char *text);

#endif
