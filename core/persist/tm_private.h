/* The transaction manager's inside, for its files. */
#ifndef THIN_CORE_PERSIST_TM_PRIVATE_H
#define THIN_CORE_PERSIST_TM_PRIVATE_H

#include <stddef.h>

#include "core/ondisk/bitmap.h"
#include "core/persist/bitset.h"
#include "core/persist/btree.h"
#include "core/persist/transaction_manager.h"
#include "core/persist/u64_map.h"

/* What is copied whole when an operation begins, and put back when it is undone. */
struct tm_core {
    uint64_t nr_blocks;
    uint64_t nr_allocated; /* counts that are not zero */
    uint64_t nr_pending;   /* count 0, and not to be handed out yet */
    uint64_t nr_overflow;  /* counts above 2 */
    uint64_t reserve;
    mblock_t cursor; /* the next allocation looks from here */
    mblock_t overflow_root;
    mblock_t index_block; /* 0: none yet */
    uint32_t nr_bitmaps;
    uint32_t nr_changed; /* of `changed` below */
    uint64_t owner_need; /* tm_set_commit_need */
};

/* One bitmap of the metadata space map, whole in memory. */
struct tm_bitmap {
    uint8_t *image;
    mblock_t place; /* 0: none yet */
    uint32_t nr_free, none_free_before;
    bool dirty;
};

/* A count above 2 that is known in memory, or one that was until now (`changed`). */
struct tm_overflow {
    uint32_t count;
    bool changed; /* the overflow tree does not know it yet */
};

enum tm_undo_kind { UNDO_COUNT, UNDO_PLACE, UNDO_CALL };

struct tm_undo {
    enum tm_undo_kind kind;
    uint64_t a, b;
    void (*call)(void *arg, uint64_t a, uint64_t b);
    void *arg;
};

struct tm_image {
    mblock_t block;
    uint8_t *bytes; /* allocated at its first use, then kept */
};

struct tm_save {
    void *words;
    size_t nr_bytes;
    uint8_t bytes[TM_OP_SAVE_BYTES];
};

/* A metadata block freed in transaction `txn`. */
struct tm_freed {
    uint64_t txn;
    mblock_t block;
};

struct transaction_manager {
    struct block_manager *bm;
    struct tm_params params;
    struct tm_core core;
    struct btree overflow_tree;

    /* The space map. */
    struct tm_bitmap bitmaps[INDEX_BLOCK_ENTRIES];
    struct bitset pending;
    struct u64_map overflow_at; /* block -> place in `overflow` */
    struct tm_overflow *overflow;
    uint32_t nr_overflow, cap_overflow;
    mblock_t changed[TM_OVERFLOW_MAX]; /* blocks whose overflow entry changed */
    bool writing_overflow;             /* the overflow tree itself is being changed */

    /* Transactions. */
    uint64_t txn, durable;
    struct bitset made; /* blocks that the open transaction made */
    bool prepared;
    struct tm_freed *freed; /* a ring, oldest first */
    uint32_t freed_head, nr_freed, cap_freed;
    TAILQ_HEAD(, tm_pin) pins;

    /* The open operation. */
    bool op_open;
    enum tm_purse purse;
    uint64_t op; /* its number */
    struct tm_core before;
    uint64_t need_before, nr_op_allocs;
    struct tm_undo *log;
    uint32_t nr_log, cap_log;
    mblock_t *op_freed; /* blocks whose count it brought to 0 */
    uint32_t nr_op_freed, cap_op_freed;
    struct tm_image images[TM_OP_NODES_MAX];
    uint32_t nr_images, images_high_water;
    struct tm_save saves[TM_OP_SAVES_MAX];
    uint32_t nr_saves;
};

/* ---- tm_undo.c -------------------------------------------------------------------------- */

int tm_log(struct transaction_manager *tm, const struct tm_undo *undo,
           struct thin_error *err);
/* Keeps the bytes of a frame that was dirty before the operation. */
int tm_save_image(struct transaction_manager *tm, struct bm_block *block,
                  struct thin_error *err);
void tm_undo_all(struct transaction_manager *tm);
void tm_undo_fini(struct transaction_manager *tm);

/* ---- space_map_metadata.c ------------------------------------------------------------------ */

/* Takes a free block: count 1, made in the open transaction. */
int tm_alloc(struct transaction_manager *tm, mblock_t *ret_block, struct thin_error *err);
int tm_check_block(const struct transaction_manager *tm, mblock_t b,
                   struct thin_error *err);
/*
 * Words and code for having too few free blocks: `wanted` now, `after` if the open
 * transaction were committed first. -THIN_E_NEED_COMMIT if that would do.
 */
int tm_no_space(const struct transaction_manager *tm, uint64_t wanted, uint64_t after,
                struct thin_error *err);
uint64_t tm_nr_free(const struct transaction_manager *tm);
/* Blocks that writing out the space map itself may take. */
uint64_t tm_own_need(const struct transaction_manager *tm);
/* The same for a transaction in which hardly anything has changed. */
uint64_t tm_base_need(const struct transaction_manager *tm);
void tm_undo_count(struct transaction_manager *tm, mblock_t b, uint64_t state);
void tm_undo_place(struct transaction_manager *tm, uint64_t i, mblock_t place);
void tm_space_map_fini(struct transaction_manager *tm);
/* The changed counts have been cut. */
void tm_forget_changed(struct transaction_manager *tm);
extern const struct bm_validator tm_bitmap_validator, tm_index_validator;

/* ---- space_map_metadata_write.c ------------------------------------------------------------ */

/* Changes of an overflow tree that one step may make: what they read must fit into the
   cache at the same time. At least 1. */
uint32_t tm_step_changes(const struct transaction_manager *tm);

/* Nodes of this transaction that the open operation has changed so far. */
uint32_t tm_op_nr_nodes(const struct transaction_manager *tm);

#endif
