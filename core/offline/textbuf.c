#include "core/offline/textbuf.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

int
textbuf_init(struct textbuf *t, textbuf_sink_fn *sink, void *arg)
{
    memset(t, 0, sizeof(*t));
    t->bytes = malloc(TEXTBUF_BYTES);
    t->four = malloc(10000 * sizeof(*t->four));
    if (!t->bytes || !t->four) {
        textbuf_fini(t);
        return -ENOMEM;
    }
    for (unsigned i = 0; i < 10000; i++) {
        t->four[i][0] = (char)('0' + i / 1000);
        t->four[i][1] = (char)('0' + i / 100 % 10);
        t->four[i][2] = (char)('0' + i / 10 % 10);
        t->four[i][3] = (char)('0' + i % 10);
    }
    t->at = t->bytes;
    t->edge = t->bytes + TEXTBUF_BYTES - TEXTBUF_LINE;
    t->sink = sink;
    t->arg = arg;
    return 0;
}

void
textbuf_fini(struct textbuf *t)
{
    free(t->bytes);
    free(t->four);
    memset(t, 0, sizeof(*t));
}

int
textbuf_flush(struct textbuf *t)
{
    size_t len = (size_t)(t->at - t->bytes);

    t->at = t->bytes;
    if (t->error == 0 && len > 0)
        t->error = t->sink(t->arg, t->bytes, len);
    return t->error;
}

void
textbuf_text(struct textbuf *t, const char *s)
{
    size_t len = strnlen(s, TEXTBUF_LINE / 2);

    memcpy(t->at, s, len);
    t->at += len;
}

void
textbuf_printf(struct textbuf *t, const char *fmt, ...)
{
    va_list ap;
    int n;

    if (textbuf_line(t) < 0)
        return;
    va_start(ap, fmt);
    n = vsnprintf(t->at, TEXTBUF_LINE, fmt, ap);
    va_end(ap);
    if (n > 0)
        t->at += (size_t)n < TEXTBUF_LINE ? (size_t)n : TEXTBUF_LINE - 1;
}
