/*
 * External origins: a read-only device that supplies the data of blocks that are not
 * mapped, up to its size. FORMAT.md section 14 says what is read and what is copied.
 *
 *   CLOSED ─ a volume of it opens ─► OPENING ─► OPEN ─ the device is lost ─► FAILED
 *                                      ▲  └─ it cannot be opened ─► FAILED ─┐
 *                                      └── somebody reads, a second later ──┘
 *
 * One for each name, shared by the volumes that stand on it, closed with the last of
 * them. Opening is the server's (pool_params.origin_open). While it is FAILED, requests
 * that need it fail with -EIO, and only those. Its identity is in the volume's record;
 * where the two differ the volume is read-only. One thread: the pool's.
 */
#ifndef THIN_CORE_POOL_ORIGIN_H
#define THIN_CORE_POOL_ORIGIN_H

#include "core/pool/io_private.h"

struct origin;

/* Waits until an origin is open, or has failed. Embed. */
struct origin_wait {
    void (*done)(struct origin_wait *wait); /* never from inside origin_wait */
    TAILQ_ENTRY(origin_wait) link;
};

/* The one of that name, which begins to open if need be. NULL: out of memory. */
struct origin *origin_get(struct pool *pool, const char *uri);
void origin_put(struct origin *origin); /* NULL is fine */
/* False: it is settled already, nobody will be told. */
bool origin_wait(struct origin *origin, struct origin_wait *wait);
/* It is open, and is not what the volume's record says. */
bool origin_changed(const struct volume_core *core);
/* At each opening of the volume: remembers and tells that its origin has changed, or
   forgets it; forgets it of a volume that is gone. What `changed` knows is for lists. */
void origin_note(struct volume_core *core);
void origin_note_gone(struct pool *pool, uint32_t dev_id);
bool origin_noted_changed(const struct pool *pool, uint32_t dev_id);
/* No opening nor closing at work. */
bool origins_idle(const struct pool *pool);
/* After the last volume went, at the end of the pool: how many devices close yet. */
unsigned origins_closing(const struct pool *pool);

/* [begin, end) of the volume is, in part, the origin's where nothing is mapped. */
static inline bool
origin_backs(const struct volume_core *core, uint64_t begin)
{
    return begin < core->origin_size;
}

/*
 * Reads [offset, offset + len) of the volume from the origin into iov; what is beyond the
 * origin's end is the caller's. Opens it again if it must. `done` never from inside.
 */
void origin_read(struct volume_frag *frag, uint64_t offset, uint64_t len,
                 struct iovec *iov, unsigned nr_iov,
                 void (*done)(struct volume_frag *frag, int result));

/* Opens, tells identity and size, closes: for a volume that is to be made. */
void origin_probe(struct pool *pool, const char *uri,
                  void (*done)(void *arg, int result, const struct thin_error *err,
                               const char *identity, uint64_t size),
                  void *arg);

#endif
