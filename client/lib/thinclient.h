/*
 * libthinclient: volumes of a thinsrv, for any event loop.
 *
 * One *client* is one session with one server. It reconnects by itself and carries on
 * where it was: a request is done exactly once while the session lives, whatever
 * happens to connections meanwhile. One *volume* is one open volume of a client.
 *
 * Asynchronous use, in any loop:
 *
 *      c = thin_client_create();
 *      thin_client_set_server(c, "tls://store:10819");
 *      thin_client_set_tls(c, "client-cert.pem", "client-key.pem", "ca-cert.pem", NULL);
 *      thin_client_connect(c, on_connected, me);
 *      watch thin_client_fd(c) for reading; each time it is ready: thin_client_ready(c);
 *
 * The descriptor is the same for the client's whole life, whatever it is connected to;
 * it also becomes ready when a timer of the client is due, so that nothing else needs
 * watching. Loops that keep time themselves may ask thin_client_timeout_ms.
 *
 * Waiting use: the calls that end in _wait run all that by themselves.
 *
 * Rules for all calls
 *   Results   0 (or a count), or a negative code: -1 to -999 is -errno, from -1001 on
 *             thinsrv's own (THIN_CLIENT_E_ names a few); thin_client_strerror tells
 *             any. Words about the last failed call: thin_client_error.
 *   Threads   A client and its volumes belong to one thread at a time; different
 *             clients know nothing of one another. No global state, no threads of its
 *             own, no signals (writing to a lost peer raises none).
 *   Callbacks are made by thin_client_ready, the _wait calls and thin_client_destroy,
 *             never by the call that was given them, and exactly once for each call
 *             that returned 0. They may call anything but thin_client_destroy,
 *             thin_client_ready and the _wait calls.
 *   Buffers   of a read or write, and what an iovec points to, are borrowed until the
 *             callback; the iovec array itself only during the call. A buffer of a
 *             write must not change before that if data checksums are on.
 *   Waiting   Only the _wait calls wait, and connecting to a host *name*: the resolver
 *             is asked then. With an address, nothing does.
 */
#ifndef THIN_CLIENT_H
#define THIN_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define THIN_CLIENT_API __attribute__((visibility("default")))
#else
#define THIN_CLIENT_API
#endif

struct thin_client;
struct thin_client_volume;

/* Codes that a caller may want to tell apart. Their numbers never change. */
#define THIN_CLIENT_E_NO_DATA_SPACE 1008 /* the pool is full */
#define THIN_CLIENT_E_READ_ONLY     1010
#define THIN_CLIENT_E_NOT_FOUND     1013 /* also where the caller has no right */
#define THIN_CLIENT_E_BUSY          1015 /* somebody else has it attached */
#define THIN_CLIENT_E_INVALID       1016
#define THIN_CLIENT_E_RANGE         1017 /* beyond the volume's end */
#define THIN_CLIENT_E_ROLLED_BACK \
    1018 /* writes that were not flushed are lost: open anew */
#define THIN_CLIENT_E_STALE           1019 /* another one has the volume now: open anew */
#define THIN_CLIENT_E_DENIED          1020
#define THIN_CLIENT_E_LIMIT           1023 /* too large, or too many at once */
#define THIN_CLIENT_E_CANCELLED       1025
#define THIN_CLIENT_E_DISCONNECTED    1026
#define THIN_CLIENT_E_TIMED_OUT       1027
#define THIN_CLIENT_E_TLS             1032
#define THIN_CLIENT_E_UNKNOWN_OUTCOME 1036 /* done or not done: ask */

/* Static words for any code. */
THIN_CLIENT_API const char *thin_client_strerror(int code);
/* The nearest positive errno. */
THIN_CLIENT_API int thin_client_errno(int code);
/* The library's version, "0.1.0". Static. */
THIN_CLIENT_API const char *thin_client_version(void);

/* ---- life -------------------------------------------------------------------------- */

