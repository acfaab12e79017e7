#include "client/cli/json.h"

#include <inttypes.h>
#include <string.h>

#include "core/base/assert.h"

void
json_init(struct json *json, FILE *f, bool compact)
{
    memset(json, 0, sizeof(*json));
    json->f = f;
    json->compact = compact;
}

void
json_finish(struct json *json)
{
    THIN_ASSERT(json->depth == 0);
    fputc('\n', json->f);
}

static void
new_line(struct json *json)
{
    if (json->compact)
        return;
    fputc('\n', json->f);
    for (unsigned i = 0; i < json->depth; i++)
        fputs("  ", json->f);
}

/* The length of the UTF-8 sequence at `p`, or 0: not one (also overlong, surrogates). */
static unsigned
utf8_len(const unsigned char *p, size_t left)
{
    static const unsigned char first_min[] = {0xc2, 0xe0, 0xf0};
    static const unsigned char first_max[] = {0xdf, 0xef, 0xf4};
    unsigned len = 0;

    if (p[0] < 0x80)
        return 1;
    for (unsigned i = 0; i < 3; i++)
        if (p[0] >= first_min[i] && p[0] <= first_max[i])
            len = i + 2;
    if (len == 0 || len > left)
        return 0;
    for (unsigned i = 1; i < len; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
        (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return len;
}

static void
put_char(FILE *f, unsigned char c)
{
    switch (c) {
    case '"':
        fputs("\\\"", f);
        break;
    case '\\':
        fputs("\\\\", f);
        break;
    case '\n':
        fputs("\\n", f);
        break;
    case '\t':
        fputs("\\t", f);
        break;
    case '\r':
        fputs("\\r", f);
        break;
    default:
        if (c < 0x20 || c == 0x7f)
            fprintf(f, "\\u%04x", c);
        else
            fputc(c, f);
    }
}

static void
put_string(FILE *f, const void *bytes, size_t len)
{
    const unsigned char *p = bytes;

    fputc('"', f);
    while (len > 0) {
        unsigned n = utf8_len(p, len);

        if (n == 0)
            fputs("\\ufffd", f);
        else if (n == 1)
            put_char(f, *p);
        else
            fwrite(p, 1, n, f);
        n = n ? n : 1;
        p += n;
        len -= n;
    }
    fputc('"', f);
}

/* Everything that stands before a value. */
static void
begin_value(struct json *json, const char *key)
{
    if (json->depth > 0) {
        bool *begun = &json->begun[json->depth - 1];

        THIN_ASSERT((json->kinds[json->depth - 1] == '{') == (key != NULL));
        if (*begun)
            fputs(json->compact ? ", " : ",", json->f);
        *begun = true;
        new_line(json);
    }
    if (key) {
        put_string(json->f, key, strlen(key));
        fputs(": ", json->f);
    }
}

static void
open_kind(struct json *json, const char *key, char kind)
{
    THIN_ASSERT(json->depth < JSON_DEPTH_MAX);
    begin_value(json, key);
    json->kinds[json->depth] = kind;
    json->begun[json->depth] = false;
    json->depth++;
    fputc(kind, json->f);
}

void
json_open_object(struct json *json, const char *key)
{
    open_kind(json, key, '{');
}

void
json_open_array(struct json *json, const char *key)
{
    open_kind(json, key, '[');
}

void
json_close(struct json *json)
{
    THIN_ASSERT(json->depth > 0);
    json->depth--;
    if (json->begun[json->depth])
        new_line(json);
    fputc(json->kinds[json->depth] == '{' ? '}' : ']', json->f);
}

void
json_bytes(struct json *json, const char *key, const void *bytes, size_t len_bytes)
{
    begin_value(json, key);
    put_string(json->f, bytes, len_bytes);
}

void
json_string(struct json *json, const char *key, const char *text)
{
    json_bytes(json, key, text, strlen(text));
}

void
json_u64(struct json *json, const char *key, uint64_t value)
{
    begin_value(json, key);
    fprintf(json->f, "%" PRIu64, value);
}

void
json_i64(struct json *json, const char *key, int64_t value)
{
    begin_value(json, key);
    fprintf(json->f, "%" PRId64, value);
}

void
json_bool(struct json *json, const char *key, bool value)
{
    begin_value(json, key);
    fputs(value ? "true" : "false", json->f);
}

void
json_null(struct json *json, const char *key)
{
    begin_value(json, key);
    fputs("null", json->f);
}

void
json_string_or_null(struct json *json, const char *key, const char *text)
{
    if (text && *text)
        json_string(json, key, text);
    else
        json_null(json, key);
}
