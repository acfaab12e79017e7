/*
 * The inside of thinnbd. One process, one thread, one libevent base, one client of one
 * server, one volume:
 *
 *   NBD client ─ socket ─ front (proto/nbd) ─ job ─ libthinclient ─ thinsrv
 *
 *   main.c      options, signals
 *   bridge.c    connecting, opening, listening, ending
 *   front.c     one NBD client's connection: bytes in and out
 *   export.c    what an NBD client sees and opens
 *   job.c       NBD requests as requests to libthinclient
 *   payload.c   memory for payloads, bounded for all fronts together
 *
 * Callbacks of libthinclient come from its own event only, so none is made inside a call
 * of the NBD machine; what fronts then have to send goes out from their `kick` events.
 */
#ifndef THIN_CLIENT_NBD_BRIDGE_PRIVATE_H
#define THIN_CLIENT_NBD_BRIDGE_PRIVATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>

#include <event2/event.h>

#include "client/lib/thinclient.h"
#include "core/base/error.h"
#include "proto/channel.h"
#include "proto/nbd/nbd_input.h"
#include "proto/nbd/nbd_server.h"
#include "proto/socket.h"

#define BRIDGE_LISTENERS_MAX   8u
#define BRIDGE_SOCKETS_MAX     (BRIDGE_LISTENERS_MAX * SOCKET_ADDRESSES_MAX)
#define BRIDGE_FRONTS_MAX      128u         /* NBD connections; then accepting pauses */
#define BRIDGE_PAYLOAD_BYTES   (128u << 20) /* lent to all fronts together */
#define BRIDGE_SPARE_BYTES     (16u << 20)  /* of it kept for the next request */
#define BRIDGE_RECEIVE_BYTES   (256u << 10)
#define BRIDGE_HANDSHAKE_MS    10000u
#define BRIDGE_STALL_MS        60000u     /* a peer that owes bytes or takes none */
#define BRIDGE_WATCH_MS        1000u      /* how often the two above are looked after */
#define BRIDGE_PATIENCE_MS     10000u     /* for requests in flight at the end */
#define BRIDGE_TURN_BYTES      (8u << 20) /* of one front, then others have their turn */
#define BRIDGE_CONNECT_MS      5000u
#define BRIDGE_VOLUME_NAME_MAX 256u

struct bridge;
struct front;

/* ---- payload.c ------------------------------------------------------------------------- */

struct payload {
    struct iovec iov; /* of the length asked for */
    size_t bytes;     /* of the piece: a power of two */
    SLIST_ENTRY(payload) link;
};
SLIST_HEAD(payload_list, payload);

#define PAYLOAD_CLASSES   16u /* 4 KiB to 128 MiB */
#define PAYLOAD_MIN_SHIFT 12u

struct payload_pool {
    size_t limit, lent, spare;
    struct payload_list free[PAYLOAD_CLASSES];
};

void payload_pool_init(struct payload_pool *pool, size_t limit);
/* Everything is back. */
void payload_pool_fini(struct payload_pool *pool);
/* -THIN_E_WOULD_BLOCK: too much is lent; -THIN_E_LIMIT: can never be; -ENOMEM. */
int payload_get(struct payload_pool *pool, size_t len, struct payload **ret);
void payload_put(struct payload_pool *pool, struct payload *payload);

/* ---- bridge.c -------------------------------------------------------------------------- */

struct bridge_options {
    const char *server, *cert, *key, *ca;
    const char *tls_cert, *tls_key, *tls_ca; /* of the listening side */
    const char *listen[BRIDGE_LISTENERS_MAX];
    unsigned nr_listen;
    uint64_t connect_timeout_ms;
    bool wait;  /* for a server that is not there yet */
    bool plain; /* TCP without TLS also for other machines */
    char volume[BRIDGE_VOLUME_NAME_MAX];
    bool read_only;
};

/* An open volume; a new one when the old one was rolled back or taken away. */
struct volume_use {
    struct bridge *bridge;
    struct thin_client_volume *volume;
    unsigned users; /* fronts that have it open; the bridge's own use counts one */
};

struct listening {
    struct bridge *bridge;
    struct event *event;
    int fd;
    bool tcp;
};

TAILQ_HEAD(front_list, front);
struct job;
TAILQ_HEAD(job_list, job);

struct bridge {
    const struct bridge_options *options;
    struct event_base *base;
    struct thin_client *client;
    struct event *client_event;
    struct channel_tls *tls; /* of the listening side, or NULL */

