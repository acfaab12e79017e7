/*
 * The data path's own: requests, fragments, cells, the mapping cache, windows of free
 * blocks. Included by the files that move data, not by the catalogue or the admin.
 *
 * The way of a request (one arrow is one function):
 *
 *   volume_submit ─ mapped, unshared, one run ─► device ─► io_direct_done ─► io->done
 *        │ everything else
 *        ▼
 *   io_advance ─ cuts at runs ─► frag_run ─► read_step | write_step | zero_step | ...
 *        ▲                          │  each does a prefix of the fragment's range,
 *        └──────── frag_end ◄───────┘  then frag_run goes on with the rest
 */
#ifndef THIN_CORE_POOL_IO_PRIVATE_H
#define THIN_CORE_POOL_IO_PRIVATE_H

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/pool/pool_private.h"

#define FRAG_IOV_MAX       16u /* pieces of payload in one device request of a fragment */
#define IO_FRAGS_MAX       32u /* fragments of one request at work */
#define PROVISION_RUN_MAX  16u /* blocks provisioned by one write and one operation */
#define WINDOW_BYTES       (4u << 20)
#define WINDOW_BLOCKS_MAX  64u
#define WINDOWS_MAX        1024u /* in one pool */
#define WINDOW_BUCKETS     1024u
#define WINDOW_EXTENTS_MAX 16u
#define PASSDOWN_IN_FLIGHT 4u
#define ZERO_BUFFER_BYTES  (1u << 20)
#define CELL_BUCKETS       256u
#define INFLIGHT_BUCKETS   1024u
#define INFLIGHT_SHIFT     26 /* requests are at most 64 MiB: one spans two buckets */
#define UNMAP_STEP_BLOCKS  65536u
#define UNMAP_STEP_NODES   16u
#define UNMAP_STEP_SMALLER 8u /* each try for which there is too little metadata */
#define VOLUME_BLOCKS_MAX  (1ull << 56) /* no volume has a block there */
#define STATUS_LEAVES_STEP 8u           /* leaves looked at by one step of STATUS */

/* ---- the mapping cache (mapcache.c) ------------------------------------------------- */

#define MAP_PAGE_SLOTS 512u
#define MAP_PAGE_SHIFT 9
#define MAP_UNKNOWN    UINT64_MAX
#define MAP_HOLE \
    (UINT64_MAX - 1) /* no mapping is that large: 40 + 24 bits, time < 2^24 - 1 */

struct map_page {
    struct map_page *next; /* of the bucket, or of the free list */
    struct volume_core *core;
    LIST_ENTRY(map_page) of_core;
    uint64_t index; /* vblock >> MAP_PAGE_SHIFT */
    bool used;      /* since the clock's hand passed */
    uint64_t slots[MAP_PAGE_SLOTS];
};

int mapcache_create(struct pool *pool, uint32_t nr_pages);
void mapcache_destroy(struct pool *pool);
struct map_page *mapcache_find(struct volume_core *core, uint64_t index);
void mapcache_set(struct volume_core *core, vblock_t v, uint64_t value);
/* What one leaf says of [begin, end): fills the page of `v` and those that hold slots. */
void mapcache_fill(struct volume_core *core, vblock_t v, const struct mapping_slot *slots,
                   uint32_t nr, vblock_t begin, vblock_t end);
/* [begin, end) became a hole: pages that are cached. */
void mapcache_set_holes(struct volume_core *core, vblock_t begin, vblock_t end);
void mapcache_drop_core(struct volume_core *core);
void mapcache_drop_all(struct pool *pool);
void mapcache_stats(const struct pool *pool, uint64_t *ret_hits, uint64_t *ret_misses);
void mapcache_count_miss(struct pool *pool);

/* The slot of `v`, or MAP_UNKNOWN. */
static inline uint64_t
mapcache_get(struct volume_core *core, vblock_t v)
{
    uint64_t index = v >> MAP_PAGE_SHIFT;
    struct map_page *page = core->map_hot;

    if (!page || page->index != index) {
        page = mapcache_find(core, index);
        if (!page)
            return MAP_UNKNOWN;
    }
    page->used = true;
    return page->slots[v & (MAP_PAGE_SLOTS - 1)];
}

