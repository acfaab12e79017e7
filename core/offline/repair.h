/*
 * Rebuilds what can be had from damaged metadata. First a plan, which says by volume and
 * range what would be kept and lost; then the plan's pool goes to a visitor, normally
 * the builder of another device. The damaged device is only read.
 *
 * What is believed, in this order:
 *   1 the superblock's trees, if they are whole;
 *   2 those of a superblock that was kept elsewhere (kept.h), the newest that is whole;
 *   3 the superblock's trees, as far as they can be walked;
 *   4 what the metadata space map says is in use, though the way to it is lost: leaves
 *     of details and of the top level, roots that fit a device's number of mappings,
 *     subtrees that fit the gap of one damaged node;
 *   5 older versions of lost roots, whose blocks have not been used again; also where
 *     a root that was found has lost so much below it that an older one holds more.
 * Mappings that no pool can have (beyond the data device, of the future) are left out.
 */
#ifndef THIN_CORE_OFFLINE_REPAIR_H
#define THIN_CORE_OFFLINE_REPAIR_H

#include <stdbool.h>

#include "core/offline/build.h"
#include "core/offline/kept.h"
#include "core/offline/live.h"
#include "core/offline/report.h"
#include "core/offline/scan.h"

#define REPAIR_CANDIDATES_MAX 1024u /* roots of one kind that are weighed */

enum repair_origin {
    REPAIR_OWN,    /* the pool's own trees */
    REPAIR_FOUND,  /* in use, found without its parent */
    REPAIR_OLDER,  /* an older version */
    REPAIR_NOTHING /* no root was found: the device is kept, empty */
};

const char *repair_origin_name(enum repair_origin origin);

struct repair_device {
    enum repair_origin origin;
    bool details_made; /* no record survived */
    uint64_t recovered;
    uint64_t nr_lost_ranges;
};

struct repair_plan {
    struct live_pool pool;         /* what will be fed */
    struct repair_device *devices; /* beside pool.devices */
    struct report lost;            /* `affected`: ranges that are lost */
    struct scan scan;
    bool scanned, superblock_lost, trees_whole;
    bool from_kept;       /* the superblock is one that was kept elsewhere */
    uint64_t kept_unix_s; /* with from_kept: when it was written */
    bool time_lost;       /* the clock is set to the latest time that is found */
    uint64_t recovered;
    uint8_t trailer[SUPERBLOCK_TRAILER_BYTES]; /* as found in block 0 */
};

/*
 * `kept` may be NULL. -THIN_E_NOT_FOUND if nothing of a pool is there, -THIN_E_INVALID if
 * the superblock is lost and neither `kept` nor `over` says what it held.
 */
int repair_plan_make(struct repair_plan *plan, struct meta_source *src,
                     const struct build_override *over, const struct kept *kept,
                     struct thin_error *err);
void repair_plan_fini(struct repair_plan *plan);

int repair_plan_feed(struct repair_plan *plan, const struct ir_visitor *visitor,
                     void *arg, struct thin_error *err);

/* ---- between the files of repair ----------------------------------------------------- */

/* Finds devices and details that the trees do not lead to any more. */
int repair_search(struct repair_plan *plan, bool top_whole, bool details_whole,
                  struct thin_error *err);
/* Finds subtrees for the gaps that the survey has found. */
int repair_fill_gaps(struct repair_plan *plan, struct thin_error *err);

/* A root that was found in use may have lost so much that an older version holds more:
   then that one is taken. True if there is one. */
bool repair_take_fuller(struct repair_plan *plan);

/* Adds a device, or returns the one there is; NULL when there is no memory. The list
   need not be sorted meanwhile. */
struct live_device *repair_device(struct repair_plan *plan, uint64_t dev_id);

#endif