/* NULL: out of memory or descriptors (errno tells). Connects to nothing. */
THIN_CLIENT_API struct thin_client *thin_client_create(void);
/*
 * Ends everything: what is outstanding gets -CANCELLED by its callback, volumes that are
 * open are given back to the server if that needs no waiting (else its lease ends
 * them), their handles are dead. For an orderly end close the volumes first. NULL is
 * fine.
 */
THIN_CLIENT_API void thin_client_destroy(struct thin_client *client);

/* Words of the last failed call or connection of this client; valid until the next
   call. */
THIN_CLIENT_API const char *thin_client_error(const struct thin_client *client);

/* Settings: before thin_client_connect. 0, -ENOMEM or -INVALID with words. */

/* "unix:PATH", "tls://HOST[:PORT]". Default: unix:/run/thinsrv/thinsrv.sock. */
THIN_CLIENT_API int thin_client_set_server(struct thin_client *client,
                                           const char *address);
/* PEM files; `crl` may be NULL. Read at the call. Needed for tls://. */
THIN_CLIENT_API int thin_client_set_tls(struct thin_client *client, const char *cert,
                                        const char *key, const char *ca, const char *crl);
/* How the server's lists and logs call this client. Default: the program's name. */
THIN_CLIENT_API int thin_client_set_name(struct thin_client *client, const char *name);
/* CRC-32C over the data of each read and write, end to end. Default: off. */
THIN_CLIENT_API void thin_client_set_data_checksums(struct thin_client *client, bool on);
/* For one attempt to connect, TLS and hello together. Default: 10 s. */
THIN_CLIENT_API void thin_client_set_connect_timeout_ms(struct thin_client *client,
                                                        unsigned ms);
/*
 * A client that was connected once reconnects for ever. When it has been without a
 * server for so long, requests that wait fail with -DISCONNECTED, and further ones at
 * once, until it is back. 0 (default): they wait for ever.
 */
THIN_CLIENT_API void thin_client_set_offline_timeout_ms(struct thin_client *client,
                                                        unsigned ms);
/* Also the first connect is tried again and again. Default: its failure is final. */
THIN_CLIENT_API void thin_client_set_retry_first(struct thin_client *client, bool on);

/* What the server tells unasked, and what becomes of the connection. */
enum thin_client_event_kind {
    THIN_CLIENT_EVENT_CONNECTED,    /* again; text: server */
    THIN_CLIENT_EVENT_DISCONNECTED, /* text: why; requests wait */
    THIN_CLIENT_EVENT_RESIZED,      /* volume, size */
    THIN_CLIENT_EVENT_FENCED,       /* volume: -STALE from now on */
    THIN_CLIENT_EVENT_ROLLED_BACK,  /* volume: -ROLLED_BACK from now on */
    THIN_CLIENT_EVENT_OTHER,        /* see name, object and text */
};
struct thin_client_event {
    enum thin_client_event_kind kind;
    const char *name;   /* as the server calls it: "pool-mode", "low-water", ... */
    const char *object; /* POOL or POOL/VOLUME, or "" */
    const char *text;   /* for a person, or "" */
    struct thin_client_volume *volume; /* or NULL */
    uint64_t size;
    uint64_t number; /* of server events; 0: the library's own */
};
/* `event` and its strings live during the callback only. NULL: none. */
THIN_CLIENT_API void thin_client_set_event_callback(
    struct thin_client *client,
    void (*on_event)(void *arg, const struct thin_client_event *event), void *arg);

/* ---- the loop's side --------------------------------------------------------------- */

#define THIN_CLIENT_READ  1u
#define THIN_CLIENT_WRITE 2u