/* ---- requests at the data device (inflight.c) ------------------------------------------ */

#define INFLIGHT_WRITE 1u /* in place: a copy out of the block waits for it */
#define INFLIGHT_WAKE  2u /* somebody waits for its end */

TAILQ_HEAD(inflight_list, pool_inflight);

void inflight_add(struct pool *pool, struct pool_inflight *fl, uint64_t begin,
                  uint64_t len, unsigned flags);
/* Wakes who waits. */
void inflight_remove(struct pool *pool, struct pool_inflight *fl);
/* True if a request with one of `flags` (0: any) overlaps [begin, end); marks all such to
   wake the waiters when they end. */
bool inflight_overlaps(struct pool *pool, uint64_t begin, uint64_t end, unsigned flags);

/* ---- cells (cell.c) -------------------------------------------------------------------- */

/*
 * A stretch of a volume's blocks that one fragment changes the mapping of (or patches a
 * sector of); others that would do the same wait until it opens.
 */
struct cell {
    struct volume_core *core; /* NULL: not taken */
    vblock_t begin, end;
    bool rmw;
    uint64_t rmw_sector;
    struct volume_frag_list waiters;
    TAILQ_ENTRY(cell) link;
};
TAILQ_HEAD(cell_list, cell);

/* True: taken. False: the fragment waits and will be run again by frag_run. */
bool cell_take(struct volume_frag *frag, vblock_t begin, vblock_t end);
void cell_set_rmw(struct volume_frag *frag, uint64_t sector);
/* Opens it and runs the waiters, soon. Harmless when none is taken. */
void cell_release(struct volume_frag *frag);
/* True: the fragment waits for a part-sector write at work in [begin, end) bytes. */
bool cell_wait_rmw(struct volume_frag *frag, uint64_t begin, uint64_t end);
/* As a question only. */
bool cell_rmw_overlaps(struct volume_core *core, uint64_t begin, uint64_t end);
bool cell_overlaps(struct volume_core *core, vblock_t begin, vblock_t end);

/* ---- free blocks (space.c, window.c) ---------------------------------------------------- */

enum window_state { WINDOW_FINDING, WINDOW_EXTENTS, WINDOW_ALLOCATING, WINDOW_READY };

/* Free data blocks for a stretch of a volume: block v gets dbase + (v - vbase). */
struct space_window {
    struct volume_core *core; /* NULL: on the free list */
    struct pool *pool;
    enum window_state state;
    vblock_t vbase, want_vbase, v;
    dblock_t dbase;
    unsigned nr, want_nr;
    uint64_t used; /* places given out, or mapped since */
    uint64_t zero; /* places that the device proves to read as zeros */
    unsigned claims;
    bool single;  /* for one block, and one claim */
    bool has_run; /* stands in the set of windows' runs */
    uint64_t epoch;
    struct volume_frag_list waiters;
    struct metaop op;
    struct device_io dio;
    struct device_extent extents[WINDOW_EXTENTS_MAX];
    /* The search: from the cursor to the end, then from 0 to the cursor. */
    dblock_t scan, scan_end, best_begin;
    uint64_t best_len;
    unsigned looks, rescans;
    bool wrapped, undecided;
    TAILQ_ENTRY(space_window) link; /* core->windows, or the free list */
    TAILQ_ENTRY(space_window) all;
    TAILQ_ENTRY(space_window) near; /* of its bucket */
};
TAILQ_HEAD(window_list, space_window);

struct claim {
    struct space_window *window; /* NULL: nothing claimed */
    dblock_t dblock;
    unsigned nr;
    bool zero;        /* all of it reads as zeros */
    unsigned counted; /* by limits.c, when it was made */
    uint32_t holes;   /* bits: what was a hole then */
};

int space_create(struct pool *pool);
void space_destroy(struct pool *pool);
void space_reset(struct pool *pool); /* roll-back */

