/*
 * The NBD device, inside.
 *
 *   device_nbd.c   open, close; what a lost connection means; limits in time
 *   nbd_request.c  a request's pieces: cut, bounced, sent as commands, put together
 *   nbd_link.c     one connection: name looked up on a thread, handshake, ready, dropped
 *   nbd_renew.c    GROW: a fresh look at the export
 *
 * A request stands in `queue` while something of it is to be sent. It is cut into pieces,
 * each a command on one connection; when none is outstanding, the rest is queued, or the
 * flush that stands for FUA, or it has ended:
 *
 *   submit --> queue --> command --> ended --> settle --> device_finish
 *                ^                     |          |
 *                \--- connection lost -/          | more to send, or to be flushed
 *                ^--------------------------------/
 *
 * A connection:
 *
 *   DOWN --start--> RESOLVING --> CONNECTING --> UP --> (any one lost: all dropped) DOWN
 *    ^                  \             |
 *    |                   \--failed----+--> WAITING --pause over--> RESOLVING
 *
 * libnbd calls back with its handle locked: those calls only note what happened, and
 * nbd_service acts on it afterwards. Nothing of the caller's is called from here but by a
 * deferred task. Everything on the loop, but the body of the resolver's thread.
 */
#ifndef THIN_CORE_DEVICE_NBD_PRIVATE_H
#define THIN_CORE_DEVICE_NBD_PRIVATE_H

#include <libnbd.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/log.h"
#include "core/device/device_nbd.h"
#include "core/device/driver.h"

#define NBD_COMMANDS_MAX 64u /* in flight on one connection */
/* One piece of data: libnbd copies it in one step of the loop. */
#define NBD_PIECE_BYTES    (256u << 10)
#define NBD_BOUNCES        16u
#define NBD_DIRECT_BYTES   (64u << 10) /* a part of scattered memory sent as it is */
#define NBD_ZERO_BYTES     (32u << 20) /* zeroes, where the server names no limit */
#define NBD_TRIM_BYTES     (1u << 30)
#define NBD_STATUS_BYTES   (1u << 30)
#define NBD_UNIT_MAX       (64u << 10) /* the largest smallest request; NBD has no more */
#define NBD_BACKOFF_MIN_MS 100u
#define NBD_BACKOFF_MAX_MS 5000u
#define NBD_TICK_MS        500u
#define NBD_WORDS_MAX      256u

/* What the server said of its export. */
struct nbd_export_info {
    uint64_t size;      /* rounded down to `unit` */
    uint32_t unit;      /* the smallest request, 512 or more */
    uint32_t max_bytes; /* of one request, a multiple of `unit`; 0: not said */
    bool read_only, flush, fua, trim, zero, fast_zero, multi_conn, status;
};
/* They are compared as they stand: no holes. */
_Static_assert(sizeof(struct nbd_export_info) == 24, "padding");

/* device_io.driver_u32 */
#define NBD_IO_QUEUED     1u
#define NBD_IO_UNSYNCED   2u /* FUA, and a piece went without it */
#define NBD_IO_SYNCING    4u /* all is written; the flush that stands for FUA */
#define NBD_IO_FLUSH_SENT 8u
/* device_io.driver_u64 */
#define NBD_IO_SENT        0 /* bytes handed to commands so far */
#define NBD_IO_OUTSTANDING 1 /* commands */
#define NBD_IO_SINCE       2 /* ns: when it was submitted */

struct nbd_link;

struct nbd_command {
    struct nbd_link *link;
    struct device_io *io; /* NULL: free */
    enum device_op op;    /* what is sent: WRITE_ZEROES may be a WRITE */
    uint64_t begin;       /* the part of the request, in bytes of the device */
    uint32_t len;
    uint64_t wire_begin; /* the same, rounded to the server's unit */
    uint32_t wire_len;
    uint64_t seen;  /* READ: bytes that arrived */
    uint64_t cover; /* FLUSH: the writes that had ended when it was sent */
    char *bounce;
    bool durable;  /* sent with FUA */
    bool answered; /* EXTENTS: the callback has come */
    int error;     /* positive errno, when ended */
    TAILQ_ENTRY(nbd_command) entry;
};

TAILQ_HEAD(nbd_command_list, nbd_command);

enum nbd_link_state {
    NBD_LINK_DOWN,
    NBD_LINK_WAITING,
    NBD_LINK_RESOLVING,
    NBD_LINK_CONNECTING,
    NBD_LINK_UP
};

struct nbd_resolver;
struct nbd_device;

/* What the server lists, while it is asked. */
struct nbd_answer {
    bool ended, too_many;
    bool judged;  /* and the export asked for */
    int go_error; /* positive errno of that */
    unsigned nr;
    char names[DEVICE_NBD_ASK_NAMES_MAX][DEVICE_NBD_ASK_NAME_MAX];
};