/* To be watched for thin_client_events; the same as long as the client lives. */
THIN_CLIENT_API int thin_client_fd(const struct thin_client *client);
/* THIN_CLIENT_READ, always: here for loops that ask. */
THIN_CLIENT_API unsigned thin_client_events(const struct thin_client *client);
/* Until the next timer is due, or -1. The descriptor tells it as well. */
THIN_CLIENT_API int thin_client_timeout_ms(const struct thin_client *client);
/* Does all that can be done without waiting, and makes the callbacks that are due. */
THIN_CLIENT_API void thin_client_ready(struct thin_client *client);
/*
 * While corked, requests are only collected; the last uncork sends them in few packets.
 * Inside callbacks that is so by itself. Corks count.
 */
THIN_CLIENT_API void thin_client_cork(struct thin_client *client);
THIN_CLIENT_API void thin_client_uncork(struct thin_client *client);

/* ---- connecting -------------------------------------------------------------------- */

/*
 * Starts. `done`: 0 once connected, or why the first attempt failed (with
 * thin_client_set_retry_first only what cannot change: certificates that do not load,
 * an address that is none). -BUSY when started already.
 */
THIN_CLIENT_API int thin_client_connect(struct thin_client *client,
                                        void (*done)(void *arg, int result), void *arg);
THIN_CLIENT_API int thin_client_connect_wait(struct thin_client *client);
THIN_CLIENT_API bool thin_client_is_connected(const struct thin_client *client);
/* "thinsrv 0.1.0" or the like; "" before the first connection. Until the next call. */
THIN_CLIENT_API const char *thin_client_server_version(const struct thin_client *client);

/* ---- volumes ----------------------------------------------------------------------- */

#define THIN_CLIENT_OPEN_READ_ONLY 1u
#define THIN_CLIENT_OPEN_SHARED    2u /* read-write beside others who also ask for it */
#define THIN_CLIENT_OPEN_STEAL     4u /* end another holder's attachment */

/*
 * Opens "POOL/VOLUME". `done` brings 0 and the volume, or why not and NULL. The volume
 * is the caller's until thin_client_close's callback or thin_client_destroy.
 */
THIN_CLIENT_API int
thin_client_open(struct thin_client *client, const char *name, unsigned flags,
                 void (*done)(void *arg, int result, struct thin_client_volume *volume),
                 void *arg);
/*
 * Requests that the server has not got yet are cancelled, the others are awaited, then
 * the volume is given back: `done`, and the handle is dead, also if the result is not 0.
 * Flushes nothing. `done` may be NULL.
 */
THIN_CLIENT_API int thin_client_close(struct thin_client_volume *volume,
                                      void (*done)(void *arg, int result), void *arg);

THIN_CLIENT_API const char *
thin_client_volume_name(const struct thin_client_volume *volume);
THIN_CLIENT_API uint64_t thin_client_volume_size(const struct thin_client_volume *volume);
/* The pool's data block size: the unit of allocation, discard and sharing. */
THIN_CLIENT_API uint32_t
thin_client_volume_block_size(const struct thin_client_volume *volume);
THIN_CLIENT_API bool
thin_client_volume_is_read_only(const struct thin_client_volume *volume);
/* Bytes that one read or write may have. */
THIN_CLIENT_API uint32_t
thin_client_volume_max_request(const struct thin_client_volume *volume);
/* 0, or why every request to the volume fails: -STALE, -ROLLED_BACK, ... */
THIN_CLIENT_API int thin_client_volume_state(const struct thin_client_volume *volume);

/* ---- requests ---------------------------------------------------------------------- */

#define THIN_CLIENT_FUA       1u /* answered when it is durable */
#define THIN_CLIENT_NO_HOLE   2u /* write zeroes: keep the space allocated */
#define THIN_CLIENT_FAST_ZERO 4u /* write zeroes: -EOPNOTSUPP rather than slowly */

#define THIN_CLIENT_REQUESTS_MAX 4096u /* outstanding in one client; then -LIMIT */
#define THIN_CLIENT_IOV_MAX      1024u /* entries in one request */

/*
 * Any byte offset and length inside the volume; a length of 0 succeeds. `done` may come
 * in another order than the calls. Refused at once, with no `done`: -RANGE, -LIMIT
 * (over max_request, or too many outstanding), -READ_ONLY, -ENOMEM, -DISCONNECTED
 * (offline timeout), and the volume's state.
 */