/*
 * Claims up to `wanted` data blocks in a row for `v` and what follows. 0: frag->claim is
 * filled. 1: not yet, the fragment is run again by frag_run. Negative:
 * -THIN_E_NO_DATA_SPACE and others.
 */
int space_claim(struct volume_frag *frag, vblock_t v, unsigned wanted);
/* `mapped`: the blocks are mapped now; else they are free again (and no longer zero). */
void space_claim_end(struct volume_frag *frag, bool mapped);
void space_drop_core(struct volume_core *core);
/* Some counts are damaged: no window found before gives out another place. */
void space_distrust(struct pool *pool);
/* A run became free for good: told by metadata_durable. */
void space_freed(void *pool, dblock_t begin, dblock_t end);
/* After a commit: waiting claims go on. */
void space_after_commit(struct pool *pool);
/* Blocks were taken: what is low is told, what may grow by itself grows. */
void space_taken(struct pool *pool);
/* Seconds that so many free data blocks will last; negative: nothing is being taken. */
int64_t low_water_lasts_s(const struct pool *pool, uint64_t free_blocks);
/* The metadata is (nearly) full: true if its device is growing, or begins to. */
bool space_extend_metadata(struct pool *pool);
/* A request that found no room: 0, it waits; or what it must fail with. */
int space_park(struct pool *pool, struct volume_io *io);
void space_fail_parked(struct pool *pool, struct volume *only, int result);
/* Requests at the device ended that held blocks back. */
void space_recheck_held(struct pool *pool);
bool space_idle(const struct pool *pool); /* no pass-down at work */
void space_stop(struct pool *pool);       /* closing: no more pass-down */

/* ---- fragments (frag.c) ------------------------------------------------------------------ */

enum frag_kind {
    FRAG_LOOKUP,
    FRAG_READ,
    FRAG_WRITE,
    FRAG_ZEROES,
    FRAG_UNMAP,
    FRAG_WAIT,
    FRAG_STATUS
};

struct volume_frag {
    struct volume_io *io;
    struct pool *pool;
    struct volume_core *core;
    enum frag_kind kind;
    uint64_t epoch;
    uint64_t begin, end; /* bytes of the volume: what is left to do */

    /* The step at work: a prefix of the range. */
    uint64_t step_begin, step_end; /* whole sectors */
    unsigned part_begin, part_end; /* of a part sector, else 0 */
    bool partial, sector_ready;
    bool if_empty; /* UNMAP: only a block that pieces.c holds for empty */
    struct iovec iov[FRAG_IOV_MAX + 2]; /* payload with room for zeros around it */
    unsigned nr_iov;
    struct cell cell;
    struct claim claim;
    uint64_t old_value; /* mapping that is being copied, or MAP_HOLE */
    uint64_t new_value;
    unsigned stage; /* of multi-request steps */
    uint64_t copy_pos;
    unsigned char *copy_buf;
    struct iovec read_iov;
    unsigned char sector[SECTOR_SIZE];
    int result;
    unsigned commits_waited;

    struct device_io dio;
    struct pool_inflight inflight;
    bool in_place;
    void (*device_done)(struct volume_frag *frag, int result);
    struct metaop op;
    struct commit_wait wait;
    struct unmap unmap;
    void (*resume)(struct volume_frag *frag); /* what run_later runs; NULL: frag_run */
    TAILQ_ENTRY(volume_frag) link;
};

int frags_create(struct pool *pool);
/* NULL: none free; the request waits in pool->in->starved. */
struct volume_frag *frag_get(struct volume_io *io, enum frag_kind kind);
void frag_run(struct volume_frag *frag);
void frag_run_later(struct volume_frag *frag, void (*resume)(struct volume_frag *frag));
/* The step is done: goes on with the rest, or ends. */
void frag_step_done(struct volume_frag *frag);
void frag_end(struct volume_frag *frag, int result);
/* No room: gives everything back, the request begins again here once there is some. */
void frag_no_space(struct volume_frag *frag);
/* Reads the mapping of `v` into the cache, then runs the fragment again. */
void frag_lookup(struct volume_frag *frag, vblock_t v);
/* Payload of [begin, begin + len) of the volume as pieces in frag->iov from index 1;
   may shorten: returns the bytes covered, whole sectors, or 0 (too many pieces). */
