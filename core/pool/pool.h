/*
 * The live engine: a pool that serves volumes. The one header that the server reads.
 *
 * A pool is a state machine on one loop, its home: every call is made there, every
 * callback comes there, once, and never from inside the call that registered it. It
 * starts no thread and opens no socket. Nothing here waits.
 *
 * Promises (the longer form is in ARCHITECTURE.md):
 *  - a write that was answered and then flushed, or written with FUA, survives any crash;
 *  - an unflushed write is after a crash, for each 512-byte sector, old or new; never
 *    another volume's data, never a block's stale contents;
 *  - a flush never succeeds over a lost write: what a roll-back took answers
 *    -THIN_E_ROLLED_BACK until the volume is opened anew;
 *  - an admin call is answered when its change is durable.
 */
#ifndef THIN_CORE_POOL_POOL_H
#define THIN_CORE_POOL_POOL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "core/base/error.h"
#include "core/base/loop.h"
#include "core/base/name.h"
#include "core/device/device.h"

#define POOL_ORIGIN_MAX          1024u /* bytes of an external origin's path or URI, with NUL */
#define POOL_ORIGIN_IDENTITY_MAX 128u /* bytes of what tells one from another, with NUL */
#define POOL_HOLDER_MAX          256u /* bytes of an identity that holds an attachment, with NUL */
#define POOL_TICKS_FEW           1048576u    /* from here on a pool warns that they end */
#define POOL_GROUP_MAX           64u         /* volumes in one group snapshot */
#define POOL_VOLUMES_MAX         1048576u    /* volumes in one pool's catalogue */
#define POOL_IO_BYTES_MAX        (64u << 20) /* bytes of one volume_io that carries data */

struct pool;
struct volume; /* an open volume */

enum pool_mode {
    POOL_WRITE,
    POOL_OUT_OF_DATA_SPACE,
    POOL_OUT_OF_METADATA_SPACE,
    POOL_READ_ONLY, /* with a reason in pool_info.why */
    POOL_FAIL,
};
const char *pool_mode_name(enum pool_mode mode); /* "write", "out-of-data-space", ... */

enum pool_on_full { POOL_QUEUE, POOL_ERROR };
enum pool_discards { POOL_DISCARD_OFF, POOL_DISCARD_UNMAP, POOL_DISCARD_PASSDOWN };

struct pool_auto_extend { /* for file-backed devices; percent 0: off */
    uint32_t percent;     /* used space that starts a growth */
    uint64_t step_bytes;
    uint64_t limit_bytes;
    /* In place of bytes, percent of the data device's size. Not the engine's: who opens
       the pool turns them into bytes. */
    uint32_t step_percent, limit_percent;
};

struct pool_config {             /* all but the caches may change while the pool runs */
    uint64_t commit_interval_ms; /* default 1000 */
    uint32_t commit_max_dirty;   /* metadata blocks; default a quarter of the cache */
    enum pool_on_full on_full;
    uint64_t no_space_timeout_ms; /* default 60000; 0: for ever */
    bool zeroing;                 /* default true */
    enum pool_discards discards;  /* default passdown */
    struct pool_auto_extend extend_data;
    bool extend_metadata; /* file-backed metadata grows by itself; default true */
    uint32_t
        overcommit_percent; /* virtual sizes, snapshots included, that may be promised,
                                    of the data device's size; 0: any (default) */
    uint32_t metadata_cache_blocks; /* default 16384 (64 MiB) */
    uint32_t mapping_cache_pages;   /* pages of 512 slots; default 8192 (32 MiB) */
};
void pool_config_default(struct pool_config *config);

/* Takes `dev` (NULL with a negative result). `identity` is borrowed: a text that is
   another one when the contents may be others (size, inode and time; or the export). */
typedef void (*pool_origin_opened_fn)(void *arg, struct device *dev, const char *identity,
                                      int result, const struct thin_error *err);

struct pool_params {
    struct thin_loop *loop;
    const char *name;        /* copied */
    struct device *data;     /* taken, whatever becomes of the open: closed by the pool */
    struct device *metadata; /* taken likewise */
    struct pool_config config;
    uint64_t seed; /* for ids, uuid and incarnations; from random_secret in the server */
    uint64_t
        wall_clock_s; /* Unix time at open, for creation dates; advances with the loop */
    uint8_t owner_host[16], owner_boot[16]; /* for the owner mark: machine-id, boot-id */
    bool takeover; /* also if the mark says that another machine has it */

