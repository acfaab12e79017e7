/*
 * The log: one event, one line on stderr; a sentence, then key=value.
 * Error, warning and notice speak to operators, debug to us. Any thread.
 * Names from outside go through thin_log_quote. errno survives.
 */
#ifndef THIN_CORE_BASE_LOG_H
#define THIN_CORE_BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"

enum thin_log_level { THIN_LOG_ERROR, THIN_LOG_WARNING, THIN_LOG_NOTICE, THIN_LOG_DEBUG };

/* Lines above `level` are dropped. Default: notice. */
void thin_log_set_level(enum thin_log_level level);
bool thin_log_enabled(enum thin_log_level level);

/* "error", "warning", "notice", "debug" to a level. -THIN_E_INVALID for other words. */
int thin_log_parse_level(const char *word, enum thin_log_level *ret_level);

void thin_log(enum thin_log_level level, const char *fmt, ...) PRINTF_LIKE(2, 3);

#define log_error(...)   thin_log(THIN_LOG_ERROR, __VA_ARGS__)
#define log_warning(...) thin_log(THIN_LOG_WARNING, __VA_ARGS__)
#define log_notice(...)  thin_log(THIN_LOG_NOTICE, __VA_ARGS__)
#define log_debug(...)                             \
    do {                                           \
        if (thin_log_enabled(THIN_LOG_DEBUG))      \
            thin_log(THIN_LOG_DEBUG, __VA_ARGS__); \
    } while (0)

/*
 * Limits a kind of line to `burst` in each period of `period_ms`; what was dropped
 * is told with the next line that passes. Zero-initialise with the limits.
 */
struct thin_log_limit {
    uint64_t period_ms;
    unsigned burst;
    uint64_t began_ms;
    unsigned said;
    unsigned dropped;
};

/* True if the line may be said now; *ret_dropped tells how many were not. */
bool thin_log_allowed(struct thin_log_limit *limit, uint64_t now_ms,
                      unsigned *ret_dropped);

/*
 * Writes `bytes` in double quotes, control and non-ASCII bytes as \xNN, cut to the
 * buffer. Returns `buf`, for use as an argument.
 */
const char *thin_log_quote(char *buf, size_t buf_bytes, const void *bytes,
                           size_t len_bytes);

#endif