uint64_t frag_slice(struct volume_frag *frag, uint64_t begin, uint64_t len);
bool frag_alive(struct volume_frag *frag); /* the epoch is still its own; else ends it */

void read_step(struct volume_frag *frag);   /* reader.c */
void write_step(struct volume_frag *frag);  /* mapper.c; also FRAG_ZEROES */
void unmap_step(struct volume_frag *frag);  /* discard.c */
void status_step(struct volume_frag *frag); /* status.c */

/* Break sharing: copies around the payload into frag->claim, then copy_done. (copier.c) */
void copier_start(struct volume_frag *frag);
void copier_release(struct volume_frag *frag); /* gives the buffer back */
int copier_create(struct pool *pool);
void copier_destroy(struct pool *pool);
/* The new blocks hold their data: mapper.c inserts the mappings. */
void mapper_insert(struct volume_frag *frag);

/* A device request of a fragment. `wrote`: it changes data. */
void frag_submit(struct volume_frag *frag, enum device_op op, unsigned flags,
                 uint64_t offset, uint64_t len, struct iovec *iov, unsigned nr_iov,
                 bool in_place, void (*done)(struct volume_frag *frag, int result));

/* ---- requests (io.c) ----------------------------------------------------------------------- */

#define IO_SUBMITTING 1u
#define IO_LOOKUP     2u
#define IO_PARKED     4u
#define IO_MAP_FULL   8u /* READ: the extents do not fit */
#define IO_ADVANCING \
    16u               /* io_advance is at work: a fragment that ends leaves it to that */
#define IO_TAIL   32u /* the last wait (flush, FUA) was begun */
#define IO_PIECES 64u /* its pieces of blocks were noted */
/* In volume_io.flags, of requests of the engine's own: they may go on to the end of the
   volume's last block. */
#define IO_LAST_BLOCK (1u << 31)

void io_advance(struct volume_io *io);
void io_finish(struct volume_io *io, int result);
void io_start(struct volume_io *io);
/* Zero-fills or copies parts of the caller's buffers; `offset` is in the request. */
void io_zero_fill(struct volume_io *io, uint64_t offset, uint64_t len);
void io_copy_out(struct volume_io *io, uint64_t offset, const void *from, uint64_t len);
void io_copy_in(const struct volume_io *io, uint64_t offset, void *to, uint64_t len);

/* ---- beginnings and ends (pool.c, rollback.c) ---------------------------------------------- */

enum close_stage {
    CLOSE_NOT,
    CLOSE_ADMIN,
    CLOSE_DRAIN,
    CLOSE_COMMIT,
    CLOSE_LAST,
    CLOSE_DEVICES
};

struct pool_end {
    struct pool *pool;
    struct pool_params params; /* while opening */
    bool format, loading;
    enum close_stage stage;
    unsigned devices; /* being closed */
    int result;
    struct thin_error err;
    void (*opened)(void *arg, struct pool *pool, int result,
                   const struct thin_error *err);
    void *opened_arg;
    struct pool_done done;
    void (*loaded)(struct pool *pool, int result, const struct thin_error *err);
    struct thin_task task;
    struct bm_fetch fetch;
    struct commit_wait wait;
    struct metaop op; /* of a roll-back: an open volume's details */
    void (*marked)(struct pool *pool, int result);
    uint32_t dev_id;
    bool found;
    struct device_details details;
    bool dismantled; /* only devices are closing yet */
    void (*wiped)(struct pool *pool, int result, const struct thin_error *err);
    struct device_io wipe_io;
    struct iovec wipe_iov;
};

/* owner.c: the trailer is written anew with the next commit, as catalogue_finish_trailer
   finds the pool then: open, or closing in good order. A failure is logged. */
void owner_write_mark(struct pool *pool, const char *name,
                      void (*marked)(struct pool *pool, int result));

