/*
 * What a check has found: a bounded list of findings in words, and the volumes and
 * ranges that damage takes with it. Sorted before it is read, so that two runs over
 * the same metadata say the same.
 */
#ifndef THIN_CORE_OFFLINE_REPORT_H
#define THIN_CORE_OFFLINE_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/ondisk/block.h"

#define REPORT_FINDINGS_MAX 4096u /* further ones are only counted */
#define REPORT_AFFECTED_MAX 4096u

/*   name     what it means */
#define REPORT_CLASSES(X)                                                         \
    X(DAMAGE, "damage") /* the pool must not be used as it is */                  \
    X(LEAK, "leak")     /* space that nobody uses is counted as used: harmless */ \
    X(NOTE, "note")     /* odd, right enough to be used */

enum report_class {
#define REPORT_CLASS_ENUM(name, text) REPORT_##name,
    REPORT_CLASSES(REPORT_CLASS_ENUM)
#undef REPORT_CLASS_ENUM
        REPORT_NR_CLASSES
};

/* Where the fault is; findings are sorted by place first, in this order. */
#define REPORT_PLACES(X)              \
    X(SUPERBLOCK, "superblock")       \
    X(HELD, "held superblock")        \
    X(DETAILS, "device details tree") \
    X(TOP, "top-level mapping tree")  \
    X(MAPPING, "mapping tree")        \
    X(DATA_SM, "data space map")      \
    X(METADATA_SM, "metadata space map")

enum report_place {
#define REPORT_PLACE_ENUM(name, text) REPORT_AT_##name,
    REPORT_PLACES(REPORT_PLACE_ENUM)
#undef REPORT_PLACE_ENUM
        REPORT_NR_PLACES
};

const char *report_class_name(enum report_class c);
const char *report_place_name(enum report_place p);

struct finding {
    enum report_class class;
    enum report_place place;
    uint64_t block; /* a metadata block, or a data block in data counts */
    uint32_t seq;   /* order of arrival among equals */
    char *text;
};

/* Virtual blocks [begin, last] of a device cannot be read, because of `block`. */
struct affected {
    uint64_t dev_id;
    bool held; /* in the held snapshot only */
    uint64_t begin, last;
    mblock_t block;
};

struct report {
    struct finding *findings;
    size_t nr, room;
    uint64_t nr_class[REPORT_NR_CLASSES];
    uint64_t nr_damage_at[REPORT_NR_PLACES];
    struct affected *affected;
    size_t nr_affected, affected_room;
    uint64_t nr_affected_all;
    bool no_memory; /* something could not be noted */
};

void report_init(struct report *rep);
void report_fini(struct report *rep);

/* Notes a finding; the words are the whole sentence. Never fails: see no_memory. */
void report_add(struct report *rep, enum report_class class, enum report_place place,
                uint64_t block, const char *fmt, ...) PRINTF_LIKE(5, 6);
void report_affected(struct report *rep, const struct affected *a);

/* Puts both lists in their order. */
void report_sort(struct report *rep);

#endif
