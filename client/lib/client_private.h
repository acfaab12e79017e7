/*
 * The inside of libthinclient. Who does what:
 *
 *   handle.c   life of the client, settings, the descriptor, ready(), the timer
 *   state.c    connecting, TLS, hello, ready, lost, back-off, keepalive
 *   wire.c     bytes in and out: frames to replies, requests to frames
 *   request.c  requests: waiting, in a slot, answered; sending again
 *   volume.c   open, open again, close; the public data calls
 *   call.c     management calls;   sync.c   waiting forms
 *
 * The way of a request:
 *
 *   submit -> volume->waiting   while its volume is being opened again
 *          -> client->queue     until a slot and credits are free
 *          -> client->sending   in a slot, encoded, its bytes going out
 *          -> (slot only)       sent, waiting for the reply
 *          -> client->done      answered; its callback is due in ready()
 *
 * When the connection is lost what is in slots stays there, and goes to `sending` again
 * after a resume (same slot and number), or back to `queue` in a new session.
 */
#ifndef THIN_CLIENT_PRIVATE_H
#define THIN_CLIENT_PRIVATE_H

#include <sys/queue.h>

#include "client/lib/call.h"
#include "client/lib/thinclient.h"
#include "core/base/error.h"
#include "core/base/random.h"
#include "proto/channel.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/message.h"
#include "proto/socket.h"

#define CLIENT_IOV_INLINE     8u
#define CLIENT_HEADER_BYTES   160u /* prefix and message of a data request */
#define CLIENT_HEAD_ROOM      48u  /* before an early body: slot and number */
#define CLIENT_RECEIVE_BYTES  (64u << 10)
#define CLIENT_ARENA_BYTES    (16u << 10) /* for a reply; a larger one gets its own */
#define CLIENT_ARENA_FACTOR   40u         /* decoded bytes for each of the message */
#define CLIENT_DIRECT_BYTES   (16u << 10) /* pieces from here on are received in place */
#define CLIENT_SEND_PIECES    256u        /* iovecs in one writev */
#define CLIENT_READY_BYTES    (8u << 20)  /* received by one ready(), then others' turn */
#define CLIENT_BACKOFF_MIN_MS 50u
#define CLIENT_BACKOFF_MAX_MS 5000u
#define CLIENT_CONNECT_MS     10000u
#define CLIENT_REOPEN_MS      500u /* until a volume that is busy is asked for again */
#define CLIENT_VOLUME_NAME    256u

enum client_state {
    CLIENT_IDLE,       /* thin_client_connect not called */
    CLIENT_CONNECTING, /* the socket */
    CLIENT_HANDSHAKE,  /* TLS */
    CLIENT_HELLO,      /* sent, waiting for the reply */
    CLIENT_READY,
    CLIENT_BACKOFF, /* lost, or not reached: until `state_deadline` */
    CLIENT_FAILED,  /* the first attempt failed */
    CLIENT_ENDED,   /* being destroyed */
};

enum client_op {
    OP_READ,
    OP_WRITE,
    OP_FLUSH,
    OP_DISCARD,
    OP_WRITE_ZEROES,
    OP_BLOCK_STATUS,
    OP_OPEN,
    OP_CLOSE,
    OP_CALL,
    OP_CONTROL, /* hello, ping, cancel, bye: slot 0, nobody waits */
};

enum client_stage {
    STAGE_NEW,
    STAGE_WAITING, /* volume->waiting */
    STAGE_QUEUED,  /* client->queue */
    STAGE_SENDING, /* client->sending */
    STAGE_SENT,
    STAGE_DONE, /* client->done */
};

struct client_request {
    enum client_op op;
    enum client_stage stage;
    struct thin_client *client;
    struct thin_client_volume *volume; /* NULL for calls and control */
    uint32_t slot;                     /* 0: none */
    uint64_t seq;

    uint64_t offset, len_bytes;
    unsigned flags;

    /* What is sent: `header` (prefix and message), then, of a write, the pieces. */
    const uint8_t *header;
    size_t header_bytes;
    size_t payload_bytes; /* of a write */
    size_t sent;
    uint32_t payload_crc;
    uint8_t header_room[CLIENT_HEADER_BYTES];
    uint8_t *body; /* a Thin__Request encoded at the call, behind CLIENT_HEAD_ROOM */
    size_t body_bytes;
    struct iovec iov_inline[CLIENT_IOV_INLINE];
    struct iovec *iov;
    unsigned nr_iov;
    struct thin_client_extent *extents; /* the answer of a block status */
    unsigned nr_extents;

    bool partly_answered; /* a reply with `more` has been passed on */
    bool abandoned;       /* the caller has had his answer; the slot waits for its own */
    bool changes;         /* of a call: not to be done twice without knowing */
    bool subscribes;      /* of a call: EventsSubscribe */