struct nbd_link {
    struct nbd_device *n;
    enum nbd_link_state state;
    struct nbd_handle *handle;     /* CONNECTING, UP */
    struct nbd_resolver *resolver; /* RESOLVING */
    struct nbd_answer *answer;     /* CONNECTING, once the question was put */
    struct thin_watch watch;
    bool watched;
    bool broken;                 /* to be dropped, although libnbd may not know */
    struct thin_timer timer;     /* WAITING: the pause. CONNECTING: the limit */
    struct thin_task pause_task; /* WAITING: for want of a timer */
    unsigned pause_ms, backoff_ms;
    uint64_t heard_ns; /* bytes went or came, or the first command was sent */
    unsigned in_flight;
    struct nbd_command commands[NBD_COMMANDS_MAX];
    struct nbd_command_list free, ended;
    char words[NBD_WORDS_MAX]; /* why it is dead */
};

/* Of nbd_renew.c, in order. */
enum nbd_renewal {
    NBD_RENEW_NO,
    NBD_RENEW_LOOKING,
    NBD_RENEW_DRAINING,
    NBD_RENEW_FLUSHING,
    NBD_RENEW_FLUSHED,
    NBD_RENEW_CONNECTING
};

struct nbd_device {
    struct device base;
    char *uri;
    struct device_nbd_ask ask;
    char *query; /* NULL: nothing is asked */
    bool wants_read_only;
    uint64_t data_end; /* inside the last sector, which zeros fill up; or base.size */
    unsigned connect_timeout_ms;
    uint64_t answer_timeout_ns;
    struct nbd_export_info info;

    unsigned nr_links;
    unsigned next_link;
    struct nbd_link links[DEVICE_NBD_CONNECTIONS_MAX];

    struct device_io_list queue;
    char *bounce_mem;
    char *bounces[NBD_BOUNCES]; /* the free ones */
    unsigned nr_bounces;

    /*
     * Writes that ended well without FUA, counted; and how many of them the last good
     * flush covers. Equal and no write in flight: the server owes us nothing.
     */
    uint64_t written, flushed;
    unsigned writes_in_flight;
    int sync_error; /* a failed FLUSH or FUA: for ever */

    enum nbd_renewal renewal;
    struct device_io_list growing; /* GROW that wait for it */
    struct device_io renew_io;     /* the flush before connections are made anew */
    struct nbd_link look;

    struct thin_timer tick;
    struct thin_task start_task, opened_task, resized_task;
    struct thin_timer open_timer;
    bool opening;
    device_nbd_opened_fn *opened;
    void *opened_arg;
    int open_result;
    struct thin_error open_error;
    struct thin_log_limit io_log, link_log;
};

/* ---- device_nbd.c ----------------------------------------------------------------- */

/*
 * Acts on what libnbd has noted: commands that ended, connections that died; sends what
 * can be sent; then settles what to watch. After anything that may have moved libnbd.
 */
void nbd_service(struct nbd_device *n);

/* From nbd_link.c: the handshake has ended well; or this attempt to connect has not. */
void nbd_link_is_up(struct nbd_link *link);
void nbd_link_failed(struct nbd_link *link, int code, const char *words);
/* What it said of its export forbids to open it. The link is down. */
void nbd_link_refused(struct nbd_link *link, const struct thin_error *err, int code);

/* ---- nbd_request.c ------------------------------------------------------------------ */

void nbd_request_submit(struct nbd_device *n, struct device_io *io);
/* Sends what is queued, as far as commands and bounce buffers reach. */
void nbd_request_pump(struct nbd_device *n);
/* Takes in the commands that ended. A server that shuts down breaks its link. */
void nbd_request_collect(struct nbd_link *link);
/* All links are down: what was outstanding is queued anew, or ends with `code` < 0. */
void nbd_request_abort(struct nbd_device *n, int code);
/* Ends what is queued and was submitted at or before `since_ns`. */
void nbd_request_expire(struct nbd_device *n, uint64_t since_ns, int code);

/* A request of the device's own goes before all others; taken back, if it is queued. */
void nbd_request_first(struct nbd_device *n, struct device_io *io);
void nbd_request_unqueue(struct nbd_device *n, struct device_io *io);

/* ---- nbd_renew.c ---------------------------------------------------------------------- */

void nbd_renew_submit(struct nbd_device *n, struct device_io *io);
/* The look shows this; or there is none, or the connections do not come back. */
void nbd_renew_looked(struct nbd_device *n, const struct nbd_export_info *info);
void nbd_renew_failed(struct nbd_device *n, int code);
/* The first connection is up, with n->info. */
void nbd_renew_connected(struct nbd_device *n);
void nbd_renew_flushed(struct nbd_device *n, int result);
/* Part of nbd_service. */
void nbd_renew_step(struct nbd_device *n);

/* ---- nbd_link.c ---------------------------------------------------------------------- */

void nbd_link_init(struct nbd_link *link, struct nbd_device *n);
/* Starts to connect from DOWN. A failure may be told inside this call. */
void nbd_link_start(struct nbd_link *link);
/* From DOWN: starts after the pause, which grows from one time to the next. */
void nbd_link_start_later(struct nbd_link *link);
/* Lets the connection go, whatever its state. `politely`: tells the server. */
void nbd_link_drop(struct nbd_link *link, bool politely);
bool nbd_link_is_dead(const struct nbd_link *link);
/* Watches for what libnbd waits for. On failure the link is broken. */
void nbd_link_watch(struct nbd_link *link);
/* libnbd's words for its last failure, on this thread; its errno or DISCONNECTED. */
int nbd_last_error(char *words, size_t max);

#endif
