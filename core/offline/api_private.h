/* What the two files of the public face share. */
#ifndef THIN_CORE_OFFLINE_API_PRIVATE_H
#define THIN_CORE_OFFLINE_API_PRIVATE_H

#include "core/base/error.h"
#include "core/offline/source.h"
#include "core/offline/thinmeta.h"

struct thinmeta {
    struct meta_source *src;
    struct thinmeta_io io;
};

/* The caller's error as ours, without words yet. */
static inline struct thin_error *
api_words(struct thinmeta_error *err)
{
    struct thin_error *e = (struct thin_error *)(void *)err;

    if (e)
        thin_error_init(e);
    return e;
}

/* What a caller's function said, as a code. */
static inline int
api_said(int r)
{
    return r > 0 ? -THIN_E_CANCELLED : r;
}

#endif
