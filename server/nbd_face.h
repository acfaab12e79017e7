/*
 * The NBD face: one client connection on a pool's volumes. Drives the state machine of
 * proto/nbd over a stream, opens exports through the attachments, turns its requests
 * into volume requests.
 *
 * Exports are named POOL/VOLUME. The holder is the client's identity: further
 * connections of the same identity share a volume, another identity gets it read-only.
 */
#ifndef THIN_SERVER_NBD_FACE_H
#define THIN_SERVER_NBD_FACE_H

#include "server/server.h"

/* Takes `fd`. `local`: it came over a unix socket. */
void nbd_face_accept(struct server *server, int fd, bool local);

/*
 * Ends NBD connections: new requests are refused, those in flight are answered; `done`
 * when the last one is gone (at most a bounded time later). Without `pools_too` those go
 * on that our own open pools stand on (stack.h).
 */
void nbd_face_shutdown(struct server *server, bool pools_too, void (*done)(void *arg),
                       void *arg);

/* Hangs up on those who asked what this pool stands on: the answer is another one now. */
void nbd_face_drop_askers(const char *pool);

/* After the last client is gone. */
void nbd_face_fini(void);

/* Fills at most `max` lines for `session list`. */
struct nbd_face_info {
    uint64_t id;
    char identity[AUTH_WHO_MAX];
    char peer[128];
    char volume[2 * THIN_NAME_MAX + 2];
    uint64_t since_s;
};
unsigned nbd_face_list(struct server *server, struct nbd_face_info *infos, unsigned max);
/* True if there was one. */
bool nbd_face_kick(struct server *server, uint64_t id);

#endif
