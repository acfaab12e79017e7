/*
 * What the files of core/pool share: the pool's own struct, the runner of metadata
 * operations, how to wait for a commit, and an open volume's state. Not for other rooms.
 *
 * All of it is on the pool's home loop. "Callbacks" follow the rule of pool.h: once, and
 * never from inside the call that registered them, unless a comment says otherwise.
 */
#ifndef THIN_CORE_POOL_POOL_PRIVATE_H
#define THIN_CORE_POOL_POOL_PRIVATE_H

/* Out of memory in a hash is an answer, not an exit. */
#define HASH_NONFATAL_OOM 1
/* The default function's switch falls through, which clang is told to report. */
#define HASH_FUNCTION HASH_FNV
#include <uthash.h>

#include "core/base/random.h"
#include "core/metadata/metadata.h"
#include "core/pool/pool.h"

struct catalogue;
struct catalogue_volume;
struct admin;
struct limits;
struct origin;
struct pieces;
struct mapcache;
struct space;
struct volume_core;
struct volume_counts;
struct volume_frag;

/* ---- metadata operations (metaop.c) ------------------------------------------------------ */

#define METAOP_COMMITS_MAX 4u /* commits that an operation waits for before it gives up */

/*
 * One metadata operation, whole or not at all (metaop.c). `run` makes its changes
 * between metadata_op_begin and metadata_op_end, both called by the runner; it may be
 * run again from the start any number of times (a missing block was fetched, a commit
 * was waited for), so it must draw its conclusions anew each time and change no other
 * state; what follows from success is done in `done`.
 *
 *   runs ─ WOULD_BLOCK ─► undo, fetch, run again
 *        ─ NEED_COMMIT, CACHE_FULL ─► undo, wait for a commit, run again
 *        ─ CACHE_FULL while others hold frames ─► undo, wait for one of them, run again
 *        ─ other errors ─► undo, done(error)
 *        ─ 0 ─► admitted and kept, done(0) at once, on the same turn: nothing runs between
 *
 * Operations are tried in the order of arrival; one that waits does not hold up others.
 * A changing operation is refused (-THIN_E_READ_ONLY ...) when the pool's mode forbids
 * it; with a roll-back meanwhile it ends with -THIN_E_ROLLED_BACK.
 */
struct metaop {
    int (*run)(struct metaop *op, struct thin_error *err);
    void (*done)(struct metaop *op, int result, const struct thin_error *err);
    enum tm_purse purse;
    const char *name; /* of the step, for the histogram of step times */
    bool reads_only;  /* no op_begin/op_end around it */
    bool any_mode;    /* changes also what is read-only: the needs-check flag */

    /* The runner's. */
    struct pool *pool;
    struct bm_fetch fetch;
    unsigned state;
    bool alone; /* as bm_fetch.alone */
    uint64_t epoch;
    uint64_t wait_txn;
    unsigned
        commits_waited; /* gives up with NO_METADATA_SPACE / NO_DATA_SPACE after some */
    TAILQ_ENTRY(metaop) link;
};
TAILQ_HEAD(metaop_list, metaop);

/*
 * Starts the operation. It may run at once, but `done` is only called from inside this
 * call if `may_finish_now` (the data path's hot case); else always later.
 */
void metaop_start(struct pool *pool, struct metaop *op, bool may_finish_now);
void metaops_init(struct pool *pool);
/* A transaction became durable: operations that waited for it run again. */
void metaops_after_commit(struct pool *pool);
/* The open transaction was cut: its tables have room again, for those who wait. */
void metaops_after_cut(struct pool *pool);
/* Operations that wait for a block hold frames in the cache, and will let them go. */
bool metaops_hold_frames(const struct pool *pool);
/* The epoch has changed: all that wait are told so. */
void metaops_roll_back(struct pool *pool);
/* What they stand on is durable, or cannot be made so. */
void metaops_settled(struct pool *pool);

/* ---- what a pool stands on (settle.c) ----------------------------------------------------- */

/*
 * What was loaded becomes durable before the first write that stands on it. Changing
 * operations wait for it by themselves (metaop.c); who writes without one waits here:
 * `done` on a turn of its own with 0, the device's code (the pool is read-only then), or
 * -THIN_E_ROLLED_BACK. Not to be called for a pool that is settled.
 */
