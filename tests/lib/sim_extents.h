/*
 * What may stand in each byte of a simulated volume: extents, each with the writes that
 * may be seen there. A write adds a candidate; one that ended for certain before another
 * began (by a flush, or for who reads now) goes.
 *
 * Contents are patterns: a sector of write `value` holds the 64-bit word
 * `value << 16 | sector` from end to end, where sector counts from the volume's start; zeros are
 * value 0. So a block in the wrong place is seen, and a torn sector too. Offsets are multiples
 * of 8. Aborts when out of memory.
 */
#ifndef THIN_TESTS_LIB_SIM_EXTENTS_H
#define THIN_TESTS_LIB_SIM_EXTENTS_H

#include <stdbool.h>
#include <stdint.h>

#define SIM_BLOCK      65536u
#define SIM_CANDIDATES 8u
#define SIM_NEVER      UINT64_MAX
#define SIM_ORIGIN     0x0f0f0f0f0f0full /* the value of all that an external origin holds */

struct sim_candidate {
    uint64_t value;
    uint64_t submitted; /* also the write's name */
    uint64_t ended;     /* SIM_NEVER: in flight */
    bool ok;            /* ended well: it hides what ended before it was submitted */
    bool durable;       /* answered with FUA */
};

struct sim_extent {
    uint64_t begin, end;
    unsigned nr;
    struct sim_candidate c[SIM_CANDIDATES];
};

struct sim_extents {
    struct sim_extent *e;
    unsigned nr, room;
    uint64_t size;
    uint64_t origin; /* bytes that an external origin backs, also beyond the size */
};

/* All zeros, behind the first `origin` bytes: there stands the pattern of SIM_ORIGIN. */
void sim_extents_init(struct sim_extents *x, uint64_t size, uint64_t origin);
void sim_extents_fini(struct sim_extents *x);
/* `to` is zeroed memory or was in use. */
void sim_extents_copy(struct sim_extents *to, const struct sim_extents *from);
/* Growth adds what the origin has there (in the block of the old end that may have turned
   to zeros), and zeros; shrinking cuts off, the origin too. */
void sim_extents_resize(struct sim_extents *x, uint64_t size);

/* True if one more write can be remembered in all of the range. */
bool sim_extents_have_room(const struct sim_extents *x, uint64_t begin, uint64_t end);
void sim_extents_add(struct sim_extents *x, uint64_t begin, uint64_t end, uint64_t value,
                     uint64_t submitted);
void sim_extents_end(struct sim_extents *x, uint64_t begin, uint64_t end,
                     uint64_t submitted, uint64_t at, bool ok, bool durable);
/* Forgets what a write hides that had ended well by `by` (or with FUA, if `fua`). `made`:
   see sim_look. */
void sim_extents_prune(struct sim_extents *x, uint64_t by, bool fua, uint64_t made);
/* All that is in flight has ended, well or not. */
void sim_extents_settle(struct sim_extents *x, uint64_t at);
/* Of a snapshot of a snapshot: what the first has of its origin (up to `made`) may be
   anything that it was. */
void sim_extents_taken(struct sim_extents *x, uint64_t made);

/* When a snapshot was taken, by what was seen of it: after `low` and before `high`. */
struct sim_moment {
    uint64_t low, high;
};

struct sim_look {
    uint64_t by;               /* writes that ended well by then hide older ones */
    bool fua;                  /* and those with FUA */
    uint64_t made;             /* of a snapshot: candidates up to then are its origin's */
    struct sim_moment *moment; /* NULL: not one */
};

/*
 * Compares `bytes` (of [begin, end); NULL: all zeros). True if every sector may hold what
 * stands there; else `why` tells.
 */
bool sim_extents_allow(const struct sim_extents *x, uint64_t begin, uint64_t end,
                       const unsigned char *bytes, const struct sim_look *look, char *why,
                       unsigned why_bytes);

/* From now on nothing but `bytes` (the whole volume, allowed as above) may stand there. */
void sim_extents_collapse(struct sim_extents *x, const unsigned char *bytes);
/* Of a snapshot: what came from its origin is now known. */
void sim_extents_seen(struct sim_extents *x, const unsigned char *bytes, uint64_t made);

/* Fills a buffer for [begin, ...) with the pattern of a write. */
void sim_fill(unsigned char *bytes, uint64_t begin, uint64_t len, uint64_t value);

#endif
