#include "core/base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LOG_LINE_MAX 2048 /* bytes; longer lines are cut */

static _Atomic int log_level = THIN_LOG_NOTICE;

static const char *const level_names[] = {"error", "warning", "notice", "debug"};

void
thin_log_set_level(enum thin_log_level level)
{
    atomic_store(&log_level, (int)level);
}

bool
thin_log_enabled(enum thin_log_level level)
{
    return (int)level <= atomic_load_explicit(&log_level, memory_order_relaxed);
}

int
thin_log_parse_level(const char *word, enum thin_log_level *ret_level)
{
    for (int i = 0; i <= THIN_LOG_DEBUG; i++)
        if (strcmp(word, level_names[i]) == 0) {
            *ret_level = (enum thin_log_level)i;
            return 0;
        }
    return -THIN_E_INVALID;
}

void
thin_log(enum thin_log_level level, const char *fmt, ...)
{
    int saved = errno;
    char line[LOG_LINE_MAX];
    va_list args;
    int head, body;
    size_t len;
    ssize_t wrote;

    if (!thin_log_enabled(level))
        return;
    head = snprintf(line, sizeof(line), "%s: ", level_names[level]);
    va_start(args, fmt);
    body = vsnprintf(line + head, sizeof(line) - (size_t)head - 1, fmt, args);
    va_end(args);
    len = (size_t)head + (body < 0 ? 0 : (size_t)body);
    if (len > sizeof(line) - 2)
        len = sizeof(line) - 2;
    line[len++] = '\n';
    /* One write for each line, so that lines of several threads never mix. */
    wrote = write(STDERR_FILENO, line, len);
    (void)wrote; /* nobody is left to tell */
    errno = saved;
}

bool
thin_log_allowed(struct thin_log_limit *limit, uint64_t now_ms, unsigned *ret_dropped)
{
    if (now_ms - limit->began_ms >= limit->period_ms) {
        limit->began_ms = now_ms;
        limit->said = 0;
    }
    if (limit->said >= limit->burst) {
        limit->dropped++;
        return false;
    }
    limit->said++;
    *ret_dropped = limit->dropped;
    limit->dropped = 0;
    return true;
}

const char *
thin_log_quote(char *buf, size_t buf_bytes, const void *bytes, size_t len_bytes)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *in = bytes;
    size_t n = 0;

    if (buf_bytes < 3)
        return "";
    buf[n++] = '"';
    for (size_t i = 0; i < len_bytes && n + 6 < buf_bytes; i++) {
        if (in[i] >= 0x20 && in[i] < 0x7f && in[i] != '"' && in[i] != '\\') {
            buf[n++] = (char)in[i];
        } else {
            buf[n++] = '\\';
            buf[n++] = 'x';
            buf[n++] = hex[in[i] >> 4];
            buf[n++] = hex[in[i] & 15];
        }
    }
    buf[n++] = '"';
    buf[n] = '\0';
    return buf;
}