    void *arg;
    union {
        void (*done)(void *arg, int result);
        void (*opened)(void *arg, int result, struct thin_client_volume *volume);
        void (*status)(void *arg, int result, const struct thin_client_extent *extents,
                       unsigned nr_extents);
        void (*called)(void *arg, int result, const char *words);
    } cb;
    int (*on_reply)(void *arg, const Thin__Reply *reply, const void *payload,
                    size_t payload_bytes);
    /* Of a flush: nr_unnumbered and highest_change of the volume when it was submitted.
        */
    uint64_t covers_unnumbered, covers_change;
    int result;
    char *words; /* of a failure, from the server; may be NULL */
    TAILQ_ENTRY(client_request) link;
};
TAILQ_HEAD(client_requests, client_request);

struct client_slot {
    uint64_t seq; /* of the last request in it */
    struct client_request *request;
};

struct thin_client_volume {
    struct thin_client *client;
    char name[CLIENT_VOLUME_NAME];
    unsigned flags;
    uint32_t handle;
    uint64_t size;
    uint32_t block_size;
    uint64_t epoch;
    uint64_t incarnation;
    uint64_t stable_mark;
    uint64_t highest_change; /* acknowledged to the user */
    bool read_only;
    bool user_has_it; /* the first open has succeeded */
    bool ready;       /* the present session has it open */
    bool closing;
    int failed;                     /* 0, or what every request gets */
    uint64_t reopen_ns;             /* 0, or when to ask again */
    unsigned outstanding;           /* its requests, but for open and close */
    struct client_request *opening; /* or opening again; NULL: none under way */
    struct client_request *close;   /* waits until nothing is outstanding */
    /* Writes that were answered without a number of their change, and how many of them
       had been when the newest flush began that succeeded. */
    uint64_t nr_unnumbered, nr_unnumbered_flushed;
    struct client_requests waiting;
    TAILQ_ENTRY(thin_client_volume) link;
};
TAILQ_HEAD(client_volumes, thin_client_volume);

/* The reply that is being received. */
struct client_incoming {
    bool have_message; /* then `payload_left` bytes of payload are still to come */
    Thin__Message *message;
    struct client_request *request; /* NULL: the payload is dropped */
    size_t payload_bytes, payload_left;
    uint32_t crc;
    uint8_t *payload; /* of a call; or NULL */
    uint8_t *big_arena;
    /* of a read: where the next byte goes */
    uint64_t at; /* offset in the read */
    size_t hole; /* index of the next hole */
    unsigned iov_index;
    size_t iov_skip;
};

struct thin_client {
    enum client_state state;
    struct thin_error error; /* thin_client_error */

    /* settings */
    struct socket_address address;
    char name[64];
    struct channel_tls *tls;
    bool data_checksums;
    bool retry_first;
    unsigned connect_timeout_ms;
    unsigned offline_timeout_ms;
    void (*on_event)(void *arg, const struct thin_client_event *event);
    void *event_arg;
    void (*on_event_message)(void *arg, const Thin__Event *event);
    void *event_message_arg;

    /* the loop's side */
    int epoll_fd, timer_fd;
    uint64_t armed_ns; /* what timer_fd is set to; 0: not */
    unsigned corks;
    bool in_ready;
    bool want_write_watched;

    /* connecting */
    struct socket_targets targets;
    unsigned next_target;
    int fd; /* while CONNECTING; then the channel has it */
    struct channel *channel;
    uint64_t state_deadline_ns;
    unsigned backoff_ms;
    bool answered;  /* this connection has brought something */
    bool was_ready; /* once at least */
    int broken;     /* 0, or the code that ready() must end the connection with */
    struct thin_error broken_words;
    void (*connected)(void *arg, int result);
    void *connected_arg;
    bool connect_done_due;
    int connect_result;
    uint64_t offline_since_ns; /* 0: there is a server */
    bool offline_told;         /* the offline timeout is over */
    struct thin_random rng;    /* for back-off */

    /* session */
    bool have_session;
    uint8_t token[PROTO_TOKEN_BYTES];
    uint32_t nr_slots;
    struct client_slot slots[PROTO_SLOTS_MAX + 1];
    uint32_t free_slots[PROTO_SLOTS_MAX];
    uint32_t nr_free_slots;
    uint32_t max_payload;
    uint64_t max_bytes_in_flight, bytes_in_flight;
    uint32_t keepalive_ms;
    uint64_t heard_ns, told_ns, ping_ns; /* ping_ns: 0, or when one was sent */
    uint64_t control_seq;
    bool peer_checks_data; /* both know payload-crc */
    char server_version[64];
    bool subscribed;
    uint64_t last_event;

    /* requests */
    struct client_requests queue, sending, done, spare;
    unsigned outstanding; /* all but control */
    struct client_volumes volumes;

