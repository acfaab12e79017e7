/*
 * What a pool or a volume may stand on, as people write it: the path of a file or block
 * device, or the URI of an NBD export. What is what, and who may name which.
 */
#ifndef THIN_SERVER_BACKING_H
#define THIN_SERVER_BACKING_H

#include "server/config.h"

/* Has a scheme: not a path. */
bool backing_is_uri(const char *text);

/* -THIN_E_INVALID: neither an absolute path nor a URI of NBD. */
int backing_check(const char *text, struct thin_error *err);

/*
 * May it be named over the network? A path below [server] device_dirs, a URI that is one
 * of [server] origin_uris or goes on behind it at a '/', without parameters of its own
 * (they name files of this host). -THIN_E_DENIED.
 */
int backing_check_remote(const struct server_config *config, const char *text,
                         struct thin_error *err);

#endif