    bool
        format; /* create: write fresh metadata and a catalogue on devices of any content */
    uint32_t data_block_sectors; /* with format */

    bool import; /* a pool without a catalogue is served from made-up records;
                                nothing is written until a change needs it */
    uint32_t import_catalogue_id; /* 0, or the thin device to look for a catalogue in */
    /* Known sizes and names of devices that the catalogue does not know (yet: import
       writes nothing, so they are given at each open); borrowed until opened. */
    const struct pool_import_volume *import_volumes;
    uint32_t nr_import_volumes;

    uint32_t leaf_max, internal_max; /* tests: small nodes */
    uint32_t cache_clean;            /* tests: clean metadata blocks in the cache */
    /*
     * Opens an external origin (a path, or a URI) for reading; it may wait, on a thread of
     * the caller's. `opened` comes once, on `loop` (which the device is for), never from
     * inside this call (but for -ENOMEM), and must come: the pool's close waits for it.
     * NULL: none.
     */
    void (*origin_open)(void *arg, struct thin_loop *loop, const char *uri,
                        pool_origin_opened_fn opened, void *opened_arg);
    void *origin_open_arg;
    /* What the engine wants to tell: mode changed, low water, resized, rolled back. */
    void (*event)(void *arg, struct pool *pool, const char *event, const char *words);
    /* Each block 0 when it has become durable, to be kept elsewhere: 4096 bytes, borrowed
       for the call, in which nothing may be asked of the pool. NULL: nobody keeps them. */
    void (*superblock)(void *arg, const void *block);
    void *event_arg; /* of both */
};

struct pool_import_volume {
    uint32_t dev_id;
    const char *name; /* NULL: thin-ID */
    uint64_t size;    /* bytes; 0: up to the highest mapping */
};

/* `pool` is NULL unless result is 0; words are borrowed for the call. */
struct pool_done {
    void (*fn)(void *arg, int result, const struct thin_error *err);
    void *arg;
};

/*
 * Opens (or formats and opens). `opened` follows even after a synchronous mistake. A
 * pool that opens with needs-check or damage opens read-only and says why. A pool that
 * another machine has open, or died with, is refused with -THIN_E_BUSY unless `takeover`.
 */
void pool_open(const struct pool_params *params,
               void (*opened)(void *arg, struct pool *pool, int result,
                              const struct thin_error *err),
               void *arg);

/*
 * Ends requests in flight (queued writes fail with -THIN_E_SHUTDOWN), commits, closes
 * the devices, frees the pool. Open volumes: refused with -THIN_E_BUSY unless `force`,
 * which fails their later requests with -THIN_E_SHUTDOWN; their handles stay valid
 * until volume_close, which may come before or after `done`.
 */
void pool_close(struct pool *pool, bool force, struct pool_done done);

/* The end is near: what waits for room ends with -THIN_E_SHUTDOWN, and nothing waits for
   room from here on. */
void pool_drain(struct pool *pool);

struct pool_info {
    char name[THIN_NAME_MAX + 1];
    uint8_t uuid[16]; /* of the catalogue; all zeros: there is none */
    enum pool_mode mode;
    bool needs_check;
    char why[THIN_ERROR_TEXT_MAX];         /* of a degraded mode, or damage; else empty */
    char what_to_do[THIN_ERROR_TEXT_MAX];  /* likewise */
    uint64_t data_size, data_used;         /* bytes */
    uint64_t metadata_size, metadata_used; /* bytes */
    uint64_t metadata_reserve; /* bytes that only what gives space back may use */
    uint64_t data_blocks_free, metadata_blocks_free;
    uint64_t data_reserved;  /* bytes promised to volumes and not taken yet */
    int64_t data_lasts_s;    /* at the present rate; negative: nothing is being taken */
    uint32_t block_size;     /* bytes */
    uint64_t transaction_id; /* the superblock's, user space's own */
    uint64_t txn;            /* the engine's own count of commits */
    uint64_t incarnation;    /* changes whenever acknowledged writes may be lost */
    uint32_t time_left;      /* snapshot ticks left of 2^24; few: see POOL_TICKS_FEW */
    uint64_t nr_volumes, virtual_bytes; /* snapshots included */
    uint64_t held_root;
    uint64_t cache_hits, cache_misses; /* metadata cache */
    uint64_t map_hits, map_misses;     /* mapping cache */
    uint64_t commits, longest_step_ns;
    char longest_step[64];
    uint32_t locks_high_water;
    struct pool_config config;
};
void pool_get_info(struct pool *pool, struct pool_info *ret_info);