struct settle_wait {
    void (*done)(struct settle_wait *wait, int result);
    TAILQ_ENTRY(settle_wait) link;
};
TAILQ_HEAD(settle_wait_list, settle_wait);
bool pool_is_settled(const struct pool *pool);
void pool_settle(struct pool *pool, struct settle_wait *wait);
void pool_settle_begin(struct pool *pool);

/* ---- commits and flushes (commit.c) -------------------------------------------------------- */

/*
 * Waiting for durability: `done` when the transaction `txn` is durable and, if
 * `flush_data`, a data flush has succeeded that covers every data write completed before
 * this call. Starts a commit if it must. Many waiters share one commit and one flush.
 * With a roll-back between: -THIN_E_ROLLED_BACK. `done` is never called from inside.
 */
struct commit_wait {
    void (*done)(struct commit_wait *wait, int result);
    uint64_t txn; /* 0: only the data flush */
    bool flush_data;
    /* The committer's. */
    uint64_t write_seq; /* the data writes that the flush must cover */
    TAILQ_ENTRY(commit_wait) link;
};
TAILQ_HEAD(commit_wait_list, commit_wait);

void commit_join(struct pool *pool, struct commit_wait *wait);
/* As commit_join with flush_data, for writes up to `write_seq` only. */
void commit_join_seq(struct pool *pool, struct commit_wait *wait, uint64_t write_seq);
/* A change was made in the open transaction: arms the interval, heeds the bounds. The
   runner calls it after each changing operation. */
void commit_note_change(struct pool *pool);
/* The interval or the bounds are others: also for what waits already. */
void commit_config_changed(struct pool *pool);
/* A transaction that is not durable yet and holds all changes made so far; 0: all is
   durable. What commit_join takes. */
uint64_t commit_last_txn(const struct pool *pool);
/* The transaction is to be committed soon; nobody is told. */
void commit_want(struct pool *pool, uint64_t txn);
/* Blocks that a commit (or a view that went) set free are let go, a bounded number in
   each turn; commit_freeing: more is to come, so who waits for room waits on. */
void commit_free(struct pool *pool);
bool commit_freeing(const struct pool *pool);
/* An operation has let go of frames, which the merge may wait for. */
void commit_frames_let_go(struct pool *pool);
void commit_init(struct pool *pool);
/* Metadata stands in memory (opened, or loaded again): numbers begin there. */
void commit_begin_epoch(struct pool *pool);
/* Everyone who waits fails with `result`; nothing is in flight or will be begun. */
void commit_roll_back(struct pool *pool, int result);
void commit_stop(struct pool *pool); /* cancels timers and tasks */

/*
 * Every write, write-zeroes and discard to the data device is framed by these two, also
 * the catalogue's: they tell the next flush what it covers, and a roll-back and the
 * close what to wait for. `end` belongs into the completion, before anything else.
 */
void pool_data_begin(struct pool *pool);
void pool_data_end(struct pool *pool, bool wrote, uint64_t bytes);

enum commit_state {
    COMMIT_IDLE,
    COMMIT_PREFLUSH,   /* a data flush so that the one that counts is short */
    COMMIT_MERGING,    /* merge steps, then the cut */
    COMMIT_WRITING,    /* the cut's blocks, and the data flush beside them */
    COMMIT_FLUSHING,   /* the metadata device */
    COMMIT_SUPERBLOCK, /* the one write that counts */
};

struct committer {
    enum commit_state state;
    bool wanted;          /* a commit is to begin, or another one when this one ends */
    bool fetching;        /* the merge waits for a block */
    bool wants_frames;    /* it waits until operations let go of frames */
    bool alone;           /* as bm_fetch.alone, for this step of the merge */
    unsigned cut_put_off; /* turns so far */
    bool suspected;       /* it met damage once, and looks again */
    bool at_cut;          /* it is behind the merge; what it waits for the cut needs */
    bool blocks_written;  /* of COMMIT_WRITING's two halves */
    uint64_t epoch;       /* that the running commit belongs to */
    uint64_t cut_txn;     /* the one being written; 0: none */
    uint64_t cut_seq;     /* data writes that it stands on */
    uint64_t durable_txn;
    void *superblock;
    struct bm_fetch fetch;
    struct commit_wait_list waits, ready, failed; /* ready, failed: to be told */
    int failed_result;
    struct thin_task step_task, wake_task;
    struct thin_task free_task;
    bool freeing;
    struct thin_timer interval;
    uint64_t nr_commits;
    unsigned md_io; /* callbacks of the block manager to come */

