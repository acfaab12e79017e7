/*
 * Opens the external origins of a pool's volumes: files and block devices on the helper
 * thread, NBD exports on the loop. Never for writing, and without a lock: whoever changes
 * one finds its volumes read-only.
 *
 * What tells an origin from another one of the same name: size, inode and time of last
 * change of a file; the size of a block device or an export (its URI is its name).
 */
#ifndef THIN_SERVER_ORIGINS_H
#define THIN_SERVER_ORIGINS_H

#include "core/pool/pool.h"

/* pool_params.origin_open; `arg` is the struct server_pool. */
void origins_open(void *arg, struct thin_loop *loop, const char *uri,
                  pool_origin_opened_fn opened, void *opened_arg);

#endif
