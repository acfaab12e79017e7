/* The file of one known pool, STATE_DIR/pools/NAME.conf. Everything here waits. */
#ifndef THIN_SERVER_POOLS_STORE_H
#define THIN_SERVER_POOLS_STORE_H

#include "server/pools.h"

/* Calls `found` (which takes the volumes if it returns 0) for each file, in order of names; a broken file is -THIN_E_CONFIG. */
int pools_store_read_all(const char *state_dir, const struct pool_config *defaults,
                         int (*found)(void *arg, const struct server_pool *sp), void *arg,
                         struct thin_error *err);
/* Durable when it returns. */
int pools_store_write(const char *state_dir, const struct server_pool *sp,
                      struct thin_error *err);
int pools_store_remove(const char *state_dir, const char *name, struct thin_error *err);
/*
 * Makes STATE_DIR and its folders, and locks it for this process: *ret_lock stays open
 * while the server lives. -THIN_E_BUSY: another server uses it.
 */
int pools_store_prepare(const char *state_dir, int *ret_lock, struct thin_error *err);

#endif