    struct volume_use *current;
    bool opening; /* anew: fronts with wants_open wait for it */

    struct listening sockets[BRIDGE_SOCKETS_MAX];
    unsigned nr_sockets;
    char unlink_paths[BRIDGE_LISTENERS_MAX][108]; /* of unix sockets; "" for others */
    unsigned nr_unlink;
    bool accepting;

    struct front_list fronts;
    unsigned nr_fronts;
    struct event *watch_event; /* time limits of fronts */
    uint8_t *receive;          /* one place to receive into: empty between turns */

    struct payload_pool payloads;
    struct front_list hungry;   /* told to wait for a payload, oldest first */
    struct event *memory_event; /* something came back */
    struct job_list refused;    /* jobs that the client could not take yet */
    unsigned outstanding;       /* requests of jobs in the client */

    bool stopping;
    bool client_ends; /* its volumes are not to be touched any more */
    struct event *patience_event;
    int result; /* of the whole run */
};

/* Serves until a signal ends it. 0, or why not. `ready` is called once when it listens. */
int bridge_run(const struct bridge_options *options,
               void (*ready)(const char *const *addresses, unsigned nr),
               struct thin_error *err);

uint64_t bridge_now_ms(void);
/* Runs the event's callback once, after the sockets have been looked at. */
void bridge_defer(struct event *event);
/* A front is gone: accepts again, or ends. */
void bridge_front_gone(struct bridge *bridge);
/* Takes a use of the volume for a front; NULL: it must be opened anew first, and
   front_volume_opened is called. */
struct volume_use *bridge_use_volume(struct bridge *bridge);
void bridge_drop_volume(struct volume_use *use);

/* ---- front.c --------------------------------------------------------------------------- */

/*
 *   accept ─► (TLS) ─► machine ─► open ─► requests
 *   broken or finished ─► front_end: socket closed ─► nbd_conn_close ─► idle ─► freed
 */
struct front {
    struct bridge *bridge;
    struct channel *channel; /* NULL: ended */
    struct nbd_conn *conn;
    struct nbd_input input;
    struct volume_use *use; /* what it has open */
    struct event *read_event, *write_event, *kick_event;
    bool tls_shaking;
    bool write_blocked;
    bool want_read;
    bool ended;
    bool wants_open; /* waits for the volume to be opened anew */
    bool is_hungry;  /* in bridge->hungry */
    bool is_fed;     /* the next payload is his: he was first in the row */
    bool dead;       /* to be freed by the kick event */
    uint64_t began_ms, progress_ms;
    char peer[128];
    TAILQ_ENTRY(front) link;
    TAILQ_ENTRY(front) hungry_link;
};

/* Takes `fd` in any case. */
void front_accept(struct bridge *bridge, int fd, bool tcp);
/* Looks after it in the next turn. */
void front_kick(struct front *front);
/* Ends it; frees it once nothing of it runs. Not from inside an op of the machine. */
void front_end(struct front *front);
/* Time limits. */
void front_watch(struct front *front, uint64_t now_ms);
/* The wait of bridge_use_volume is over; the front asks again unless `code` tells why not. */
void front_volume_opened(struct front *front, int code);

/* ---- export.c -------------------------------------------------------------------------- */

#define CONTEXT_ALLOCATION 1u /* base:allocation */
#define CONTEXT_DEPTH      2u /* qemu:allocation-depth */

void export_list(void *arg, struct nbd_conn *conn, const char *after);
void export_open(void *arg, struct nbd_conn *conn, const struct nbd_open *wish);
void export_contexts(void *arg, struct nbd_conn *conn,
                     const struct nbd_context_wish *wish);
void export_close(void *arg, void *handle);
/* Answers the open that waits. */
void export_answer(struct front *front);
uint32_t export_status(uint64_t context, uint32_t flags);

/* ---- job.c ----------------------------------------------------------------------------- */

/* Our memory in each request object of the machine. */
struct job {
    struct front *front;
    struct nbd_request *request;
    uint64_t at;      /* what has been submitted or, of a status, answered */
    unsigned pending; /* pieces that are under way */
    int result;       /* the first failure */
    bool is_refused;  /* in bridge->refused */
    TAILQ_ENTRY(job) link;
};

void job_submit(void *arg, struct nbd_request *request);
/* The client has room again: submits what was put by. */
void job_retry(struct bridge *bridge);
/* Fails all that was put by. */
void job_fail_refused(struct bridge *bridge, int code);

#endif
