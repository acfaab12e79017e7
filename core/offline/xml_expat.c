/* The parts of a document that only a whole XML parser understands. */
#include <errno.h>
#include <expat.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/offline/xml_read.h"

struct expat_reader {
    struct xml_state *st;
    XML_Parser parser;
    bool muted;          /* while it is told what the scanner has read */
    uint64_t line_begin; /* lines before expat's first */
    int error;
};

static void
stop(struct expat_reader *e, int error)
{
    e->error = error;
    XML_StopParser(e->parser, XML_FALSE);
}

static void XMLCALL
on_open(void *arg, const XML_Char *name, const XML_Char **atts)
{
    struct expat_reader *e = arg;
    struct xml_attr attrs[XML_ATTRS_MAX];
    size_t nr = 0;
    int r;

    if (e->muted || e->error)
        return;
    e->st->line = e->line_begin + XML_GetCurrentLineNumber(e->parser);
    for (; atts[0]; atts += 2) {
        if (nr == XML_ATTRS_MAX) {
            stop(e, thin_fail(e->st->err, -THIN_E_INVALID,
                              "line %" PRIu64 ": more than %u attributes", e->st->line,
                              XML_ATTRS_MAX));
            return;
        }
        attrs[nr++] =
            (struct xml_attr){atts[0], atts[1], strlen(atts[0]), strlen(atts[1])};
    }
    r = xml_open_tag(e->st, name, strlen(name), attrs, nr);
    if (r < 0)
        stop(e, r);
}

static void XMLCALL
on_close(void *arg, const XML_Char *name)
{
    struct expat_reader *e = arg;
    int r;

    if (e->muted || e->error)
        return;
    e->st->line = e->line_begin + XML_GetCurrentLineNumber(e->parser);
    r = xml_close_tag(e->st, name, strlen(name));
    if (r < 0)
        stop(e, r);
}

static void XMLCALL
on_text(void *arg, const XML_Char *text, int len)
{
    struct expat_reader *e = arg;

    for (int i = 0; i < len && !e->error; i++)
        if (!strchr(" \t\r\n", text[i])) {
            e->st->line = e->line_begin + XML_GetCurrentLineNumber(e->parser);
            stop(e, thin_fail(e->st->err, -THIN_E_INVALID,
                              "line %" PRIu64 ": text between the tags", e->st->line));
        }
}

/* A dump has no use for entities of its own, and an attacker has. */
static void XMLCALL
on_doctype(void *arg, const XML_Char *name, const XML_Char *sysid, const XML_Char *pubid,
           int has_internal)
{
    struct expat_reader *e = arg;

    (void)name;
    (void)sysid;
    (void)pubid;
    (void)has_internal;
    stop(e, thin_fail(e->st->err, -THIN_E_INVALID,
                      "a document type declaration has no place in a dump"));
}

static int
feed(struct expat_reader *e, const char *bytes, size_t len, bool last)
{
    if (XML_Parse(e->parser, bytes, (int)len, last) == XML_STATUS_OK)
        return 0;
    if (e->error)
        return e->error;
    return thin_fail(e->st->err, -THIN_E_INVALID, "line %" PRIu64 ": %s",
                     e->line_begin + XML_GetCurrentLineNumber(e->parser),
                     XML_ErrorString(XML_GetErrorCode(e->parser)));
}

/* Brings expat to where the scanner stopped. */
static int
catch_up(struct expat_reader *e)
{
    int r = 0;

    e->muted = true;
    if (e->st->where == XML_IN_SUPERBLOCK || e->st->where == XML_IN_DEVICE)
        r = feed(e, "<superblock>", 12, false);
    if (r >= 0 && e->st->where == XML_IN_DEVICE)
        r = feed(e, "<device>", 8, false);
    if (r >= 0 && e->st->in_mapping)
        r = feed(e, e->st->in_mapping[0] == 's' ? "<single_mapping>" : "<range_mapping>",
                 e->st->in_mapping[0] == 's' ? 16 : 15, false);
    if (r >= 0 && e->st->where == XML_DONE)
        r = feed(e, "<superblock/>", 13, false);
    /* A declaration is right only as the very first thing. */
    if (r >= 0 && e->st->where == XML_START && e->st->blank_first)
        r = feed(e, " ", 1, false);
    e->muted = false;
    return r;
}

static int
parse_all(struct expat_reader *e, const char *bytes, size_t len, xml_pull_fn *pull,
          void *pull_arg)
{
    AUTO_FREE char *buf = malloc(XML_BUFFER_BYTES);
    int r = buf ? catch_up(e) : -ENOMEM;

    if (r >= 0)
        r = feed(e, bytes, len, false);
    while (r >= 0) {
        long n = pull(pull_arg, buf, XML_BUFFER_BYTES);

        if (n < 0)
            return thin_fail_code(e->st->err, (int)n, "read the XML");
        r = feed(e, buf, (size_t)n, n == 0);
        if (n == 0)
            break;
    }
    if (r >= 0 && e->st->where != XML_DONE)
        r = thin_fail(e->st->err, -THIN_E_INVALID, "the XML holds no superblock");
    return r;
}

int
xml_read_expat(struct xml_state *st, const char *bytes, size_t len, xml_pull_fn *pull,
               void *pull_arg)
{
    struct expat_reader e = {.st = st, .line_begin = st->line - 1};
    int r;

    e.parser = XML_ParserCreate(NULL);
    if (!e.parser)
        return thin_fail_code(st->err, -ENOMEM, "read XML");
    XML_SetUserData(e.parser, &e);
    XML_SetElementHandler(e.parser, on_open, on_close);
    XML_SetCharacterDataHandler(e.parser, on_text);
    XML_SetStartDoctypeDeclHandler(e.parser, on_doctype);
    r = parse_all(&e, bytes, len, pull, pull_arg);
    XML_ParserFree(e.parser);
    return r;
}
