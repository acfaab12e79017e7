#include "core/offline/xml_read.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"

/* What one step of the scanner came to. */
enum step { STEP_GOOD, STEP_STRANGE, STEP_SHORT };

struct scanner {
    struct xml_state *st;
    xml_pull_fn *pull;
    void *pull_arg;
    char *buf; /* XML_BUFFER_BYTES + 1, a NUL behind the last byte */
    char *at, *end;
    bool at_end; /* pull has said so */
};

/* Keeps what is not used yet, and reads more behind it. */
static int
refill(struct scanner *s)
{
    size_t left = (size_t)(s->end - s->at);
    long n;

    memmove(s->buf, s->at, left);
    s->at = s->buf;
    s->end = s->buf + left;
    while (!s->at_end && (size_t)(s->end - s->buf) < XML_BUFFER_BYTES) {
        n = s->pull(s->pull_arg, s->end, XML_BUFFER_BYTES - (size_t)(s->end - s->buf));
        if (n < 0)
            return thin_fail_code(s->st->err, (int)n, "read the XML");
        if (n == 0)
            s->at_end = true;
        s->end += n;
    }
    *s->end = '\0';
    return 0;
}

static void
skip_blanks(struct scanner *s)
{
    if (s->at < s->end && *s->at != '<')
        s->st->blank_first = true;
    while (s->at < s->end) {
        switch (*s->at) {
        case '\n':
            s->st->line++;
            s->at++;
            break;
        case ' ':
        case '\t':
        case '\r':
            s->at++;
            break;
        default:
            return;
        }
    }
}

static bool
is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || c == '_' || (c >= 'A' && c <= 'Z') ||
           (c >= '0' && c <= '9');
}

static const char *
skip_name(const char *p)
{
    while (is_name_char(*p))
        p++;
    return p;
}

/*
 * Attributes up to '>' or '/'. Only the plainest kind is taken here: name="value" with
 * one blank before it and nothing in the value that XML gives a meaning. The buffer's
 * NUL stops every loop.
 */
static enum step
scan_attrs(const char **pp, struct xml_attr *attrs, size_t *ret_nr)
{
    const char *p = *pp;
    size_t nr = 0;

    while (*p == ' ') {
        struct xml_attr *a = &attrs[nr];

        while (*p == ' ')
            p++;
        if (*p == '/' || *p == '>')
            break;
        if (nr == XML_ATTRS_MAX)
            return STEP_STRANGE;
        a->name = p;
        p = skip_name(p);
        a->name_len = (size_t)(p - a->name);
        if (a->name_len == 0 || a->name[0] <= '9' || p[0] != '=' || p[1] != '"')
            return *p ? STEP_STRANGE : STEP_SHORT;
        p += 2;
        a->value = p;
        while (*p != '"' && (unsigned char)*p >= 0x20 && *p != '&' && *p != '<' &&
               (unsigned char)*p < 0x7f)
            p++;
        if (*p != '"')
            return *p ? STEP_STRANGE : STEP_SHORT;
        a->value_len = (size_t)(p - a->value);
        p++;
        /* XML forbids a repeated name; expat says so. */
        for (size_t i = 0; i < nr; i++)
            if (attrs[i].name_len == a->name_len &&
                memcmp(attrs[i].name, a->name, a->name_len) == 0)
                return STEP_STRANGE;
        nr++;
    }
    *pp = p;
    *ret_nr = nr;
    return STEP_GOOD;
}

/* One tag at s->at, which points to '<'. Negative: an error. */
static int
scan_tag(struct scanner *s, enum step *ret_step)
{
    struct xml_attr attrs[XML_ATTRS_MAX];
    const char *p = s->at + 1, *name;
    bool closing = *p == '/', alone = false;
    size_t len, nr = 0;
    int r;

    if (closing)
        p++;
    name = p;
    p = skip_name(p);
    len = (size_t)(p - name);
    *ret_step = len && name[0] > '9' ? STEP_GOOD : *p ? STEP_STRANGE : STEP_SHORT;
    if (*ret_step == STEP_GOOD && !closing)
        *ret_step = scan_attrs(&p, attrs, &nr);
    if (*ret_step != STEP_GOOD)
        return 0;
    if (!closing && *p == '/') {
        alone = true;
        p++;
    }
    if (*p != '>') {
        *ret_step = *p ? STEP_STRANGE : STEP_SHORT;
        return 0;
    }
    r = closing ? 0 : xml_open_tag(s->st, name, len, attrs, nr);
    if (r >= 0 && (closing || alone))
        r = xml_close_tag(s->st, name, len);
    s->at += p + 1 - s->at;
    return r;
}

static int
cut_short(struct scanner *s)
{
    return thin_fail(s->st->err, -THIN_E_INVALID,
                     "line %" PRIu64 ": the XML ends in the middle", s->st->line);
}

/* True in *ret_strange when the rest is for expat. */
static int
scan(struct scanner *s, bool *ret_strange)
{
    int r;

    for (;;) {
        enum step step;

        skip_blanks(s);
        if (s->end - s->at < (long)XML_TAG_MAX && !s->at_end) {
            r = refill(s);
            if (r < 0)
                return r;
            continue;
        }
        if (s->at == s->end)
            return s->st->where == XML_DONE ? 0 : cut_short(s);
        if (*s->at != '<') {
            *ret_strange = true;
            return 0;
        }
        r = scan_tag(s, &step);
        if (r < 0)
            return r;
        /* A tag that does not end in so many bytes is not one of a dump. */
        if (step != STEP_GOOD) {
            *ret_strange = true;
            return 0;
        }
    }
}

int
xml_read(xml_pull_fn *pull, void *pull_arg, const struct ir_visitor *visitor, void *arg,
         struct thin_error *err)
{
    AUTO_FREE char *buf = malloc(XML_BUFFER_BYTES + 1);
    struct xml_state st = {.visitor = visitor, .arg = arg, .err = err, .line = 1};
    struct scanner s = {
        .st = &st, .pull = pull, .pull_arg = pull_arg, .buf = buf, .at = buf, .end = buf};
    bool strange = false;
    int r;

    if (!buf)
        return thin_fail_code(err, -ENOMEM, "read XML");
    *buf = '\0';
    r = scan(&s, &strange);
    if (r >= 0 && strange)
        r = xml_read_expat(&st, s.at, (size_t)(s.end - s.at), pull, pull_arg);
    return r < 0 ? r : visitor->end(arg);
}
