/*
 * Which holder has which volume open, and how, for every protocol. One attachment is
 * one (volume, identity): NBD connections of the same identity share it; a session of
 * our own protocol holds it by its id.
 *
 * Read-write is exclusive unless all holders ask for shared; read-only opens are always
 * allowed beside a writer. Each read-write open by another holder than the last one
 * raises the volume's epoch in the catalogue, durable before the answer; a change that
 * carries an older epoch is STALE. Main loop only.
 */
#ifndef THIN_SERVER_ATTACH_H
#define THIN_SERVER_ATTACH_H

#include "core/pool/pool.h"
#include "server/server.h"

#define ATTACH_OWN_EPOCH UINT64_MAX /* for who knows no epoch: the attachment's */

struct attach_table;

/* Who waits until the volume is his also on disk. Embed it. */
struct attach_waiter {
    void (*done)(struct attach_waiter *waiter, int result);
    STAILQ_ENTRY(attach_waiter) link;
};

/* One open of one volume by one connection or session handle. */
struct attachment {
    struct volume *volume;
    bool read_only;
    uint64_t epoch;
    /* Somebody else took the volume, or its pool was closed: every change is STALE from
       now on. NULL: nobody wants to know. From inside somebody else's call. */
    void (*fenced)(void *arg);
    void *fenced_arg;
    /* The table's. */
    unsigned generation;
    unsigned in_flight; /* changes */
    bool lazy;          /* the epoch is not raised yet */
    bool raising;
    STAILQ_HEAD(, attach_waiter) waiters;
    struct attach_volume *entry;
    TAILQ_ENTRY(attachment) link;
};

struct attach_request {
    const char *pool, *volume; /* copied */
    const char *holder;        /* identity; copied */
    uint64_t session;          /* 0 for NBD: the identity is the holder */
    bool read_only;
    bool fall_back_read_only; /* another holder has it: open read-only instead */
    bool shared, steal;
    /* The epoch is raised by the first change: who only reads leaves no trace. */
    bool lazy;
};

int attach_create(struct server *server, struct attach_table **ret);
void attach_destroy(struct attach_table *table); /* nothing is open */

/*
 * Opens. `opened` on a turn of its own: 0 and an attachment (the caller's until
 * attach_close), -THIN_E_NOT_FOUND, -THIN_E_BUSY with the holder's name, pool errors.
 */
void attach_open(struct attach_table *table, const struct attach_request *request,
                 void (*opened)(void *arg, struct attachment *attachment, int result,
                                const struct thin_error *err),
                 void *arg);

/* No request of it in flight. Frees it. */
void attach_close(struct attach_table *table, struct attachment *attachment);

/* 0, or -THIN_E_STALE: somebody else attached since; -THIN_E_READ_ONLY. */
int attach_check(const struct attachment *attachment, uint64_t epoch);
/*
 * The same for a change at its submission; 0: it is counted until attach_end, and who
 * takes the volume over is answered only when it has ended, so that no old write lands
 * after a new one. -THIN_E_WOULD_BLOCK, of a lazy one: attach_raise comes first.
 */
int attach_begin(struct attachment *attachment, uint64_t epoch);
void attach_end(struct attachment *attachment);
/* Whoever holds it has gone: a write of its that waits for room is answered now, or it
   would keep the volume from everybody. NULL is fine. */
void attach_drain(struct attachment *attachment);
/* `waiter` is told, on a turn of its own, when attach_begin can be tried again, or why it
   cannot; at once only if there is no memory. Counts as a request in flight. */
void attach_raise(struct attach_table *table, struct attachment *attachment,
                  struct attach_waiter *waiter);

/*
 * Around a rename: nobody opens either name in between; who has the volume open keeps
 * it under its new name. -THIN_E_BUSY while it is being opened or renamed.
 */
int attach_rename_begin(struct attach_table *table, const char *pool, const char *volume,
                        const char *new_name, struct thin_error *err);
void attach_rename_end(struct attach_table *table, const char *pool, const char *volume,
                       const char *new_name, bool renamed);

/* The pool was closed by force: what is attached in it is attached no more. */
void attach_pool_gone(struct attach_table *table, const char *pool);

/* The pool's name; the volume's is volume_name(attachment->volume). */
const char *attach_pool_name(const struct attachment *attachment);

/* Who holds it read-write now: identity, or "" . */
const char *attach_holder(const struct attach_table *table, const char *pool,
                          const char *volume);

#endif