    /* The data flush: one in flight, the rest wait for the next. */
    struct device_io flush_io;
    bool flushing;
    uint64_t flush_epoch;
    uint64_t flush_need; /* writes that somebody wants covered */
    uint64_t bytes_at_flush;
    uint64_t write_seq;       /* data writes completed */
    uint64_t bytes_unflushed; /* about */
    uint64_t flush_seq;       /* write_seq when the running flush was submitted */
    uint64_t flushed_seq;     /* writes covered by the last success */
};

/* ---- volumes (volume.c) ----------------------------------------------------------------------- */

struct map_page;
struct space_window;
TAILQ_HEAD(volume_frag_list, volume_frag);
TAILQ_HEAD(volume_io_list, volume_io);

/* Waits until the writes in place that are in flight now have ended. Embed. */
struct quiesce {
    void (*done)(struct quiesce *q); /* never from inside volume_core_quiesce */
    TAILQ_ENTRY(quiesce) link;
};
TAILQ_HEAD(quiesce_list, quiesce);

#define WRITE_PLACES 8u /* streams of first writes that are told apart in a volume */

/*
 * A thin device that has open handles: one for each dev_id, shared by the handles.
 */
struct volume_core {
    struct pool *pool;
    uint32_t dev_id;
    char name[THIN_NAME_MAX + 1];
    uint64_t size;             /* bytes */
    uint32_t snapshotted_time; /* a mapping older than this is shared */
    struct origin *origin;     /* external; NULL: none */
    uint64_t origin_size;      /* bytes of the volume that it stands behind; 0: none */
    char origin_identity[POOL_ORIGIN_IDENTITY_MAX]; /* as recorded */
    bool read_only;                                 /* the record's flag */

    TAILQ_HEAD(, volume) handles;
    unsigned nr_handles;
    unsigned holds; /* handles, and who is about to be one */

    uint64_t epoch;       /* that snapshotted_time was read in */
    uint64_t changed_txn; /* last transaction that changed its mappings */
    uint64_t write_seq;   /* committer.write_seq after its last data write */

    /* Writes in place in flight, in two phases for volume_core_quiesce. */
    unsigned phase;
    unsigned writes_in_place[2];
    struct quiesce_list quiescing;    /* wait for the phase that is not the present one */
    struct quiesce_list quiesce_next; /* wait for their turn */
    struct quiesce_list quiesced;     /* to be told */
    struct thin_task quiesce_task;
    bool telling; /* quiesce_task is on its way, and holds the core */

    /* Of limits.c, in data blocks. */
    uint64_t quota; /* 0: none */
    uint64_t mapped, claimed, claimed_holes;

    struct volume_stats *stats; /* the pool's; NULL: not counted */

    unsigned nr_pieces; /* blocks that pieces.c remembers something of */
    unsigned nr_rmw;    /* part-sector writes at work: overwrites look at the cells */
    struct map_page *map_hot; /* the page found last */
    LIST_HEAD(, map_page) pages;
    TAILQ_HEAD(, space_window) windows; /* most recently used first */
    unsigned nr_windows;
    vblock_t
        places[WRITE_PLACES]; /* behind the latest claims, for each of some writers */
    unsigned next_place;      /* the oldest of them */

    TAILQ_ENTRY(volume_core) link;
    UT_hash_handle hh; /* pool->cores_by_id */
};
TAILQ_HEAD(volume_core_list, volume_core);

struct volume {
    struct volume_core *core; /* NULL once the pool was closed by force */
    struct pool *pool;        /* likewise */
    struct thin_loop *loop;
    bool read_only;
    bool drained; /* nothing of it waits for room any more */
    int fenced;   /* 0, or what every request is answered with */
    uint32_t block_size;
    uint64_t size_at_close;
    char name[THIN_NAME_MAX + 1];
    unsigned in_flight;
    void (*notify)(void *arg);
    void *notify_arg;
    struct thin_task notify_task;
    struct volume_io_list finished; /* answered without a device: told by done_task */
    struct thin_task done_task;
    TAILQ_ENTRY(volume) link;
};

/* The open core of a device or volume, or NULL. */
struct volume_core *volume_core_find(struct pool *pool, uint32_t dev_id);
/* After a snapshot of `core` was taken, in the same turn (metaop.done): later writes find
   their blocks shared. `time` is the details' snapshotted_time. */
