/*
 * NBD's server side as a pure state machine: bytes in, requests out, replies in, bytes
 * out. It knows no socket, no event loop, no TLS and no engine; whoever owns the socket
 * ("the owner") drives it, and the export is a table of functions. thinsrv plugs a pool
 * into it, thinnbd a remote volume.
 *
 *     socket ──bytes──> nbd_conn_input ──> ops->open, ops->submit ──> export
 *     socket <──iovecs── nbd_conn_output <── nbd_export_opened, nbd_request_done <──┘
 *
 * Phases (nbd_conn_phase):
 *
 *     HANDSHAKE ──STARTTLS──> WANT_TLS ──nbd_conn_tls_started──> HANDSHAKE
 *     HANDSHAKE ──GO, EXPORT_NAME──> TRANSMISSION ──DISC, broken bytes──> DRAINING
 *     HANDSHAKE ──ABORT, broken bytes──> DRAINING ──all answered and sent──> FINISHED
 *     any ──nbd_conn_close──> CLOSED
 *
 * How an owner drives one connection:
 *
 *   readable   nbd_conn_want() gives the place for a large payload: recv into it and
 *              call nbd_conn_received(); else recv into a buffer of its own and call
 *              nbd_conn_input(), keeping what was not consumed. Not while
 *              !nbd_conn_wants_input(): that is the back-pressure.
 *   writable   n = nbd_conn_output(iov); sendmsg; nbd_conn_sent(bytes).
 *   wake       ops->wake told that there may be output, or that input is wanted again:
 *              hand in the bytes kept from before, then send, once for each loop turn.
 *              After his own calls of input, received, resume and sent the owner looks
 *              himself (nbd_conn_has_output, nbd_conn_wants_input, nbd_conn_phase): they
 *              wake nobody. Output that was told once is not told again.
 *   end        the peer closed or a send failed: nbd_conn_close(). In DRAINING nothing is
 *              read any more, also not the end of a peer that closes behind his DISC.
 *   WANT_TLS   send all output, throw away every plain byte read so far, shake hands on
 *              the socket, nbd_conn_tls_started().
 *   FINISHED   nbd_conn_close(), close the socket.
 *   timers     the machine has none: the owner limits the time in nbd_conn_in_handshake(),
 *              of a peer that does not read, and of one that stops amid a payload
 *              (nbd_conn_mid_request()).
 *
 * Thread: none of its own, no global state. All calls for one connection are made by one
 * thread at a time; between calls a connection may move to another.
 *
 * Calling back: inside open, list, contexts and submit the owner may answer at once.
 * Inside get_buffer, put_buffer, close_export and wake it calls nothing of this header
 * for any connection (it defers). Inside `idle` it may destroy the connection.
 *
 * Memory: a connection in handshake owns its struct, at most limits.option_bytes of
 * option data and NBD_HANDSHAKE_OUT_MAX bytes of replies. In transmission it owns
 * limits.max_requests request objects, allocated when transmission starts; payloads lie
 * in the owner's buffers (get_buffer). Nothing is allocated for a request.
 *
 * Byte ranges: the machine passes ranges on exactly as the client sent them. Clients
 * that never ask for block sizes (the Linux kernel's, old ones) may use any offset and
 * length, also if the export names a minimum above 1; the owner reads, changes and
 * writes what is smaller than its own unit. The minimum is enforced (EINVAL) only
 * towards a client that was told it.
 *
 * Source: the NBD protocol document (NetworkBlockDevice/nbd, doc/proto.md).
 */
#ifndef THIN_PROTO_NBD_SERVER_H
#define THIN_PROTO_NBD_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "core/base/error.h"

/* ---- limits ------------------------------------------------------------------------ */

#define NBD_NAME_MAX          4096u        /* bytes of an export's or context's name */
#define NBD_OPTION_BYTES      65536u       /* default of limits.option_bytes */
#define NBD_MAX_PAYLOAD       (32u << 20)  /* default of limits.max_payload */
#define NBD_MAX_REQUESTS      128u         /* default of limits.max_requests */
#define NBD_MAX_CONTEXTS      16u          /* meta contexts chosen by one client */
#define NBD_MAX_QUERIES       64u          /* queries in one option about contexts */
#define NBD_EXTENTS_PER_REPLY 2048u        /* of each context in one block status */
#define NBD_HOLES_PER_READ    8u           /* sent as holes; further ones as zeros */
#define NBD_HOLE_MIN          512u         /* smaller ones go as zeros among the data */
#define NBD_HANDSHAKE_OUT_MAX (256u << 10) /* unsent option replies */

