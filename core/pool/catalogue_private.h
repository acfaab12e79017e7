/*
 * The catalogue on disk: areas of pages, the log in one of them, loading, writing anew.
 * For catalogue_*.c, import.c and admin_*.c only. One thread: the pool's.
 *
 * The hidden device's virtual space has two areas, far apart; each is mapped from its
 * begin on. One holds the log that the root names, the other is spare: the next
 * checkpoint goes there. What is kept true, so that a delete always fits:
 *
 *      spare.mapped >= pages of all live records, each grown by its allowance,
 *                      + CATALOGUE_KEEP
 *
 * A change that makes records larger is refused if it cannot be kept; any other finds
 * room in the log, or after a checkpoint, which fits by the same rule.
 */
#ifndef THIN_CORE_POOL_CATALOGUE_PRIVATE_H
#define THIN_CORE_POOL_CATALOGUE_PRIVATE_H

#include "core/pool/catalogue.h"
#include "core/pool/pool_private.h"

#define CATALOGUE_AREA_PAGES (1ull << 24) /* 64 GiB of virtual space to each area */
#define CATALOGUE_KEEP       4u    /* pages that the spare area has above the live ones */
#define CATALOGUE_ALLOWANCE  96u   /* bytes that a record may grow by, as by a holder */
#define CATALOGUE_SLACK      8u    /* dead pages that start no checkpoint */
#define CATALOGUE_SLACK_MAX  1024u /* nor do those, if the area is mapped anyway */
#define CATALOGUE_MAP_BATCH  8u    /* blocks mapped by one operation */
#define CATALOGUE_IO_PAGES   16u   /* pages read at once */
#define CATALOGUE_FILL_PAGES 4u    /* pages encoded in one turn of the loop */
#define CATALOGUE_TURN_PAGES 2u    /* pages decoded in one turn of the loop */

struct catalogue_area {
    uint64_t begin;    /* page */
    dblock_t *dblocks; /* of its virtual blocks, mapped without a gap */
    uint64_t nr_blocks, max_blocks;
};

/* Reads or writes pages that follow one another; `done` never from inside the call. */
struct catalogue_io {
    void (*done)(struct catalogue_io *cio, int result);
    struct pool *pool;
    const struct catalogue_area *area;
    bool write;
    uint64_t page; /* first */
    uint32_t nr_pages;
    uint8_t *bytes;
    /* Its own. */
    uint32_t pos, piece;
    struct iovec iov;
    struct device_io io;
    struct thin_task task;
    struct settle_wait settle;
};

/*
 * A change of the catalogue: whole new records and tombstones, applied in order. Filled
 * by the caller, encoded into pages behind the root in memory, written, and made true by
 * one metadata operation that sets the trailer.
 */
struct catalogue_change {
    uint32_t nr;
    struct {
        struct catalogue_record *record; /* owned until applied; NULL: a tombstone */
        uint32_t dev_id;
    } items[CATALOGUE_CHANGE_MAX];
    uint8_t *pages;
    uint32_t nr_pages;
    struct catalogue_root root; /* with this change */
};

struct catalogue_load;
struct catalogue_checkpoint;

struct catalogue {
    struct pool *pool;
    struct catalogue_records records;
    struct catalogue_pool_record pool_record;
    /* As in the open transaction: root, device, UUID; stamp unused. */
    struct catalogue_trailer trailer;
    bool present;    /* there is a hidden device, its areas are known */
    bool unrecorded; /* memory has what the log has not: a checkpoint comes first */
    char damage[THIN_ERROR_TEXT_MAX]; /* empty: none */
    struct catalogue_area areas[2];
    unsigned current; /* the area of the root */
    uint64_t incarnation;
    uint64_t change_base; /* number of the last transaction before this opening */
    bool clean;           /* the durable trailer says CATALOGUE_CLEAN */
    bool cut_clean;       /* so does that of the transaction being committed */
    uint32_t next_dev_id;

    struct catalogue_load *load;
    struct catalogue_checkpoint *checkpoint;
    struct catalogue_reconcile *reconcile;
    void (*opened)(struct pool *pool, int result, const struct thin_error *err);
    void (*reloaded)(struct pool *pool, int result, const struct thin_error *err);
};