void volume_core_set_time(struct volume_core *core, uint32_t time);
/* The core lives until as many puts. */
void volume_core_hold(struct volume_core *core);
void volume_core_put(struct volume_core *core);
void volume_core_quiesce(struct volume_core *core, struct quiesce *q);
/* The record changed: tells the handles. volume_core_follow: all that the record holds. */
void volume_core_set_size(struct volume_core *core, uint64_t size);
void volume_core_set_name(struct volume_core *core, const char *name);
void volume_core_follow(struct volume_core *core, const struct catalogue_volume *cv);
/* Requests of every handle are answered with `code` from now on. */
void volume_core_fence(struct volume_core *core, int code);
/* What the volume changed must be waited for in `txn`. */
void volume_core_changed(struct volume_core *core, uint64_t txn);

/*
 * Unmaps [begin, end) of a device in bounded steps, whether open or not, with the cells
 * and the mapping cache of an open one heeded. One at a time for each struct.
 */
struct unmap {
    void (*done)(struct unmap *u, int result, const struct thin_error *err);
    uint32_t dev_id;
    vblock_t begin, end;
    enum tm_purse purse;
    /* Asked in each step before anything is unmapped; NULL: always. */
    bool (*still)(struct unmap *u);
    /* unmap's */
    struct pool *pool;
    uint64_t epoch;
    vblock_t step_begin, step_end, ret_end;
    uint64_t most; /* blocks of a step: fewer where there is little metadata left */
    uint64_t unmapped, step_unmapped;
    uint64_t txn; /* last transaction that it changed; 0: none */
    struct metaop op;
    struct thin_task task;
    TAILQ_ENTRY(unmap) link;
    bool has_range, waiting, given_up;
};
void unmap_start(struct pool *pool, struct unmap *u);

/* ---- space (space.c) ------------------------------------------------------------------------- */

/*
 * A run of free data blocks, at most `wanted` long, that no write in flight and no
 * window has claimed; for an operation that takes and maps it at once (metadata_take_data
 * and metadata_insert in the same run). *ret_len 0: none. May be -THIN_E_WOULD_BLOCK.
 */
int space_find(struct pool *pool, uint64_t wanted, dblock_t *ret_begin, uint64_t *ret_len,
               struct thin_error *err);
/* The pool has more room (grown, freed): queued writes go on. */
void space_resume(struct pool *pool);
/* After the data space map or the device grew: takes over the new number of blocks. */
void space_grown(struct pool *pool);
/* How many data blocks freed for good can be noted now; 0: pass-downs must end first. */
uint64_t space_room_for_freed(struct pool *pool);
void space_pass_down(struct pool *pool); /* those that were noted begin */

/* ---- the pool ------------------------------------------------------------------------------- */

#define POOL_FRAGS_MAX  1024u      /* fragments at work in one pool */
#define POOL_COPIES_MAX 16u        /* blocks being copied at once */
#define POOL_COPY_PIECE (1u << 20) /* bytes of one copy buffer */

/* Of steps.c. */
struct pool_steps {
    struct pool_step_info entries[POOL_STEPS_MAX];
    const char *names[POOL_STEPS_MAX];
    unsigned nr;
    uint32_t locks;
};

#define POOL_CHANGED_ORIGINS_MAX 256u /* volumes listed with a changed origin */
#define POOL_DAMAGED_MAX         256u /* damaged volumes that are listed one by one */

struct pool {
    struct thin_loop *loop;
    char name[THIN_NAME_MAX + 1];
    struct device *data, *metadata_dev;
    struct metadata *md; /* the same object over roll-backs */
    struct block_manager *bm;
    struct pool_config config;
    struct thin_random rng;
    uint64_t wall_clock_s, opened_ns; /* see pool_wall_clock */
    uint8_t owner_host[16], owner_boot[16];
    void (*event)(void *arg, struct pool *pool, const char *event, const char *words);
    void (*keep_superblock)(void *arg, const void *block); /* may be NULL */
    void *event_arg;                                       /* of both */
    const struct pool_params *params;                      /* only while opening */

    uint32_t block_size;  /* bytes */
    unsigned block_shift; /* 0: the block size is no power of two */
    uint64_t nr_data_blocks;

