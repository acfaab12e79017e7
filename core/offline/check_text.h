/*
 * What a check has found as lines for people, or as JSON: the same offline and of a
 * pool that is being served.
 */
#ifndef THIN_CORE_OFFLINE_CHECK_TEXT_H
#define THIN_CORE_OFFLINE_CHECK_TEXT_H

#include "core/offline/check.h"
#include "core/offline/textbuf.h"

struct check_text {
    bool catalogue;     /* in the summary: which device it is */
    bool metadata_snap; /* no space maps were looked at */
    bool super_block_only;
};

/* Flushes. Negative: the sink's code. */
int check_text_write(struct textbuf *t, const struct check_text *form,
                     const struct report *rep, const struct check_result *res);

/* The same as one JSON object; `good` is the judgement that an exit code gives. */
int check_json_write(struct textbuf *t, const struct report *rep,
                     const struct check_result *res, bool good);

#endif