/*
 * Steps on the home loop by name, since the pool was opened: how often, how long, and how
 * many metadata blocks were locked at once. No step should take longer than POOL_STEP_NS;
 * a step that is part of another one is counted in both. Gives the number of entries.
 */
#define POOL_STEP_NS      (200 * 1000ull)
#define POOL_STEPS_MAX    40u /* names; the last one is for all the rest */
#define POOL_STEP_BUCKETS 8u
extern const uint64_t pool_step_bounds_ns[POOL_STEP_BUCKETS]; /* each included */
struct pool_step_info {
    char name[40];
    uint64_t count, longest_ns;
    uint64_t buckets[POOL_STEP_BUCKETS];
    uint32_t locks;
};
unsigned pool_get_steps(const struct pool *pool, struct pool_step_info *ret_steps,
                        unsigned max);
void pool_set_config(struct pool *pool, const struct pool_config *config);

/* Cheap, for every reply: what is changed now belongs to `change`; all changes up to
   `stable` are durable, as long as the incarnation is the same. */
struct pool_marks {
    uint64_t change;
    uint64_t stable;
    uint64_t incarnation;
};
void pool_get_marks(struct pool *pool, struct pool_marks *ret_marks);

/* New sizes in bytes, 0: leave. Larger only; grows the backing file if it must.
   -THIN_E_INVALID (smaller), -THIN_E_NEEDS_CHECK, -ENOSPC, ... */
void pool_grow(struct pool *pool, uint64_t data_bytes, uint64_t metadata_bytes,
               struct pool_done done);

/* Commits what is open; done when durable. */
void pool_commit(struct pool *pool, struct pool_done done);

/* Held root of the format. */
void pool_reserve_snap(struct pool *pool, struct pool_done done);
void pool_release_snap(struct pool *pool, struct pool_done done);

/* ---- pinned views ---------------------------------------------------------------------- */

#define POOL_PINS_MAX 64u

/*
 * Keeps the durable state readable on the metadata device until pool_unpin, for a reader
 * with a descriptor of his own (on any thread; see core/offline): no block that it reaches
 * is written. Costs nothing on disk and leaves nothing after a crash. Blocks freed
 * meanwhile cannot be used again before, so the engine lets go by itself (`lost`, on the
 * home loop, maybe from inside another call: only take note) when metadata space gets
 * short, when changes are rolled back and when the pool closes. What was read since may be
 * anything; pool_unpin is still due.
 *
 *   done  once: 0 and block 0 of the pinned state, 4096 bytes that live until pool_unpin;
 *         or negative, NULL, and *ret_pin is no longer valid
 *
 * 0: started; *ret_pin is to be used after `done` only. Negative: not started, no `done`:
 * -THIN_E_SHUTDOWN, -THIN_E_FAILED (not readable now), -THIN_E_LIMIT, -ENOMEM.
 */
struct pool_pin;
int pool_pin(struct pool *pool,
             void (*done)(void *arg, const void *superblock, int result,
                          const struct thin_error *err),
             void (*lost)(void *arg, int why), void *arg, struct pool_pin **ret_pin,
             struct thin_error *err);
void pool_unpin(struct pool_pin *pin); /* NULL is fine */

/* ---- volumes by name -------------------------------------------------------------------- */

struct pool_attachment {
    uint64_t epoch;               /* rises; 0: never attached */
    char holder[POOL_HOLDER_MAX]; /* empty: nobody */
    uint64_t session;
    bool shared;
};

