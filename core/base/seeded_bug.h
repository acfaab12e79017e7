/*
 * Bugs on purpose, for the test of the crash tests: in a build of its own
 * (-DTHIN_SEEDED_BUGS) the environment's THIN_SEEDED_BUG=name switches one on, and the
 * simulation must find it. In every other build seeded_bug() is false, and nothing of
 * this is compiled.
 */
#ifndef THIN_CORE_BASE_SEEDED_BUG_H
#define THIN_CORE_BASE_SEEDED_BUG_H

#include <stdbool.h>

/*    name                 what is wrong */
#define SEEDED_BUG_TABLE(X)                                                              \
    X(MISSING_FLUSH, "the superblock does not wait for the data flush")                  \
    X(EARLY_REUSE, "a metadata block freed in the open transaction is used again")       \
    X(REUSE_IN_CUT, "a data block freed by the transaction being written is used again") \
    X(REUSE_WHILE_READ, "a freed block is used again while a read is on its way to it")  \
    X(REUSE_IN_PASSDOWN, "a freed block is used again while it is being passed down")    \
    X(REUSE_PINNED, "a freed block is used again that a pinned view reaches")            \
    X(SUPERBLOCK_FIRST, "the superblock does not wait for the flush of its nodes")       \
    X(CATALOGUE_LOST, "the catalogue's pages are not written")                           \
    X(STALE_CACHE, "a roll-back leaves the mapping cache as it was")                     \
    X(FLUSH_JOINED, "a flush joins the one that is running already")                     \
    X(PASSDOWN_EARLY, "a freed block is passed down before the commit")                  \
    X(MAPPING_FIRST, "a mapping is inserted before its block was written and zeroed")    \
    X(FUA_UNCOMMITTED, "FUA does not wait for the commit of its mapping")                \
    X(FLUSH_UNCOMMITTED, "a flush does not wait for the commit of its mappings")         \
    X(TIME_STANDS, "a snapshot does not move time on")                                   \
    X(SNAPSHOT_EARLY, "a snapshot is answered before its origin's older writes ended")   \
    X(COPY_EARLY, "a copy does not wait for the writes in flight to its source")         \
    X(SIZE_NOT_DURABLE, "a device's new size is not durable when it is answered")        \
    X(NOT_SETTLED, "what was loaded is taken for durable")                               \
    X(FLUSH_RETRIED, "a failed flush is tried again and succeeds")                       \
    X(INCARNATION_KEPT, "a roll-back leaves the incarnation as it was")                  \
    X(NOT_FENCED, "a roll-back does not fence who may have lost writes")                 \
    X(NEIGHBOUR_TORN, "a write does not wait for one that patches a part of its sector") \
    X(ORIGIN_SHOWS, "a discard unmaps blocks that an external origin stands behind")     \
    X(ORIGIN_FORGOTTEN, "a block's first write takes nothing from the external origin")  \
    X(CLEAN_KEPT, "a pool in use still says that it was closed in good order")           \
    X(STABLE_TOO_EARLY, "a write that ends during a roll-back counts as stable")         \
    X(CHECKSUM_IGNORED, "a metadata block is believed whatever its checksum")            \
    X(DAMAGED_GIVEN_OUT, "blocks whose counts are damaged are handed out")               \
    X(DAMAGE_UNMARKED, "counts left wrong by damage ask for no check")

enum seeded_bug {
    SEEDED_NONE,
#define SEEDED_BUG_ENUM(name, words) SEEDED_##name,
    SEEDED_BUG_TABLE(SEEDED_BUG_ENUM)
#undef SEEDED_BUG_ENUM
};

#ifdef THIN_SEEDED_BUGS
bool seeded_bug(enum seeded_bug bug);
#else
static inline bool
seeded_bug(enum seeded_bug bug)
{
    (void)bug;
    return false;
}
#endif

#endif