struct nbd_limits {
    uint32_t option_bytes; /* longer option data: ERR_TOO_BIG and close */
    uint32_t max_payload;  /* of one READ or WRITE; multiple of 4096, at least 1 MiB */
    uint32_t max_requests; /* taken and not yet fully answered; then input stops */
};

enum nbd_tls_policy {
    NBD_TLS_OFF,      /* STARTTLS is not known */
    NBD_TLS_ALLOWED,  /* client's choice */
    NBD_TLS_REQUIRED, /* nothing but STARTTLS and ABORT before TLS runs */
};

/* ---- what the owner gives ---------------------------------------------------------- */

struct nbd_conn;

/* Payload memory: belongs to the owner, lent to one request. */
struct nbd_buffer {
    const struct iovec
        *iov; /* together exactly `len` bytes; the array is the owner's too */
    unsigned iovcnt;
    size_t len;
    void *owner; /* never looked at */
};

#define NBD_EXPORT_READ_ONLY \
    (1u << 0) /* changes are refused with EPERM before the owner sees them */
#define NBD_EXPORT_MULTI_CONN (1u << 1) /* a flush on any connection covers all of them */
#define NBD_EXPORT_FLUSH      (1u << 2)
#define NBD_EXPORT_FUA        (1u << 3)
#define NBD_EXPORT_TRIM       (1u << 4)
#define NBD_EXPORT_ZEROES     (1u << 5)
#define NBD_EXPORT_FAST_ZERO  (1u << 6) /* only with ZEROES */
#define NBD_EXPORT_CACHE      (1u << 7)
#define NBD_EXPORT_ROTATIONAL (1u << 8)

/* What an export is. Strings are borrowed for the call only and may be NULL. */
struct nbd_export {
    void *handle;         /* given back with each request and to close_export */
    uint64_t size;        /* bytes */
    unsigned flags;       /* NBD_EXPORT_... ; what is not said is refused with EINVAL */
    uint32_t min_block;   /* power of two, at most 64 KiB; 0: 1 */
    uint32_t pref_block;  /* power of two, at least 512 and min_block; 0: 4096 */
    uint32_t max_payload; /* 0, or one below limits.max_payload: that is said instead */
    const char *name;     /* canonical name, told to clients that ask */
    const char *description;
};

/* One wish to open. Borrowed until the answer (nbd_export_opened). */
struct nbd_open {
    const char
        *name; /* valid UTF-8, no NUL inside, NUL behind; "" is the default export */
    size_t name_len;
    bool info;                /* only to describe: take nothing, `handle` is ignored */
    const uint64_t *contexts; /* the owner's ids of the meta contexts chosen */
    unsigned nr_contexts;
};

struct nbd_query {
    const char *text; /* not NUL-terminated; may hold any byte */
    size_t len;
};

/* One wish for contexts. Borrowed until the answer (nbd_contexts_done). */
struct nbd_context_wish {
    const char *name; /* of the export, as in nbd_open */
    size_t name_len;
    bool list; /* LIST: only named; false: SET, they will be used */
    const struct nbd_query *queries;
    unsigned nr_queries; /* LIST with none asks for all, SET with none for nothing */
};

enum nbd_op {
    NBD_OP_READ,
    NBD_OP_WRITE,
    NBD_OP_FLUSH,
    NBD_OP_TRIM,
    NBD_OP_CACHE,
    NBD_OP_WRITE_ZEROES,
    NBD_OP_BLOCK_STATUS,
};

#define NBD_REQ_FUA     (1u << 0) /* answer only when it is stable; may come with any op */
#define NBD_REQ_NO_HOLE (1u << 1) /* WRITE_ZEROES: must stay provisioned */
#define NBD_REQ_DF      (1u << 2) /* READ: one chunk; the machine sees to it */
#define NBD_REQ_ONE     (1u << 3) /* BLOCK_STATUS: one extent; the machine sees to it */
#define NBD_REQ_FAST_ZERO \
    (1u << 4) /* WRITE_ZEROES: fast, or -EOPNOTSUPP and nothing changed */

/*
 * One request, the owner's from submit to nbd_request_done. Range, flags and rights are
 * checked: [offset, offset + len) lies inside the export as last told, the op is one that
 * the export offers. len is 0 for FLUSH only.
 */
struct nbd_request {
    struct nbd_conn *conn;
    void *handle; /* of the export */
    enum nbd_op op;
    unsigned flags; /* NBD_REQ_... */
    uint64_t offset;
    uint64_t len;
    struct nbd_buffer
        buffer; /* READ: to be filled; WRITE: the payload; else not to be touched */
    unsigned nr_contexts;     /* BLOCK_STATUS: contexts to be answered, 0 .. nr - 1 */
    const uint64_t *contexts; /*   and the owner's ids of them */
};

