/*
 * Where the tools read metadata blocks from and write them to: a file, a block device,
 * any struct device, or functions that the caller hands in (a pinned view, memory).
 *
 * Not through the cached block manager: a tool reads most blocks once, in the order
 * that suits the disk, and must go on after blocks that cannot be read.
 *
 * One thread at a time for each source. A path is read ahead by threads of the source's
 * own (source_ahead.h), which end with it. No globals.
 */
#ifndef THIN_CORE_OFFLINE_SOURCE_H
#define THIN_CORE_OFFLINE_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/ondisk/block.h"

#define SOURCE_PIECE_BLOCKS 128u /* largest joined read: 512 KiB */
#define SOURCE_GAP_BLOCKS   16u  /* so many unwanted blocks are read to join two wanted */

/* Offsets and lengths are multiples of 4096. 0 or a negative code; short is -EIO. */
struct source_ops {
    int (*read)(void *arg, uint64_t offset, void *buf, size_t len_bytes);
    bool any_thread; /* several threads may read at once: reads then run ahead */
    /* Of any thread, past a cache that may lie between. NULL: no such way. */
    int (*read_from_disk)(void *arg, uint64_t offset, void *buf, size_t len_bytes);
    int (*write)(void *arg, uint64_t offset, const void *buf, size_t len_bytes);
    int (*flush)(void *arg);
    void (*close)(void *arg); /* may be NULL */
};

/* Called now and then with work done and in all (0: not known); not 0 cancels. `what` may
   be NULL: nothing is known but that work goes on. */
struct source_progress {
    int (*tick)(void *arg, const char *what, uint64_t done, uint64_t total);
    void *arg;
};

struct source_ahead;
struct source_aside;
struct meta_source {
    const struct source_ops *ops;
    void *arg;
    uint64_t nr_blocks; /* whole metadata blocks */
    bool writable;
    struct source_progress progress;
    uint8_t *piece;             /* SOURCE_PIECE_BLOCKS, aligned to 4096 */
    struct source_ahead *ahead; /* NULL before the first long row, or for good */
    struct source_aside *aside; /* of a sweep; NULL: nothing */
    bool slow;                  /* the last read */
    uint64_t nr_read, nr_unreadable, nr_written;
    /* What reading is for, in words, and how many blocks that may need; NULL: unknown. */
    const char *reading_for;
    uint64_t reading_from, reading_total;
};

enum source_mode {
    SOURCE_READ,        /* a shared lock: nobody may write meanwhile */
    SOURCE_READ_SHARED, /* no lock: the held snapshot of a pool that is being served */
    SOURCE_WRITE,       /* the pool's exclusive lock */
};

/*
 * Opens a regular file or a block device (with O_DIRECT). -THIN_E_BUSY when the pool is
 * in use, -THIN_E_INVALID for what is neither, else -errno, with the path in words.
 */
int source_open_path(const char *path, enum source_mode mode,
                     struct meta_source **ret_src, struct thin_error *err);

/* Borrows `arg` until source_close, which calls ops->close. */
int source_open_ops(const struct source_ops *ops, void *arg, uint64_t size_bytes,
                    bool writable, struct meta_source **ret_src);

/* `dev` (struct device, core/device/device.h) is borrowed; its loop is run to wait. */
struct device;
int source_open_device(struct device *dev, struct meta_source **ret_src);

void source_close(struct meta_source *src); /* NULL is fine */

/* One block into 4096 bytes. -THIN_E_RANGE beyond the end, or the device's code. */
int source_read(struct meta_source *src, mblock_t b, void *buf, struct thin_error *err);

/*
 * The blocks of `sorted` (ascending) in that order, neighbours joined into large reads,
 * and checked as `kind` (BLOCK_KINDS: not at all). `seen` gets the index, and either
 * 4096 bytes that live until it returns, with the code of block_check, or NULL and the
 * code of a block that cannot be read. Its own result, if not 0, ends the row and is
 * returned; it must not read from `src` itself. -THIN_E_CANCELLED when the progress
 * function says so.
 */
typedef int source_seen_fn(void *arg, size_t index, const uint8_t *data, int code);
int source_read_many(struct meta_source *src, const mblock_t *sorted, size_t nr,
                     enum block_kind kind, source_seen_fn *seen, void *arg);

/*
 * Reads every block below nr_blocks with a bit in `wanted` (the lowest bit of a byte
 * first), as fast as the disk gives them, and checks them as `kind`; for a source whose
 * blocks are not in memory. They come in order but for a few that overtake others, in
 * whole rows. `seen` gets those that can be read. It says 1 of a
 * block that it is done with; of one with 0 a copy is kept aside, as far as there is room,
 * and later reads find it there, until source_forget or close; nothing may be written
 * before. Negative ends the sweep and is returned. 0 also when it was cut short: where the
 * source or memory does not allow it, or `seen` is done with less than half of much.
 */
typedef int source_swept_fn(void *arg, mblock_t b, const uint8_t *data, int code);
int source_sweep(struct meta_source *src, const uint8_t *wanted, mblock_t nr_blocks,
                 enum block_kind kind, source_swept_fn *seen, void *arg);
void source_forget(struct meta_source *src);

/* The last read came from a disk rather than from memory, as far as can be told. */
bool source_is_slow(const struct meta_source *src);

int source_write(struct meta_source *src, mblock_t b, const void *buf, size_t nr_blocks,
                 struct thin_error *err);
int source_flush(struct meta_source *src, struct thin_error *err);

/* From now on reads tell their progress by these words; `total` 0: not known. */
void source_reads_for(struct meta_source *src, const char *what, uint64_t total);

/* Asks the progress function; -THIN_E_CANCELLED or 0. */
int source_tick(struct meta_source *src, const char *what, uint64_t done, uint64_t total);

#endif