    enum pool_mode mode;
    char why[THIN_ERROR_TEXT_MAX], what_to_do[THIN_ERROR_TEXT_MAX];
    bool opened;
    bool closing;      /* nothing new is begun */
    bool rolling_back; /* waits for I/O of the old epoch, then loads again */
    uint64_t epoch;    /* of the metadata object: +1 at each roll-back */
    bool settled;      /* what was loaded is durable (settle.c) */
    bool settling;
    int settle_result;
    uint64_t settle_epoch;
    struct settle_wait_list settle_waits;
    /* The metadata is damaged; the pool goes on around it. Empty: not known to be. */
    char damage[THIN_ERROR_TEXT_MAX];
    uint32_t
        damaged_ids[POOL_DAMAGED_MAX]; /* volumes whose mappings are damaged in parts */
    unsigned nr_damaged;
    /* Volumes whose external origin was another one when they were last opened. */
    uint32_t changed_origin_ids[POOL_CHANGED_ORIGINS_MAX];
    unsigned nr_changed_origins;
    bool wants_check; /* the flag is to be on disk */
    bool marking;     /* it is being written, once, after a roll-back */

    struct catalogue *catalogue;
    struct admin *admin;
    struct mapcache *mapcache;
    struct space *space;
    struct limits *limits;
    struct pieces *pieces;
    LIST_HEAD(, origin) origins;
    unsigned nr_origin_openings, nr_origin_closings;
    void (*origin_open)(void *arg, struct thin_loop *loop, const char *uri,
                        pool_origin_opened_fn opened, void *opened_arg);
    void *origin_open_arg;
    struct committer commit;
    struct volume_core_list cores;
    struct volume_core *cores_by_id;

    LIST_HEAD(, pool_pin) pins;   /* pin.c; newest first */
    struct volume_counts *counts; /* counts.c */

    struct metaop_list ops_commit; /* wait for a commit */
    struct metaop_list ops_fetch;  /* wait for a block */
    struct metaop_list ops_room;   /* wait for others' frames of the cache */
    struct metaop_list ops_late;   /* finished, to be told by ops_task */
    struct thin_task ops_task;
    unsigned nr_ops;     /* started and not ended */
    bool metadata_ready; /* false while a roll-back loads it again */

    uint64_t data_in_flight; /* requests at the data device, see pool_data_begin */

    struct pool_steps steps;
    struct pool_end *end;      /* of a close or a roll-back that is under way (pool.c) */
    struct pool_internals *in; /* the data path's own (io_private.h) */
};

/* Unix time, now. */
uint64_t pool_wall_clock(const struct pool *pool);
/* A step that began at `began_ns` (loop time) has ended. */
void pool_step(struct pool *pool, const char *name, uint64_t began_ns);
/* What is left of this step's work is for the next turn. */
static inline bool
pool_step_full(const struct pool *pool, uint64_t began_ns)
{
    return loop_now_ns(pool->loop) - began_ns > POOL_STEP_NS / 4;
}
/* The block locks held at once since the last call were held by this kind of step. */
void pool_step_locks(struct pool *pool, const char *name);
const struct pool_step_info *pool_longest_step(const struct pool *pool); /* may be NULL */
void pool_tell(struct pool *pool, const char *event, const char *words);

/* mode.c: 0, or why the pool may not change anything now (READ_ONLY, FAILED, SHUTDOWN). */
int pool_may_change(const struct pool *pool, struct thin_error *err);
/* The commit that runs ends the pool, and everything acknowledged is in it. */
bool pool_closes_clean(const struct pool *pool);
void pool_set_mode(struct pool *pool, enum pool_mode mode, const char *what_to_do,
                   const char *why_fmt, ...) PRINTF_LIKE(4, 5);

/* A change failed for want of metadata space: the mode tells; other codes are not heeded. */
void pool_write_failed(struct pool *pool, int code, const struct thin_error *err);

/* A request of the volume has met damage below its root: it is listed from now on. */
void volume_damaged(struct volume_core *core, int code);
bool pool_volume_is_damaged(const struct pool *pool, uint32_t dev_id);
/* Data blocks [begin, end) are neither allocated nor freed any more; the open
   transaction marks the pool as needing a check. */
void pool_damaged(struct pool *pool, dblock_t begin, dblock_t end, const char *words);

/* counts.c: a device's counters, made when there are none; NULL: it is not counted. They
   live until counts_forget (the volume is deleted) or counts_destroy. */