/*
 * `arg` is that of nbd_config. "Answer" means: call the named function exactly once, now
 * or later, also after nbd_conn_close (which waits for it). At most one of open, list and
 * contexts waits at any time.
 */
struct nbd_ops {
    /*
     * Lists the exports that this client may see: nbd_export_listed() for each name that
     * comes after `after` in an order of the owner's choice (NULL: from the start) until
     * that returns false, then nbd_list_done(). Called again where it was cut.
     * NULL: LIST is refused by policy.
     */
    void (*list)(void *arg, struct nbd_conn *conn, const char *after);

    /*
     * Looks the export up, and with !wish->info opens it. Answer: nbd_export_opened().
     * The answers to an INFO and to the GO right behind it must be the same.
     */
    void (*open)(void *arg, struct nbd_conn *conn, const struct nbd_open *wish);

    /*
     * Names the contexts wished for: nbd_context_found() for each that
     * nbd_context_wanted() says yes to, then nbd_contexts_done() (-THIN_E_NOT_FOUND for an
     * unknown export). NULL: there are none.
     */
    void (*contexts)(void *arg, struct nbd_conn *conn,
                     const struct nbd_context_wish *wish);

    /* Gives back what open took, after the last request was done. May be NULL. */
    void (*close_export)(void *arg, void *handle);

    /*
     * Lends `len` bytes (1 .. max_payload, or room for extents). 0: *ret_buffer is set.
     * -THIN_E_WOULD_BLOCK: not now; the connection takes no input until
     * nbd_conn_resume(). Anything else: the request is answered with that error.
     */
    int (*get_buffer)(void *arg, size_t len, struct nbd_buffer *ret_buffer);
    void (*put_buffer)(void *arg, struct nbd_buffer *buffer);

    /* Starts the request. Answer: nbd_request_done(). */
    void (*submit)(void *arg, struct nbd_request *req);

    /*
     * There is output, input is wanted again, or the phase has changed, and no call of
     * nbd_conn_input or its kind is there to show it. May be NULL.
     */
    void (*wake)(void *arg);

    /* After nbd_conn_close() returned false: the last answer has come. Destroy it now. */
    void (*idle)(void *arg);
};

struct nbd_config {
    const struct nbd_ops *ops; /* borrowed while the connection lives */
    void *arg;
    enum nbd_tls_policy tls;
    struct nbd_limits limits;   /* 0 in a field: the default */
    size_t request_extra_bytes; /* the owner's own memory in each request object */
};

/* ---- life -------------------------------------------------------------------------- */

enum nbd_phase {
    NBD_PHASE_HANDSHAKE,
    NBD_PHASE_WANT_TLS,
    NBD_PHASE_TRANSMISSION,
    NBD_PHASE_DRAINING, /* takes no more input, finishes what it has */
    NBD_PHASE_FINISHED, /* all is sent: close */
    NBD_PHASE_CLOSED,
};

/* Output holds the greeting already. `config` is copied. -ENOMEM, -THIN_E_INVALID. */
MUST_CHECK int nbd_conn_create(const struct nbd_config *config,
                               struct nbd_conn **ret_conn, struct thin_error *err);

/*
 * The peer is gone, or is to go: unsent output and the replies of requests still running
 * are dropped, buffers that no request uses go back. True: nothing runs, destroy it (the
 * export is closed). False: ops->idle will be called, once, when the last answer came.
 * Not from inside an op. A second call only tells again whether something runs.
 */
bool nbd_conn_close(struct nbd_conn *conn);

/* Takes NULL. Only before the first request or after nbd_conn_close said true or `idle`. */
void nbd_conn_destroy(struct nbd_conn *conn);

/*
 * The server stops: new requests are answered ESHUTDOWN, new options ERR_SHUTDOWN; what
 * runs goes on. Close when nbd_conn_is_quiet(), or when patience ends.
 */
void nbd_conn_shutdown(struct nbd_conn *conn);

enum nbd_phase nbd_conn_phase(const struct nbd_conn *conn);

/* Why it drains: static text for the log, or NULL for an ordinary end. */
const char *nbd_conn_why(const struct nbd_conn *conn);

/* Handshake or TLS not finished: the owner's deadline applies. */
bool nbd_conn_in_handshake(const struct nbd_conn *conn);

/* Part of a header, an option or a payload has come, and the peer owes the rest. */
bool nbd_conn_mid_request(const struct nbd_conn *conn);

/* No request, no answer awaited, no output. */
bool nbd_conn_is_quiet(const struct nbd_conn *conn);

/* Requests submitted and not yet done. */
unsigned nbd_conn_in_flight(const struct nbd_conn *conn);

