/* The block manager's inside, for its two files and for the transaction manager's undo. */
#ifndef THIN_CORE_PERSIST_BM_PRIVATE_H
#define THIN_CORE_PERSIST_BM_PRIVATE_H

#include "core/persist/bitset.h"
#include "core/persist/block_manager.h"
#include "core/persist/u64_map.h"

/*
 * What a frame is:
 *
 *   FREE --take--> LOADING --read_done--> LOADED --bm_new_lock--> DIRTY --write_done--> LOADED
 *     ^               |                     |                       |
 *     +---- drop -----+-------- drop -------+------ bm_forget ------+
 *
 * A dirty frame belongs to the open transaction if its `cut` is the manager's, else it
 * is being written and never changes again. A frame that is dropped while somebody
 * still pins it or the device still reads into it is only taken out of the hash, and
 * becomes FREE when the last of them lets go.
 */
enum frame_state { FRAME_FREE, FRAME_LOADING, FRAME_LOADED, FRAME_DIRTY };

struct bm_block {
    struct block_manager *bm;
    mblock_t number;
    uint8_t *data;
    enum frame_state state;
    bool hashed;
    bool checked; /* good as `v` says */
    bool write_locked;
    bool reading;   /* the device has the frame */
    uint8_t credit; /* rounds of the clock that it survives */
    uint32_t readers, pins, cut;
    uint64_t op; /* the last operation that saved its image or made it */
    struct bm_validator v;
    const char *where; /* the last to lock it */
    TAILQ_HEAD(, bm_wait) waits;
    TAILQ_ENTRY(bm_block) link; /* free frames, or reads that wait for a slot */
};

TAILQ_HEAD(bm_block_list, bm_block);

struct bm_read_slot {
    struct device_io io;
    struct iovec iov;
    struct bm_block *frame; /* NULL: not in use */
};

struct bm_write_slot {
    struct device_io io;
    struct iovec iov[BM_WRITE_BLOCKS];
    struct bm_block *frames[BM_WRITE_BLOCKS];
    unsigned nr; /* 0: not in use */
};

/* A write of the superblock, or a flush; one of each at a time. */
struct bm_single {
    struct device_io io;
    struct iovec iov;
    bool busy;
    void (*done)(void *arg, int result);
    void *arg;
};

struct block_manager {
    struct device *dev;
    bool waiting;
    uint32_t nr_frames, clean_max, hand;
    struct bm_block *frames;
    uint8_t *store; /* nr_frames * 4096 */
    struct u64_map by_number;
    struct bm_block_list free; /* not empty while nr_free > 0 */
    uint32_t nr_free;
    uint32_t nr_begun; /* frames that have been in use or in `free`; the rest is as malloc
                          gave it: an open does not touch what it does not need */

    mblock_t missing[BM_MISSING_MAX];
    unsigned nr_missing;

    uint32_t cut; /* counts the cuts: tells open from writing */
    struct bitset dirty_set, writing_set;
    uint32_t nr_dirty, nr_writing;

    struct bm_block_list reads_waiting;
    struct bm_read_slot reads[BM_READS_MAX];
    uint32_t nr_reading;

    struct {
        struct bm_write_slot slots[BM_WRITES_MAX];
        bool running;
        mblock_t next;
        unsigned in_flight;
        int result;
        void (*done)(void *arg, int result);
        void *arg;
        struct thin_task task;
        struct thin_task go_on;
    } write;
    struct bm_single super, flush;

    struct bm_stats stats;
};

/* The cached frame of a block, or NULL. */
struct bm_block *bm_find(const struct block_manager *bm, mblock_t b);

/* What a frame is taken for: to be dirty; or to be read, and then it takes no room from
   the dirty ones, or only what they do not use. */
enum bm_use { BM_TO_DIRTY, BM_TO_READ, BM_TO_READ_ALONE };

/* A frame for block `b`, hashed, LOADING; NULL when nothing can give way. */
struct bm_block *bm_take_frame(struct block_manager *bm, mblock_t b, enum bm_use use);
/* After frames became clean: those above their number give way. */
void bm_trim_clean(struct block_manager *bm);

/* Takes the frame out of the hash, and frees it as soon as nobody holds it. */
void bm_drop(struct bm_block *f);
void bm_frame_unpin(struct bm_block *f);

/* Ends the wait of all that wait for this frame. */
void bm_wake(struct bm_block *f, int result);

static inline bool
frame_is_open(const struct bm_block *f)
{
    return f->state == FRAME_DIRTY && f->cut == f->bm->cut;
}

static inline bool
frame_is_writing(const struct bm_block *f)
{
    return f->state == FRAME_DIRTY && f->cut != f->bm->cut;
}

#endif
