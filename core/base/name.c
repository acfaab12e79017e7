#include "core/base/name.h"

#include <ctype.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/log.h"

static bool
is_alnum(unsigned char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

int
name_check(const char *name, size_t len_bytes, struct thin_error *err)
{
    char quoted[128];

    if (len_bytes == 0)
        return thin_fail(err, -THIN_E_INVALID, "empty name");
    if (len_bytes > THIN_NAME_MAX)
        return thin_fail(err, -THIN_E_INVALID,
                         "name of %zu bytes, at most %d are allowed", len_bytes,
                         THIN_NAME_MAX);
    for (size_t i = 0; i < len_bytes; i++) {
        unsigned char c = (unsigned char)name[i];

        if (is_alnum(c) || (i > 0 && c != '\0' && strchr("._+-", c)))
            continue;
        return thin_fail(err, -THIN_E_INVALID,
                         "bad name %s: names are made of A-Z a-z 0-9 . _ + - and begin "
                         "with a letter or digit",
                         thin_log_quote(quoted, sizeof(quoted), name, len_bytes));
    }
    return 0;
}

/* Digits from *text; false without a digit or on overflow. */
static bool
parse_digits(const char **text, uint64_t *ret)
{
    const char *p = *text;
    uint64_t v = 0;

    if (*p < '0' || *p > '9')
        return false;
    for (; *p >= '0' && *p <= '9'; p++)
        if (!checked_mul_u64(v, 10, &v) || !checked_add_u64(v, (uint64_t)(*p - '0'), &v))
            return false;
    *text = p;
    *ret = v;
    return true;
}

static int
bad_text(struct thin_error *err, const char *what, const char *text, const char *wanted)
{
    char quoted[128];

    return thin_fail(err, -THIN_E_INVALID, "bad %s %s: %s", what,
                     thin_log_quote(quoted, sizeof(quoted), text, strlen(text)), wanted);
}

int
size_parse(const char *text, uint64_t *ret_bytes, struct thin_error *err)
{
    static const char units[] = "kMGTP";
    const char *p = text;
    uint64_t v;

    if (!parse_digits(&p, &v))
        return bad_text(err, "size", text, "write it as 512, 64k, 10G or 1T");
    if (*p) {
        const char *unit = NULL;

        for (const char *u = units; *u; u++)
            if (tolower((unsigned char)*p) == tolower((unsigned char)*u))
                unit = u;
        if (!unit || p[1])
            return bad_text(err, "size", text, "write it as 512, 64k, 10G or 1T");
        for (const char *u = units; u <= unit; u++)
            if (!checked_mul_u64(v, 1024, &v))
                return bad_text(err, "size", text, "too large");
    }
    if (v == 0 || v % SECTOR_SIZE)
        return bad_text(err, "size", text, "must be a multiple of 512 and above 0");
    *ret_bytes = v;
    return 0;
}

int
duration_parse_ms(const char *text, uint64_t *ret_ms, struct thin_error *err)
{
    static const struct {
        const char *unit;
        uint64_t ms;
    } units[] = {{"", 1000}, {"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}};
    const char *p = text;
    uint64_t v;

    if (!parse_digits(&p, &v))
        return bad_text(err, "duration", text, "write it as 250ms, 5s, 2m or 1h");
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
        if (strcmp(p, units[i].unit) == 0) {
            if (!checked_mul_u64(v, units[i].ms, &v))
                return bad_text(err, "duration", text, "too large");
            *ret_ms = v;
            return 0;
        }
    return bad_text(err, "duration", text, "write it as 250ms, 5s, 2m or 1h");
}

bool
glob_match(const char *glob, const char *text)
{
    const char *star = NULL, *star_text = NULL;

    /* Greedy with one step back: the last star takes one byte more each time. */
    for (;;) {
        if (*glob == '*') {
            star = glob++;
            star_text = text;
        } else if (*text && (*glob == *text || (*glob == '?' && *text != '/'))) {
            glob++;
            text++;
        } else if (!*text && !*glob) {
            return true;
        } else if (star && *star_text && *star_text != '/') {
            glob = star + 1;
            text = ++star_text;
        } else {
            return false;
        }
    }
}
