/*
 * A difference of two devices as thin_delta's XML, byte for byte: the same offline and of
 * a pool that is being served.
 */
#ifndef THIN_CORE_OFFLINE_DELTA_TEXT_H
#define THIN_CORE_OFFLINE_DELTA_TEXT_H

#include "core/offline/delta.h"
#include "core/offline/textbuf.h"

struct delta_text {
    struct textbuf *text;
    bool verbose; /* with data blocks */
    /* For itself: */
    struct delta_run open; /* not verbose: joined by kind alone; len 0: none */
    bool in_kind;          /* verbose: an element is open */
    enum delta_kind kind;
};

void delta_text_begin(struct delta_text *w, const struct superblock *sb, uint64_t left,
                      uint64_t right);
/* A delta_run_fn; `arg` is the struct delta_text. */
int delta_text_run(void *arg, const struct delta_run *run);
/* Flushes. Negative: the sink's code. */
int delta_text_end(struct delta_text *w);

#endif