struct volume_info {
    char name[THIN_NAME_MAX + 1];
    uint32_t dev_id;
    uint64_t size;      /* bytes */
    bool size_unknown;  /* imported without a size: up to the highest mapping */
    uint64_t mapped;    /* bytes */
    uint64_t exclusive; /* bytes that no other volume maps; only with_exclusive */
    char parent[THIN_NAME_MAX +
                1];   /* the volume it is a snapshot of; empty: none, or it is gone */
    uint64_t created; /* Unix seconds; 0: not known */
    bool read_only;
    bool deleting;
    bool is_protected;
    bool damaged; /* a request has met damaged mappings since the pool was opened */
    uint64_t reserve, quota;      /* bytes; 0: none */
    char origin[POOL_ORIGIN_MAX]; /* external; empty: none */
    bool origin_changed;          /* seen when it was last opened: it is read-only */
    uint32_t open_count;
    struct pool_attachment attachment;
};

struct volume_spec {
    const char *name;
    uint64_t size;
    const char *origin; /* NULL: none */
    uint64_t reserve, quota;
};

/* -THIN_E_EXISTS, -THIN_E_INVALID, -THIN_E_LIMIT, -THIN_E_NO_METADATA_SPACE, mode errors.
   With `reserve`: -THIN_E_NO_DATA_SPACE, saying what is missing. An origin is opened to
   see that it is there; what it is then is recorded. */
void pool_volume_create(struct pool *pool, const struct volume_spec *spec,
                        struct pool_done done);

/* Snapshots of `nr` volumes at one instant (1 to POOL_GROUP_MAX); answered when writes
   in flight to the origins have ended and a later commit is durable. Strings copied. */
void pool_volume_snapshot(struct pool *pool, const char *const *origins,
                          const char *const *names, uint32_t nr, struct pool_done done);

/* The name is free when done; space comes back in the background. -THIN_E_BUSY while
   open or protected. */
void pool_volume_delete(struct pool *pool, const char *name, struct pool_done done);

/* Shrinking discards what is beyond, and needs `allow_shrink`. */
void pool_volume_resize(struct pool *pool, const char *name, uint64_t size,
                        bool allow_shrink, struct pool_done done);
void pool_volume_rename(struct pool *pool, const char *name, const char *new_name,
                        struct pool_done done);
enum volume_key { VOLUME_READ_ONLY, VOLUME_PROTECTED, VOLUME_RESERVE, VOLUME_QUOTA };
void pool_volume_set(struct pool *pool, const char *name, enum volume_key key,
                     uint64_t value, struct pool_done done);
/* The volume's contents become the snapshot's, at once. Not while open. */
void pool_volume_rollback(struct pool *pool, const char *name, const char *snapshot,
                          struct pool_done done);
/* Durable before done. The epoch never falls. */
void pool_volume_attach(struct pool *pool, const char *name,
                        const struct pool_attachment *attachment, struct pool_done done);

/*
 * Infos in order of names, from the first name above `after` (NULL: from the start),
 * at most `max`; borrowed for the call. `with_exclusive` walks all mappings in bounded
 * steps first. One volume: pool_volume_show.
 */
void pool_volume_list(struct pool *pool, const char *after, uint32_t max,
                      bool with_exclusive,
                      void (*fn)(void *arg, int result, const struct thin_error *err,
                                 const struct volume_info *infos, uint32_t nr),
                      void *arg);
void pool_volume_show(struct pool *pool, const char *name, bool with_exclusive,
                      void (*fn)(void *arg, int result, const struct thin_error *err,
                                 const struct volume_info *infos, uint32_t nr),
                      void *arg);
/* From memory, at once: true if there is such a volume (not deleting). `mapped` and
   `exclusive` are 0. */
bool pool_volume_peek(struct pool *pool, const char *name, struct volume_info *ret_info);
/* First name above `after` (NULL: the first), for lists of exports. From memory. */
bool pool_volume_next(struct pool *pool, const char *after, struct volume_info *ret_info);

/* What was asked of a volume since the pool was opened, by all handles; answered only.
   Requests refused at once (bad range, fenced, read-only) are not counted. */
struct volume_stats {
    uint64_t reads, writes, flushes, discards, zeroes;
    uint64_t read_bytes, written_bytes, discarded_bytes, zeroed_bytes;
    uint64_t errors; /* of any kind */
};
/* From memory, at once; false: no such volume. */
bool pool_volume_stats(struct pool *pool, const char *name,
                       struct volume_stats *ret_stats);

/* ---- open volumes ------------------------------------------------------------------------ */