struct volume_stats *counts_of(struct pool *pool, uint32_t dev_id);
void counts_add(struct volume_stats *stats, const struct volume_io *io); /* answered */
void counts_forget(struct pool *pool, uint32_t dev_id);
void counts_destroy(struct pool *pool);

/* pin.c: views of the durable state go, and who reads them is told `why`. */
void pins_drop_all(struct pool *pool, int why);
/* The oldest, for want (`why`) of the blocks that it holds back; false: there is none. */
bool pins_drop_oldest(struct pool *pool, int why);
/* All that was free is free: the oldest goes if they hold back too much. */
void pins_after_commit(struct pool *pool);

/* rollback.c */
void rollback_continue(struct pool *pool);

/* What is not durable cannot be made so. */
void pool_roll_back(struct pool *pool, int code, const char *why);

/* ---- the catalogue's and the administrator's side, called by pool.c and others ------------- */

/*
 * Called once the metadata stands in memory (loaded, or just formatted and not yet
 * committed: `params->format`). Metadata operations may be used. pool->params is valid
 * until `done`. With format it makes the first records; the pool commits after `done`.
 * On failure catalogue_close follows.
 */
void catalogue_open(struct pool *pool, void (*done)(struct pool *pool, int result,
                                                    const struct thin_error *err));
/* After a roll-back, when metadata was loaded again: forgets what it knows, reads again.
   `incarnation` has changed: the loss is counted, to be written with the next change. */
void catalogue_reload(struct pool *pool, void (*done)(struct pool *pool, int result,
                                                      const struct thin_error *err));
/* At each cut: the trailer's stamp and checksum (metadata_cut's finish_trailer). */
void catalogue_finish_trailer(void *pool, uint8_t *superblock);
void catalogue_close(struct pool *pool); /* frees; also half opened, also NULL */

/* What an open of a volume needs to know. */
struct catalogue_volume {
    uint32_t dev_id;
    uint64_t size;
    uint64_t quota;                       /* bytes */
    const char *origin, *origin_identity; /* the record's; NULL: none */
    uint64_t origin_size;
    bool read_only;
    char name[THIN_NAME_MAX + 1];
};
/* False: no such volume, or it is being deleted. */
bool catalogue_find(struct pool *pool, const char *name, struct catalogue_volume *ret);
bool catalogue_find_device(struct pool *pool, uint32_t dev_id,
                           struct catalogue_volume *ret);
uint64_t catalogue_incarnation(const struct pool *pool);
void catalogue_uuid(const struct pool *pool, uint8_t ret_uuid[16]); /* it has one */
/* Added to the numbers of transactions they rise over all openings of the pool. */
uint64_t catalogue_change_base(const struct pool *pool);
/* Why not all of it could be read; "" if it could. */
const char *catalogue_damage(const struct pool *pool);
/*
 * The clean mark. Durable, it says that nothing acknowledged can have been lost: so it is
 * set by the commit that closes the pool, and taken back, durably, before a volume is
 * opened for writing.
 */
bool catalogue_is_clean(const struct pool *pool);
/* It is not, or is with an owner, and could be. */
bool catalogue_can_be_clean(const struct pool *pool);
/* There is a trailer of ours for the mark to stand in, and this machine has an id. */
bool catalogue_can_be_owned(const struct pool *pool);
/* An operation: the trailer is written anew, with the marks of its commit. */
int catalogue_touch(struct metaop *op, struct thin_error *err);
void catalogue_durable(struct pool *pool); /* after each commit */
void catalogue_count(const struct pool *pool, uint64_t *ret_nr_volumes,
                     uint64_t *ret_virtual_bytes);
/* The id of the hidden device; UINT32_MAX: none. */
uint32_t catalogue_dev_id(const struct pool *pool);

/* Called once, after catalogue_open succeeded: resumes deletes. 0 or -ENOMEM. */
int admin_open(struct pool *pool);
/* The pool closes: queued changes fail with -THIN_E_SHUTDOWN, the running one and
   background steps come to their end; then `done`, maybe at once. */
void admin_stop(struct pool *pool, void (*done)(struct pool *pool));
/* The metadata device has grown by itself, or could not: who waited for it tries again. */
void admin_grown(struct pool *pool);
/* A roll-back begins: what runs ends with -THIN_E_ROLLED_BACK (its metaops and commit
   waits do so by themselves); background work stops, the pool is read-only from here. */
void admin_rolled_back(struct pool *pool);
void admin_close(struct pool *pool); /* frees; NULL is fine */

#endif
