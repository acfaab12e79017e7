/*
 * Sessions of our own protocol: identity, secret token, slots (exactly once while the
 * session lives), open volumes, credits; what outlives a lost connection for the length
 * of its lease. Main loop only.
 *
 *   hello ─► new ─► connections come and go ─► none left: lease runs ─► over ─► ended
 *                       ▲                             │ resume, join
 *                       └─────────────────────────────┘
 *   ended: requests in flight finish, replies are dropped, volumes are detached, freed
 */
#ifndef THIN_SERVER_SESSION_H
#define THIN_SERVER_SESSION_H

#include "core/base/name.h"
#include "proto/limits.h"
#include "proto/message.h"
#include "server/attach.h"
#include "server/server.h"

#define SESSIONS_MAX        1024u
#define SESSIONS_OF_ONE_MAX 768u /* of one identity: it cannot keep all others out */
#define SESSION_SMALL_REPLY 96u  /* bytes: all that a write's reply needs */
#define SESSION_KEPT_REPLY_MAX \
    4096u /* bytes of a kept result; longer ones are made again */

struct conn;
struct request;
struct sessions;

/* One slot: the newest request seen in it, and its answer. */
struct session_slot {
    uint64_t seq;
    struct request *running; /* NULL: answered */
    uint8_t *kept;           /* the encoded reply frame; NULL: none is kept */
    size_t kept_bytes;
    uint8_t small[SESSION_SMALL_REPLY]; /* where a data request's reply is kept */
    bool poisoned; /* answered, but neither kept nor fit to be made again */
};

/* One open volume. */
struct session_volume {
    struct attachment *attachment;
    char name[2 * THIN_NAME_MAX + 2];
    uint32_t handle; /* 0: free */
    struct session *session;
    unsigned in_flight;
    bool closing;           /* no new requests; closed when the last has ended */
    struct request *closer; /* to be answered then */
    uint64_t told_size;     /* what the client knows */
};

struct session {
    struct sessions *sessions;
    struct server *server;
    uint64_t id;
    uint8_t token[PROTO_TOKEN_BYTES];
    struct auth_peer peer;
    char client_name[128];
    char peer_text[128];
    uint64_t since_s;
    struct conn *control; /* NULL while lost */
    unsigned nr_conns;
    unsigned nr_slots;
    struct session_slot slots[PROTO_SLOTS_DEFAULT + 1]; /* 0 is not used */
    struct session_volume volumes[PROTO_VOLUMES_MAX];
    uint64_t bytes_in_flight;
    unsigned in_flight; /* requests begun and not ended, of any kind */
    bool subscribed;    /* to events */
    bool ended;
    bool payload_crc; /* the feature is in use */
    struct thin_timer lease;
    struct thin_task task; /* looks whether an ended session can go */
    struct conn *resuming; /* whose hello waits for the old requests' end */
    TAILQ_ENTRY(session) link;
};

int sessions_create(struct server *server, struct sessions **ret);
/* All connections are gone and all volumes closed. NULL is fine. */
void sessions_destroy(struct sessions *sessions);

/* A new session of the peer; NULL with *ret_code -THIN_E_LIMIT or -ENOMEM. At a limit a
   session without connections, volumes and requests is ended before its lease is over. */
struct session *session_new(struct server *server, const struct auth_peer *peer,
                            const char *client_name, const char *peer_text,
                            int *ret_code);
/* The living session with this token and identity, or NULL. */
struct session *session_find(struct server *server, const void *token, size_t token_bytes,
                             const struct auth_peer *peer);
struct session *session_by_id(struct server *server, uint64_t id);
struct session *session_next(struct server *server, const struct session *after);

/* A connection joined or left; the lease starts when the last has left. */
void session_join(struct session *session, struct conn *conn, bool control);
void session_leave(struct session *session, struct conn *conn);

/* Ends now: see the drawing. Its connections are closed by the caller. */
void session_end(struct session *session);
/* Ends all; `done` when the last is freed. */
void sessions_end_all(struct server *server, void (*done)(void *arg), void *arg);

/* A request began or ended. */
void session_begin(struct session *session, uint64_t bytes);
void session_finish(struct session *session, uint64_t bytes);

/* Keeps the bytes of a slot's answer; one that is too long, or finds no memory, leaves
   the slot poisoned. */
void session_slot_keep(struct session_slot *slot, const void *bytes, size_t len);
void session_slot_clear(struct session_slot *slot);

struct session_volume *session_volume(struct session *session, uint32_t handle);
/* A free place with a handle of its own, or NULL. */
struct session_volume *session_volume_new(struct session *session);
/* Nothing in flight in it: closes the attachment and frees the place. */
void session_volume_drop(struct session *session, struct session_volume *volume);

#endif
