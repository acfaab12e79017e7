#define THIN_ERROR_C
#include "core/base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct error_row {
    int code;
    int err;
    const char *name;
    const char *text;
};

static const struct error_row error_rows[] = {
#define THIN_ERROR_ROW(name, number, err, text) {-(number), (err), #name, (text)},
    THIN_ERROR_TABLE(THIN_ERROR_ROW)
#undef THIN_ERROR_ROW
};

static const struct error_row *
find_row(int code)
{
    for (size_t i = 0; i < sizeof(error_rows) / sizeof(error_rows[0]); i++)
        if (error_rows[i].code == code)
            return &error_rows[i];
    return NULL;
}

const char *
thin_strerror(int code)
{
    const struct error_row *row = find_row(code);
    const char *text;

    if (code >= 0)
        return "success";
    if (row)
        return row->text;
    text = strerrordesc_np(-code);
    return text ? text : "unknown error";
}

const char *
thin_error_name(int code)
{
    const struct error_row *row = find_row(code);
    const char *name;

    if (code >= 0)
        return "OK";
    if (row)
        return row->name;
    name = strerrorname_np(-code);
    return name ? name : "UNKNOWN";
}

int
thin_error_errno(int code)
{
    const struct error_row *row = find_row(code);

    if (code >= 0)
        return 0;
    if (row)
        return row->err;
    return code > -1000 ? -code : EIO;
}

void
thin_error_init(struct thin_error *err)
{
    err->code = 0;
    err->text[0] = '\0';
}

int
thin_fail(struct thin_error *err, int code, const char *fmt, ...)
{
    int saved = errno;
    va_list args;

    if (err) {
        err->code = code;
        va_start(args, fmt);
        vsnprintf(err->text, sizeof(err->text), fmt, args);
        va_end(args);
    }
    errno = saved;
    return code;
}

/* Puts "phrase: rest" in err->text; what does not fit is cut at the end. */
static void
join(struct thin_error *err, const char *phrase, const char *rest)
{
    char joined[THIN_ERROR_TEXT_MAX];
    size_t n = 0;

    for (const char *s = phrase; *s && n + 1 < sizeof(joined); s++)
        joined[n++] = *s;
    for (const char *s = ": "; *s && n + 1 < sizeof(joined); s++)
        joined[n++] = *s;
    for (const char *s = rest; *s && n + 1 < sizeof(joined); s++)
        joined[n++] = *s;
    joined[n] = '\0';
    memcpy(err->text, joined, n + 1);
}

int
thin_fail_code(struct thin_error *err, int code, const char *fmt, ...)
{
    int saved = errno;
    char phrase[THIN_ERROR_TEXT_MAX];
    va_list args;

    if (err) {
        va_start(args, fmt);
        vsnprintf(phrase, sizeof(phrase), fmt, args);
        va_end(args);
        err->code = code;
        join(err, phrase, thin_strerror(code));
    }
    errno = saved;
    return code;
}

int
thin_wrap(struct thin_error *err, int code, const char *fmt, ...)
{
    int saved = errno;
    char phrase[THIN_ERROR_TEXT_MAX];
    char rest[THIN_ERROR_TEXT_MAX];
    va_list args;

    if (err) {
        va_start(args, fmt);
        vsnprintf(phrase, sizeof(phrase), fmt, args);
        va_end(args);
        snprintf(rest, sizeof(rest), "%s", err->code ? err->text : thin_strerror(code));
        err->code = code;
        join(err, phrase, rest);
    }
    errno = saved;
    return code;
}

const char *
thin_error_text(const struct thin_error *err, int code)
{
    return err && err->code && err->text[0] ? err->text : thin_strerror(code);
}

bool
is_damage(int code)
{
    return code == -THIN_E_CHECKSUM || code == -THIN_E_BAD_BLOCK;
}
