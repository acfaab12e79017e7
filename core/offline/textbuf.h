/*
 * Text put together by hand in one large buffer: printf would take most of a dump's
 * time. Errors are kept and told once, by textbuf_flush.
 */
#ifndef THIN_CORE_OFFLINE_TEXTBUF_H
#define THIN_CORE_OFFLINE_TEXTBUF_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/base/error.h"

#define TEXTBUF_BYTES (1u << 20)
#define TEXTBUF_LINE  1024u /* no single piece of text is longer */

/* Takes all bytes; 0 or a negative code. */
typedef int textbuf_sink_fn(void *arg, const char *bytes, size_t len);

struct textbuf {
    char *at, *edge; /* next byte; where a flush is due */
    char *bytes;
    char (*four)[4]; /* "0000" to "9999" */
    textbuf_sink_fn *sink;
    void *arg;
    int error;
};

/* -ENOMEM. */
int textbuf_init(struct textbuf *t, textbuf_sink_fn *sink, void *arg);
void textbuf_fini(struct textbuf *t);

/* Hands on what is there. The first error of any flush. */
int textbuf_flush(struct textbuf *t);

/* Called before each line: room for TEXTBUF_LINE bytes. The first error so far. */
static inline int
textbuf_line(struct textbuf *t)
{
    return t->at >= t->edge ? textbuf_flush(t) : t->error;
}

#define textbuf_str(t, literal)                           \
    do {                                                  \
        memcpy((t)->at, "" literal, sizeof(literal) - 1); \
        (t)->at += sizeof(literal) - 1;                   \
    } while (0)

void textbuf_text(struct textbuf *t, const char *s); /* cut at TEXTBUF_LINE / 2 */

/* One line at leisure, cut at TEXTBUF_LINE - 1; makes room for itself. */
void textbuf_printf(struct textbuf *t, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* A number in decimal: the first one to four digits, then four at a time. All stores are
   of one size, straight to their place, and copy more than they keep. */
static inline void
textbuf_u64(struct textbuf *t, uint64_t v)
{
    uint16_t groups[5];
    unsigned n = 0, skip;

    while (v >= 10000) {
        groups[n++] = (uint16_t)(v % 10000);
        v /= 10000;
    }
    skip = (v < 1000) + (v < 100) + (v < 10);
    store_le32(t->at, load_le32(t->four[v]) >> 8 * skip);
    t->at += 4 - skip;
    while (n) {
        memcpy(t->at, t->four[groups[--n]], 4);
        t->at += 4;
    }
}

#endif