/* format.c: zeroes block 0 of the metadata device and flushes it. */
void format_wipe(struct pool *pool, void (*done)(struct pool *pool, int result,
                                                 const struct thin_error *err));

#define WHAT_TO_DO_DEVICE "see to the device, then close the pool and open it again"
#define WHAT_TO_DO_CHECK                                                                  \
    "close the pool, run thinmeta check (and thinmeta repair if it finds damage), clear " \
    "the flag with thinmeta check --clear-needs-check-flag, open the pool again"

#define WHAT_TO_DO_REPAIR \
    "close the pool, run thinmeta check and thinmeta repair, open the pool again"

/* Formats or loads, fetching what is missing. May tell at once. */
void pool_load(struct pool *pool, void (*loaded)(struct pool *pool, int result,
                                                 const struct thin_error *err));

struct opening;
TAILQ_HEAD(opening_list, opening);

struct pool_internals {
    struct pool *pool;
    struct opening_list openings; /* of volumes, that wait for the end of a roll-back */
    struct volume_frag *frags;    /* all of them */
    struct volume_frag_list free_frags; /* not empty while some are free */
    unsigned nr_frags_begun;            /* that have been in use or free */
    unsigned frags_used;
    struct volume_io_list starved; /* requests that found no fragment, or a roll-back */
    struct thin_task starved_task;
    struct volume_frag_list later;
    struct thin_task later_task;
    bool submitting; /* inside volume_submit: no answers now */

    struct inflight_list inflight[INFLIGHT_BUCKETS];
    uint64_t nr_inflight;
    struct volume_frag_list inflight_waiters;
    struct cell_list cells[CELL_BUCKETS];
    unsigned nr_cells;
    TAILQ_HEAD(, unmap) unmaps; /* that hold a range */
    struct volume_frag_list range_waiters;

    unsigned char *zeros; /* ZERO_BUFFER_BYTES */
    unsigned char *copy_bufs[POOL_COPIES_MAX];
    unsigned nr_copy_bufs; /* free ones */
    struct volume_frag_list copy_waiters;
    struct mapping_slot
        slots[256]; /* of one read-only operation, used in the same turn */
    uint32_t nr_slots;
    vblock_t slots_begin, slots_end;

    struct thin_task idle_task; /* close or roll-back look whether all has ended */
};

/* One device of an external origin has closed. */
void pool_origin_closed(struct pool *pool);
/* Something ended: a close or a roll-back may go on (pool_idle_run, the idle_task). */
void pool_check_idle(struct pool *pool);
void pool_idle_run(struct thin_task *task);
/* Everything but the devices goes at once; the last answer follows when they are closed. */
void pool_dismantle(struct pool *pool);
/* Settings that contradict one another are put right. */
void pool_config_mend(struct pool_config *config);
int io_create(struct pool *pool);
void io_destroy(struct pool *pool);
/* Requests that waited for an object or for the end of a roll-back. */
void io_run_starved(struct pool *pool);
/* The roll-back has ended, or the pool is closing. */
void volume_openings_go_on(struct pool *pool);
/* Writes in place are counted for quiesce. */
void volume_core_write_begin(struct volume_core *core, struct pool_inflight *fl);
void volume_core_write_end(struct volume_core *core, struct pool_inflight *fl);
void volume_detach(struct volume *volume); /* a forced close takes its pool away */
void volume_later(struct volume_io *io);   /* answers on the next turn */

static inline vblock_t
pool_vblock(const struct pool *pool, uint64_t offset)
{
    return pool->block_shift ? offset >> pool->block_shift : offset / pool->block_size;
}

static inline uint64_t
pool_block_offset(const struct pool *pool, uint64_t offset)
{
    return pool->block_shift ? offset & (pool->block_size - 1u)
                             : offset % pool->block_size;
}

static inline bool
slot_mapped(uint64_t slot)
{
    return slot < MAP_HOLE;
}

static inline bool
slot_shared(const struct volume_core *core, uint64_t slot)
{
    return mapping_time(slot) < core->snapshotted_time;
}

#endif
