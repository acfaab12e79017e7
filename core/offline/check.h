/*
 * The check: everything in the metadata that can be held against something else.
 * Superblock and held copy, every node (checksum, own number, header, order, fill,
 * place, role), details against trees (same ids, mapped_blocks, times), values against
 * the device, both space maps (structure, every count, their sums and hints). It goes
 * on after the first fault; what it finds stands in a report.
 */
#ifndef THIN_CORE_OFFLINE_CHECK_H
#define THIN_CORE_OFFLINE_CHECK_H

#include <stdbool.h>

#include "core/offline/counts.h"
#include "core/offline/report.h"
#include "core/offline/walk.h"
#include "core/ondisk/superblock.h"

struct check_options {
    bool super_block_only;
    bool skip_mappings;    /* nor counts, which need them */
    bool ignore_non_fatal; /* nodes may be too empty */
    bool metadata_snap;    /* only the trees of the held snapshot */
    mblock_t snap_block;   /* with metadata_snap: 0 for the superblock's held root */
    mblock_t mapping_root; /* in place of the superblock's; 0: none */
};

/* A device whose tree was read whole, and whose record says something else. */
struct check_miscount {
    uint64_t dev_id;
    uint64_t mapped_blocks; /* what the tree holds */
};

struct check_result {
    struct superblock sb; /* valid if sb_good */
    bool sb_good;
    bool needs_check;
    uint64_t trans_id; /* of what was checked: the held snapshot's with metadata_snap */
    uint64_t nr_devices;
    uint64_t nr_mappings; /* in distinct leaves */
    uint64_t metadata_blocks, metadata_used, data_blocks, data_used;
    uint64_t leaked_metadata, leaked_data;
    /* Counted, but perhaps below what is damaged. */
    uint64_t unreached_metadata, unreached_data;
    /* The walk of all but the space maps was whole: the counts below are right. */
    bool trees_known;
    /* Of the live trees, by device id; each is a finding of damage in the details. */
    struct check_miscount *miscounts;
    size_t nr_miscounts, room_miscounts;
    struct counts
        tree_refs;      /* pointers to each metadata block, without the space maps' */
    struct counts refs; /* with them */
    struct counts data; /* leaf entries for each data block */
};

/*
 * 0 when the check could be done, whatever it found: see rep->nr_class. Negative:
 * -ENOMEM, -THIN_E_CANCELLED, or the device's code for block 0. The caller ends
 * *ret with check_result_fini in every case.
 */
int check_run(struct meta_source *src, const struct check_options *opts,
              struct report *rep, struct check_result *ret, struct thin_error *err);
void check_result_fini(struct check_result *res);

/* ---- shared between the files of the check ------------------------------------------ */

struct check {
    struct meta_source *src;
    const struct check_options *opts;
    struct report *rep;
    struct check_result *res;
    struct walk walk;
    uint64_t nr_data; /* data blocks that counters are kept for */
    /* Mappings whose time is ahead of the pool's. */
    uint64_t nr_ahead;
    mblock_t first_ahead; /* node */
    uint32_t time_ahead;  /* the greatest */
    size_t room_known;    /* of walk.known */
};

/*
 * Where the blocks are not in memory: reads all that are in use in the order of the disk,
 * before anybody knows their places, and counts the data blocks of what looks like a leaf
 * of mappings without fault; the walk then has only their places to judge. Others are kept
 * aside as far as there is room. check_sweep_settle, after the walk of the mappings, takes
 * back what was counted of leaves that it did not come to.
 *
 *   index_block  of the metadata space map: what is in use, a hint and never believed
 */
int check_sweep(struct check *c, mblock_t index_block, struct thin_error *err);
int check_sweep_settle(struct check *c, struct thin_error *err);
/* Frees what a sweep made; also where none was made. */
void check_sweep_fini(struct check *c);

/* Both walk their own trees and compare with the counts of the walk so far. */
int check_data_space_map(struct check *c);
int check_metadata_space_map(struct check *c);

#endif
