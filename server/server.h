/*
 * The server as one struct: what main.c wires together in order of start, and what the
 * rooms behind it (connections, handlers, pools) find each other by.
 *
 * Everything here belongs to the main loop, which is also the home of all pools and
 * connections of this version; what waits runs on `blocking`.
 */
#ifndef THIN_SERVER_SERVER_H
#define THIN_SERVER_SERVER_H

#include "proto/channel.h"
#include "server/auth.h"
#include "server/blocking.h"
#include "server/config.h"
#include "server/loop.h"
#include "server/payload.h"

#define SERVER_CONNECTIONS_MAX 4096u
#define SERVER_HANDSHAKES_MAX  256u /* connections that have not finished theirs */
#define SERVER_EVENTS_KEPT     256u

#define SERVER_LISTENERS_MAX (CONFIG_LISTENERS_MAX + 2)

struct pools;
struct listener;
struct attach_table;
struct sessions;
struct events;

struct server {
    struct server_config config;
    const char *config_path;
    struct server_loop *loop;
    struct thin_loop *thin_loop; /* of `loop` */
    struct blocking *blocking;
    struct payload *payload;
    struct auth *auth;
    struct channel_tls *tls;     /* own protocol; NULL when nothing listens on TLS */
    struct channel_tls *nbd_tls; /* NULL likewise */
    struct pools *pools;
    struct attach_table *attachments;
    struct sessions *sessions;
    struct events *events;
    uint64_t started_s; /* Unix */
    uint8_t start_id[16];
    struct listener *listeners[SERVER_LISTENERS_MAX];
    unsigned nr_listeners;
    unsigned connections, handshakes;
    unsigned lease_ms; /* how long a lost session is kept */
    bool stopping;
    /* Begins an orderly end; any time, on the main loop. */
    void (*stop)(struct server *server);
};

#endif