/* In transmission: requests beyond the old size are taken (or refused) from now on. */
void nbd_conn_set_size(struct nbd_conn *conn, uint64_t size);

/* In WANT_TLS, after the TLS handshake. All earlier negotiation is forgotten. */
void nbd_conn_tls_started(struct nbd_conn *conn);

/* ---- bytes ------------------------------------------------------------------------- */

/*
 * Takes bytes from the peer; returns how many were consumed, 0 .. len. What was not
 * consumed is handed in again once nbd_conn_wants_input(). In WANT_TLS, DRAINING,
 * FINISHED and CLOSED everything is consumed and thrown away.
 */
size_t nbd_conn_input(struct nbd_conn *conn, const void *bytes, size_t len);

/* True if nbd_conn_input would do something with another byte. */
bool nbd_conn_wants_input(const struct nbd_conn *conn);

/*
 * The rest of a payload being received, as places to recv into (at most `max`); 0 if
 * there is none: use nbd_conn_input. Only when no bytes are kept from an earlier recv:
 * those come first. nbd_conn_received tells how many bytes were put
 * there, at most their sum.
 */
unsigned nbd_conn_want(struct nbd_conn *conn, struct iovec *iov, unsigned max);
void nbd_conn_received(struct nbd_conn *conn, size_t len);

/* Asks get_buffer again after -THIN_E_WOULD_BLOCK. Harmless otherwise. Not from an op. */
void nbd_conn_resume(struct nbd_conn *conn);

/*
 * What is to be sent, in order: fills at most `max` entries, returns their number. Valid
 * until the next nbd_conn_sent or nbd_conn_close; calls that add output append behind it.
 * nbd_conn_sent takes the number of bytes that went out, at most their sum; request
 * objects and buffers that are through go back.
 */
unsigned nbd_conn_output(struct nbd_conn *conn, struct iovec *iov, unsigned max);
void nbd_conn_sent(struct nbd_conn *conn, size_t len);
bool nbd_conn_has_output(const struct nbd_conn *conn);

/* ---- answers ----------------------------------------------------------------------- */

/* One export of ops->list. False: enough for now (this one was taken). */
bool nbd_export_listed(struct nbd_conn *conn, const char *name, const char *description);

/* The list is through, or `code` says why not. */
void nbd_list_done(struct nbd_conn *conn, int code);

/*
 * Answers ops->open. `code` 0: `export` is borrowed for the call. Negative: `export` may
 * be NULL, `text` (or NULL) travels to the client. -THIN_E_NOT_FOUND and -THIN_E_DENIED
 * look the same to him.
 */
void nbd_export_opened(struct nbd_conn *conn, int code, const struct nbd_export *export,
                       const char *text);

/*
 * True if the wish asks for the context `name`: named in full, or for LIST by no query at
 * all or by a query ending in ':' that `name` begins with.
 */
bool nbd_context_wanted(const struct nbd_context_wish *wish, const char *name);

/* One context of ops->contexts; `id` is the owner's. False: no room for more. */
bool nbd_context_found(struct nbd_conn *conn, const char *name, uint64_t id);
void nbd_contexts_done(struct nbd_conn *conn, int code);

/*
 * READ, before done: [offset, offset + len), counted from the start of the request, reads
 * as zeros and the buffer need not be filled there; it may be overwritten by the machine.
 * In rising order without overlap. Sent as a hole where the client can take it.
 */
void nbd_read_hole(struct nbd_request *req, uint64_t offset, uint64_t len);

/*
 * BLOCK_STATUS, before done: the next `len` > 0 bytes of context number `context` have
 * `status`, beginning at the request's offset. Neighbours that are alike are joined, what
 * reaches beyond the request is cut. False: no more is wanted for this context. Each
 * context needs at least one, or the request fails with EIO.
 */
bool nbd_extent_add(struct nbd_request *req, unsigned context, uint64_t len,
                    uint32_t status);

/* base:allocation */
#define NBD_STATUS_HOLE (1u << 0)
#define NBD_STATUS_ZERO (1u << 1)

/*
 * The request's outcome: 0 or a negative code, told to the client as the nearest error
 * that NBD knows. The object is not the owner's any more.
 */
void nbd_request_done(struct nbd_request *req, int code);

/* The owner's request_extra_bytes in the object, zeroed once, aligned to 16. */
void *nbd_request_extra(struct nbd_request *req);

/* The way back. */
struct nbd_request *nbd_request_of_extra(const struct nbd_conn *conn, void *extra);

/* The NBD error (0, or one of the eight permitted) for one of our codes. */
uint32_t nbd_error_of(int code);

#endif
