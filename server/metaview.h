/*
 * The metadata of a served pool as core/offline reads it: a descriptor of its own over
 * the pool's metadata device, and the block 0 of a pinned view (pool_pin) in place of the
 * one that goes on changing. On a thread that may wait.
 */
#ifndef THIN_SERVER_METAVIEW_H
#define THIN_SERVER_METAVIEW_H

#include "core/base/error.h"
#include "core/offline/source.h"

struct metaview {
    int fd;                /* -1: none, or an export: */
    struct device *export; /* on `loop`, which runs while we wait; else NULL */
    struct thin_loop *loop;
    const void *superblock; /* the pin's, 4096 bytes; borrowed */
};

/* `path` may be the URI of an NBD export. -THIN_E_LOST: another device has come to the path since the pool was opened. The words
   may be read by a peer, so the path is only logged, with `pool`. */
int metaview_open(struct metaview *view, const char *path, const char *pool,
                  const void *superblock, struct meta_source **ret_src,
                  struct thin_error *err);
/* After source_close. */
void metaview_close(struct metaview *view);

#endif