static inline uint32_t
pages_per_block(const struct catalogue *cat)
{
    return cat->pool->block_size / CATALOGUE_PAGE_BYTES;
}

static inline uint64_t
area_pages(const struct catalogue *cat, unsigned area)
{
    return cat->areas[area].nr_blocks * pages_per_block(cat);
}

/* ---- catalogue_area.c --------------------------------------------------------------------- */

void catalogue_area_reset(struct catalogue *cat); /* both: nothing is mapped */
/* Adds a block at the end. -ENOMEM; reserve first where it must not fail. */
int catalogue_area_reserve(struct catalogue_area *area, uint64_t nr_blocks);
int catalogue_area_add(struct catalogue_area *area, dblock_t dblock);
void catalogue_io_start(struct catalogue_io *cio);

/* ---- catalogue_store.c -------------------------------------------------------------------- */

/* Pages that records of so many bytes take at most, however they fall. */
uint64_t catalogue_pages_for(uint64_t live_bytes);
/* Pages that the spare area must have, with so much more in the log. */
uint64_t catalogue_spare_need(const struct catalogue *cat, uint64_t more_bytes,
                              uint64_t more_nr);

/* Fills change->pages and change->root; also reserves memory so that applying cannot
   fail. -THIN_E_LIMIT, -ENOMEM. Sets each record's encoded_bytes. */
int catalogue_change_encode(struct catalogue *cat, struct catalogue_change *change,
                            struct thin_error *err);
/* Inside the operation that makes it true. */
void catalogue_set_trailer(struct catalogue *cat, const struct catalogue_root *root,
                           uint32_t dev_id);
void catalogue_change_set_trailer(struct catalogue *cat,
                                  const struct catalogue_change *change);
/* The operation was kept: memory follows. Frees nothing but what it replaces. */
void catalogue_change_apply(struct catalogue *cat, struct catalogue_change *change);
/* The part of it that is about the records; they were reserved. */
void catalogue_change_apply_records(struct catalogue *cat,
                                    struct catalogue_change *change);
void catalogue_change_fini(struct catalogue_change *change);
/* Adds to the change; takes `record`. */
void catalogue_change_put(struct catalogue_change *change,
                          struct catalogue_record *record);
void catalogue_change_remove(struct catalogue_change *change, uint32_t dev_id);

enum catalogue_room {
    ROOM_ENOUGH,
    ROOM_MAP,        /* map more, then ask again */
    ROOM_CHECKPOINT, /* finish (or make) a checkpoint, then ask again */
};
/* What a change does to the size of the records. */
enum catalogue_growth {
    GROWS_NOT,
    GROWS_RECORDS, /* within their allowance, if there is no more room than that */
    GROWS_NEW,     /* new records, or a new name: refused for want of room */
};
/*
 * Whether the encoded change may be written now. ROOM_MAP: ret_area and ret_blocks
 * (wanted in it all told).
 */
enum catalogue_room catalogue_judge_room(struct catalogue *cat,
                                         const struct catalogue_change *change,
                                         enum catalogue_growth growth, unsigned *ret_area,
                                         uint64_t *ret_blocks);
/* Dead records call for a checkpoint in the background. */
bool catalogue_wants_checkpoint(const struct catalogue *cat);

/* Maps an area's blocks up to `nr_blocks`, in bounded operations. Embed. */
struct catalogue_mapping {
    void (*done)(struct catalogue_mapping *m, int result, const struct thin_error *err);
    struct catalogue *cat;
    unsigned area;
    uint64_t nr_blocks;
    struct metaop op;
    dblock_t got[CATALOGUE_MAP_BATCH];
    uint32_t nr_got;
};
void catalogue_map(struct catalogue *cat, struct catalogue_mapping *m);

/* An unused id for a new volume. -THIN_E_LIMIT. */
int catalogue_pick_id(struct catalogue *cat, uint32_t *ret_id, struct thin_error *err);
void catalogue_id_used(struct catalogue *cat, uint32_t dev_id); /* a volume was made */
int catalogue_pick_hidden_id(const struct catalogue *cat, uint32_t *ret_id,
                             struct thin_error *err);
