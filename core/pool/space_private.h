/* What space.c and window.c share. */
#ifndef THIN_CORE_POOL_SPACE_PRIVATE_H
#define THIN_CORE_POOL_SPACE_PRIVATE_H

#include "core/pool/io_private.h"

#define HELD_MAX 4096u /* runs of freed blocks that may not be handed out yet */
#define METADATA_LOW_PART \
    4u /* the metadata grows by itself when less than this part of it is free */

/* While writes wait for a full file system it is asked again so often: it does not tell. */
#define HOST_FULL_RETRY_NS NS_PER_SEC
/* A growth by itself that has failed is tried again after so long. */
#define EXTEND_RETRY_NS (10 * NS_PER_SEC)

struct run {
    dblock_t begin, end;
};

/* Sorted, without overlaps, of a fixed size. */
struct run_set {
    struct run *runs;
    unsigned nr, max;
};
bool runs_add(struct run_set *set, dblock_t begin, dblock_t end);
void runs_remove(struct run_set *set, dblock_t begin, dblock_t end);

struct held_run {
    dblock_t begin, end;
    TAILQ_ENTRY(held_run) link;
};
TAILQ_HEAD(held_list, held_run);

struct passdown {
    struct pool *pool;
    struct held_run *run; /* NULL: idle */
    struct device_io dio;
};

/* What low_water.c remembers. In data blocks and seconds. */
struct low_water {
    bool sampled, metadata_told;
    uint64_t at_ns, used; /* of the last sample */
    double rate;          /* blocks a second */
    double watched_s;
    unsigned told; /* levels */
};

struct space {
    struct pool *pool;
    struct run_set windows, held;
    struct held_run *run_objects;
    struct held_list
        free_runs; /* of the first nr_runs_begun; not empty while there are */
    unsigned nr_runs_begun;
    struct held_list in_use;  /* a request at the device uses them yet */
    struct held_list to_pass; /* wait for their pass-down */
    struct passdown passdowns[PASSDOWN_IN_FLIGHT];
    bool hold_all;
    bool freed_some; /* since the waiters were woken */

    struct volume_frag_list waiters; /* for a claim to end, a hold, or a commit */
    struct volume_io_list parked;    /* out of data space */
    struct thin_timer park_timer;
    bool drained; /* nothing is parked any more */
    struct thin_task wake_task;
    bool host_full; /* the file system below had no place the last time it was asked */
    uint64_t host_tight_ns;        /* until then it is asked for a block at a time */
    bool extending, extend_failed; /* the data device, by itself */
    uint64_t extend_failed_ns;
    bool extending_metadata, extend_metadata_failed; /* likewise */
    struct low_water low_water;

    struct space_window *window_objects;
    struct window_list free_windows; /* of the first nr_windows_begun; likewise */
    unsigned nr_windows_begun;
    struct window_list all;                     /* in use, least recently used first */
    struct window_list buckets[WINDOW_BUCKETS]; /* by volume and stretch, newest first */
    dblock_t cursor;
};

int space_look(struct pool *pool, dblock_t from, dblock_t end, uint64_t wanted,
               dblock_t *ret_begin, uint64_t *ret_len, dblock_t *ret_next,
               struct thin_error *err);
bool space_has_held(const struct pool *pool);
/* Some of [begin, end) was freed and may not be used yet. */
bool space_is_held(const struct pool *pool, dblock_t begin, dblock_t end);

/* After each commit: events of low water. */
void low_water_look(struct pool *pool);
int windows_create(struct pool *pool);
void windows_destroy(struct pool *pool);
void windows_reset(struct pool *pool);
/* Forgets windows without claims, all but `keep`. True if there were any. */
bool windows_drop_idle(struct pool *pool, const struct space_window *keep);

#endif