    /* receiving */
    uint8_t *in;
    size_t in_room, in_begin, in_end;
    struct client_incoming incoming;
    uint8_t *arena_memory;
};

/* ---- handle.c ---------------------------------------------------------------------- */

uint64_t client_now_ns(const struct thin_client *client);
/* Sets the timer for what is due next; at the end of every public call. */
void client_arm(struct thin_client *client);
void client_watch_fd(struct thin_client *client, int fd, bool write);
void client_unwatch_fd(struct thin_client *client, int fd);
void client_tell_event(struct thin_client *client, enum thin_client_event_kind kind,
                       const char *name, const char *text);
/* Makes the callbacks of all that is done. */
void client_deliver(struct thin_client *client);

/* ---- state.c ----------------------------------------------------------------------- */

/* Begins an attempt to connect. Its failure shows as a state. */
void client_attempt(struct thin_client *client);
/* Carries connecting, TLS and hello on as far as they go. */
void client_advance(struct thin_client *client);
/* The connection has ended with `code`; words are in client->error. Plans the next. */
void client_lost(struct thin_client *client, int code);
/* A reply with slot 0 has come. Negative: the connection is to be ended, words told. */
int client_control_reply(struct thin_client *client, const Thin__Reply *reply);
/* What is due by time. */
void client_timers(struct thin_client *client, uint64_t now_ns);
uint64_t client_deadline_ns(const struct thin_client *client);
void client_close_connection(struct thin_client *client);

/* ---- wire.c ------------------------------------------------------------------------ */

/* Sends what is in `sending` as far as it goes. 0, or final with words in
   client->error. */
int client_send(struct thin_client *client);
/* Receives and handles what is there. 0, or final with words in client->error. */
int client_receive(struct thin_client *client);
void client_incoming_reset(struct thin_client *client);

/* ---- request.c --------------------------------------------------------------------- */

/* NULL: no memory, or `*ret_code` -THIN_E_LIMIT: too many outstanding. Counts. */
struct client_request *request_new(struct thin_client *client, enum client_op op,
                                   int *ret_code);
/* Back to the spares. Not in any list, not in a slot. */
void request_free(struct client_request *request);
/* Copies the array of pieces. -ENOMEM, -THIN_E_LIMIT. */
int request_set_iov(struct client_request *request, const struct iovec *iov,
                    unsigned nr_iov, uint64_t *ret_bytes);
/* Encodes the body for later; slot and number are put in front when it is sent. */
int request_set_body(struct client_request *request, const Thin__Request *message);
/* Into the queue (or its volume's), and out if it may go at once. */
void request_submit(struct client_request *request);
/* Fills slots from the queue, as credits allow. */
void client_dispatch(struct thin_client *client);
/* The outcome: frees the slot, puts it on `done`. `words` may be NULL. */
void request_finish(struct client_request *request, int result, const char *words);
/* Tells the caller now, keeps the slot until the server has answered. */
void request_abandon(struct client_request *request, int result, const char *words);
/* Takes an abandoned one's slot back, silently. */
void request_drop(struct client_request *request);
/* Control messages: slot 0. -ENOMEM is no harm: they are sent again. */
int client_send_control(struct thin_client *client, Thin__Request *message);
/* After the connection ended. */
void client_requests_lost(struct thin_client *client);
/* After a hello: the session goes on, or is a new one. */
void client_requests_resume(struct thin_client *client);
void client_requests_new_session(struct thin_client *client);
/* Ends all requests that wait for a server: none may be in a slot. */
void client_requests_fail(struct thin_client *client, int code);
/* Ends those of one list, but for opens and closes. `volume` NULL: of all volumes. */
void client_requests_fail_list(struct client_requests *list,
                               const struct thin_client_volume *volume, int code);
void request_make_callback(struct client_request *request);

/* ---- volume.c ---------------------------------------------------------------------- */

/* A request of a volume has its outcome. */
void volume_request_done(struct client_request *request);
/* An acknowledged change, as the reply tells it; `data` may be NULL. */
void volume_learn(struct client_request *request, const Thin__DataReply *data);
void volume_opened(struct client_request *request, const Thin__VolumeOpened *opened);
void volume_open_failed(struct client_request *request, int code, const char *words);
/* The server's volumes are gone: opens ours again. */
void volume_new_session(struct thin_client *client);
void volume_timers(struct thin_client *client, uint64_t now_ns);
uint64_t volume_deadline_ns(const struct thin_client *client);
/* From now on every request to it gets `code`. */
void volume_fail(struct thin_client_volume *volume, int code);
struct thin_client_volume *volume_by_handle(struct thin_client *client, uint32_t handle);
/* Takes it off the client and frees it. */
void volume_free(struct thin_client_volume *volume);

#endif