uint64_t catalogue_pick_uid(struct catalogue *cat);

/* ---- catalogue_load.c ------------------------------------------------------------------------ */

int catalogue_load_create(struct catalogue *cat); /* the object; -ENOMEM */
void catalogue_load_destroy(struct catalogue_load *load);
/*
 * After metadata_load, at open and again after each roll-back (`reload`). Reads the
 * superblock's trailer and the pages of its root (nothing else, if the stamp fits), else
 * reconciles. A pool without a catalogue, or with a damaged one, gets made-up records;
 * that is no error. Fails with the devices' errors and -ENOMEM. Nothing is written.
 */
void catalogue_load(struct catalogue *cat, bool reload, struct pool_done done);

/* ---- catalogue_checkpoint.c ------------------------------------------------------------------ */

/*
 * Writes all live records to the spare area in bounded steps and turns the root there.
 * Makes the hidden device first if there is none. Changes may go on meanwhile (unless
 * cat->unrecorded). The turn itself is made by catalogue_checkpoint_finish, when no
 * change is between its encoding and its operation.
 */
enum checkpoint_state {
    CHECKPOINT_IDLE,
    CHECKPOINT_MAKING,   /* the hidden device */
    CHECKPOINT_MAPPING,  /* room for all records */
    CHECKPOINT_WRITING,  /* pages, by rising device id */
    CHECKPOINT_WRITTEN,  /* waits for catalogue_checkpoint_finish */
    CHECKPOINT_ENDING,   /* what changed behind the cursor */
    CHECKPOINT_TURNING,  /* the root */
    CHECKPOINT_SETTLING, /* the old area is spare once the turn is durable... */
    CHECKPOINT_TRIMMING, /* ...and gives back what it does not need */
};

struct catalogue_checkpoint {
    struct catalogue *cat;
    enum checkpoint_state state;
    bool cancelled;
    bool lost;         /* what changed could not be noted */
    bool ended;        /* the pool's record, the last one, is among the pages */
    unsigned area;     /* written to */
    uint32_t cursor;   /* ids below are in the new area... */
    uint32_t *changed; /* ...but for these, changed since */
    uint32_t nr_changed, max_changed, pos_changed;
    struct catalogue_root root;
    uint8_t *pages; /* CATALOGUE_FILL_PAGES of them */
    uint32_t nr_filled;
    struct catalogue_io io;
    struct catalogue_mapping mapping;
    struct metaop op;
    struct commit_wait wait;
    struct thin_task task;
    uint32_t new_dev_id;
    vblock_t trim_begin, trim_end, trim_reached;
    int result;
    struct thin_error err;
    /* Called when it is CHECKPOINT_WRITTEN (result 0) or has failed before. */
    void (*written)(struct catalogue *cat, int result, const struct thin_error *err);
    /* Called when the root has turned, or has not, after catalogue_checkpoint_finish. */
    void (*finished)(struct catalogue *cat, int result, const struct thin_error *err);
    /* Called when it is idle again after that; may be NULL. */
    void (*settled)(struct catalogue *cat);
};
int catalogue_checkpoint_create(struct catalogue *cat); /* the object; -ENOMEM */
void catalogue_checkpoint_destroy(struct catalogue_checkpoint *ck);
void catalogue_checkpoint_start(struct catalogue *cat);
void catalogue_checkpoint_finish(struct catalogue *cat);
/* A record changed or went. */
void catalogue_checkpoint_note(struct catalogue *cat, uint32_t dev_id);
/* A roll-back: it ends by itself, soon, with -THIN_E_ROLLED_BACK; WRITTEN ends at once. */
void catalogue_checkpoint_cancel(struct catalogue *cat);

/* ---- import.c --------------------------------------------------------------------------------- */

/*
 * Puts memory in step with the details tree: a record stands only while id, creation time
 * and transaction id agree; a device without one gets a made-up one. Sets cat->unrecorded
 * if anything had to be changed.
 */
void catalogue_reconcile(struct catalogue *cat, struct pool_done done);
int catalogue_reconcile_create(struct catalogue *cat); /* the object; -ENOMEM */
void catalogue_reconcile_destroy(struct catalogue_reconcile *rec);

#endif