THIN_CLIENT_API int thin_client_read(struct thin_client_volume *volume,
                                     const struct iovec *iov, unsigned nr_iov,
                                     uint64_t offset, void (*done)(void *arg, int result),
                                     void *arg);
/* flags: FUA. */
THIN_CLIENT_API int thin_client_write(struct thin_client_volume *volume,
                                      const struct iovec *iov, unsigned nr_iov,
                                      uint64_t offset, unsigned flags,
                                      void (*done)(void *arg, int result), void *arg);
/* Makes durable every write of this volume whose `done` has been called before. */
THIN_CLIENT_API int thin_client_flush(struct thin_client_volume *volume,
                                      void (*done)(void *arg, int result), void *arg);
/* Gives whole blocks back; they read as zeros or as the origin does. flags: FUA. */
THIN_CLIENT_API int thin_client_discard(struct thin_client_volume *volume,
                                        uint64_t offset, uint64_t len_bytes,
                                        unsigned flags,
                                        void (*done)(void *arg, int result), void *arg);
/* The range reads as zeros. flags: FUA, NO_HOLE, FAST_ZERO. */
THIN_CLIENT_API int thin_client_write_zeroes(struct thin_client_volume *volume,
                                             uint64_t offset, uint64_t len_bytes,
                                             unsigned flags,
                                             void (*done)(void *arg, int result),
                                             void *arg);

#define THIN_CLIENT_EXTENT_HOLE    1u  /* nothing allocated */
#define THIN_CLIENT_EXTENT_ZERO    2u  /* reads as zeros */
#define THIN_CLIENT_EXTENT_SHARED  4u  /* with a snapshot */
#define THIN_CLIENT_EXTENT_ORIGIN  8u  /* comes from the external origin */
#define THIN_CLIENT_EXTENT_CHANGED 16u /* since the snapshot asked about */
struct thin_client_extent {
    uint64_t len_bytes;
    uint32_t flags;
};
/*
 * What is behind a range, in extents from `offset` on; they may end before the range
 * does, never with none (ask again behind them), and are the callback's only. `since`: a
 * snapshot's name, or NULL.
 */
THIN_CLIENT_API int thin_client_block_status(
    struct thin_client_volume *volume, uint64_t offset, uint64_t len_bytes,
    const char *since,
    void (*done)(void *arg, int result, const struct thin_client_extent *extents,
                 unsigned nr_extents),
    void *arg);

/* ---- the same, waiting ------------------------------------------------------------- */

/*
 * Each runs the client until its own request is done (callbacks of others are made
 * meanwhile). Not to be used inside callbacks. Reads and writes may be of any length:
 * they are cut into requests of allowed size.
 */
THIN_CLIENT_API int thin_client_open_wait(struct thin_client *client, const char *name,
                                          unsigned flags,
                                          struct thin_client_volume **ret_volume);
THIN_CLIENT_API int thin_client_close_wait(struct thin_client_volume *volume);
THIN_CLIENT_API int thin_client_read_wait(struct thin_client_volume *volume, void *buf,
                                          size_t len_bytes, uint64_t offset);
THIN_CLIENT_API int thin_client_write_wait(struct thin_client_volume *volume,
                                           const void *buf, size_t len_bytes,
                                           uint64_t offset, unsigned flags);
THIN_CLIENT_API int thin_client_flush_wait(struct thin_client_volume *volume);
THIN_CLIENT_API int thin_client_discard_wait(struct thin_client_volume *volume,
                                             uint64_t offset, uint64_t len_bytes,
                                             unsigned flags);
THIN_CLIENT_API int thin_client_write_zeroes_wait(struct thin_client_volume *volume,
                                                  uint64_t offset, uint64_t len_bytes,
                                                  unsigned flags);

#ifdef __cplusplus
}
#endif

#endif