/* -THIN_E_NOT_FOUND, -THIN_E_READ_ONLY (for !read_only on a read-only one, or one whose
   external origin is not what was recorded). An origin that cannot be opened refuses
   nothing: requests that need it fail with -EIO, and it is tried again. While the pool is
   rolled back it waits, ten seconds at most: then -THIN_E_FAILED. Counted opens; the
   policy of who may is the server's. */
void pool_volume_open(struct pool *pool, const char *name, bool read_only,
                      void (*opened)(void *arg, struct volume *volume, int result,
                                     const struct thin_error *err),
                      void *arg);
/* Who asked is gone: as pool_drain for the requests of this handle; what does not wait for
   room is finished. The pool may be closed already. */
void volume_drain(struct volume *volume);
/* No request of this handle in flight. The pool may be closed already. */
void volume_close(struct volume *volume);

uint64_t volume_size(const struct volume *volume); /* bytes, now */
uint32_t volume_block_size(const struct volume *volume);
const char *volume_name(const struct volume *volume);
struct pool *
volume_pool(const struct volume *volume); /* NULL when the pool was closed by force */
/* Told after the size changed or the volume was fenced; on the home loop. */
void volume_set_notify(struct volume *volume, void (*notify)(void *arg), void *arg);

enum volume_op {
    VOLUME_READ,
    VOLUME_WRITE,
    VOLUME_FLUSH, /* covers all writes of the volume answered before, by any handle */
    VOLUME_DISCARD,
    VOLUME_WRITE_ZEROES,
    VOLUME_STATUS, /* what backs a range: fills extents */
    VOLUME_PREFETCH,
};
#define VOLUME_FUA     1u
#define VOLUME_NO_HOLE 2u /* WRITE_ZEROES: must stay provisioned */
#define VOLUME_ONLY_FAST \
    4u /* WRITE_ZEROES: -EOPNOTSUPP at once, nothing changed, if slow */
#define VOLUME_ONE_EXTENT 8u

enum volume_extent_flags {
    VOLUME_EXTENT_HOLE = 1,   /* not mapped */
    VOLUME_EXTENT_ZERO = 2,   /* reads as zeros */
    VOLUME_EXTENT_SHARED = 4, /* maybe shared with another volume */
    VOLUME_EXTENT_ORIGIN = 8, /* comes from the external origin */
};
struct volume_extent {
    uint64_t len;
    uint32_t flags;
};

struct volume_frag;

/* A request at the data device, as the engine remembers it. The engine's. */
struct pool_inflight {
    TAILQ_ENTRY(pool_inflight) link;
    uint64_t begin, end; /* bytes on the data device */
    unsigned flags;
    unsigned phase;
};

/*
 * One request; embed it. Offsets and lengths in bytes, any value inside the volume for
 * READ and WRITE (a part of a sector is read, patched and written without tearing its
 * neighbour), DISCARD acts on whole blocks inside its range, WRITE_ZEROES on all of it.
 * Length 0 succeeds. Beyond the end: -THIN_E_RANGE. The data path allocates nothing;
 * a request that finds the pool's object pools empty waits its turn.
 */
struct volume_io {
    enum volume_op op;
    unsigned flags;
    uint64_t offset, len;
    struct iovec *iov; /* READ, WRITE: borrowed until done; sums to len */
    unsigned nr_iov;
    /* STATUS: required; they cover a prefix of the range, whole with enough room. READ:
       may be NULL; if given, holes are reported and their bytes in iov left alone; a map
       that does not fit is one DATA extent and the holes are zero-filled. */
    struct volume_extent *extents;
    unsigned max_extents;
    unsigned ret_nr_extents;
    /* DISCARD that succeeded: some of what it shares with snapshots it still maps, there
       being no metadata left to make that the volume's own. */
    bool ret_kept;
    void (*done)(struct volume_io *io, int result);

    /* The engine's, while the request runs. */
    struct volume *volume;
    TAILQ_ENTRY(volume_io) link;
    uint64_t pos;      /* bytes handed out to fragments so far */
    unsigned nr_frags; /* fragments in flight */
    int result;
    uint64_t txn; /* transaction that the answer must wait for; 0: none */
    uint64_t started_ns;
    unsigned state;
    struct device_io dio; /* the one device request of an unfragmented I/O */
    struct pool_inflight inflight;
    uint64_t redo_from; /* where a request that waited for space begins again */
    uint64_t deadline_ns;
};
void volume_submit(struct volume *volume, struct volume_io *io);

#endif
