/*
 * Bytes at an offset, and flush: the one interface to whatever holds blocks.
 *
 * A request is submitted once and completed once, by its `done`, on the loop that the
 * device was opened with and never inside device_submit. Requests complete in any
 * order. A FLUSH covers exactly the writes that had *completed* before it was
 * submitted. Offsets and lengths are in bytes and multiples of 512 (drivers with a
 * larger unit, as O_DIRECT on a 4k disk, bounce inside). A request may be as large as
 * DEVICE_IO_MAX; limits tell what is best.
 *
 * A read beyond the size recorded at open or by the last grow is -THIN_E_RANGE; a
 * read that the backend cuts short below that size is -EIO. A write that is
 * reported as failed may have changed any part of its range.
 *
 * One contract suite (tests/unit/device/) runs over every driver and wrapper.
 */
#ifndef THIN_CORE_DEVICE_DEVICE_H
#define THIN_CORE_DEVICE_DEVICE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>

#include "core/base/error.h"
#include "core/base/loop.h"

#define DEVICE_IO_MAX  (64u << 20) /* bytes in one read or write */
#define DEVICE_IOV_MAX 256u        /* pieces of one read or write */

enum device_op {
    DEVICE_READ,
    DEVICE_WRITE,
    DEVICE_WRITE_ZEROES, /* may unmap, unless DEVICE_NO_UNMAP */
    DEVICE_DISCARD,      /* contents undefined afterwards; a hint that may do nothing */
    DEVICE_FLUSH,        /* offset and len ignored */
    DEVICE_GROW, /* `offset` is the new size in bytes; durable when done; never shrinks */
    DEVICE_EXTENTS, /* what backs [offset, offset + len): fills `extents` */
    DEVICE_ALLOCATE, /* [offset, offset + len) gets its place now, contents kept; -ENOSPC */
};

#define DEVICE_FUA      1u /* WRITE, WRITE_ZEROES: durable when done */
#define DEVICE_NO_UNMAP 2u /* WRITE_ZEROES: must stay allocated */
#define DEVICE_ONLY_FAST \
    4u /* WRITE_ZEROES: -EOPNOTSUPP at once, nothing changed, if slow */

/* What backs a range. DATA may read as anything; ZERO reads as zeros but is allocated
   (an unwritten extent); HOLE reads as zeros and is not allocated. */
enum device_extent_kind { DEVICE_EXTENT_DATA, DEVICE_EXTENT_ZERO, DEVICE_EXTENT_HOLE };

struct device_extent {
    uint64_t len; /* bytes; extents follow one another from the request's offset */
    enum device_extent_kind kind;
};

struct device;
struct stat;

/*
 * One request. Embed it. The submitter fills the first part and leaves everything
 * alone until `done`. Nothing is allocated for it on the data path.
 */
struct device_io {
    enum device_op op;
    unsigned flags;
    uint64_t offset;
    uint64_t len;
    struct iovec *
        iov; /* READ, WRITE: borrowed until done; sums to len; drivers may not change it */
    unsigned nr_iov;
    struct device_extent *extents; /* EXTENTS: room for max_extents */
    unsigned max_extents;
    unsigned ret_nr_extents; /* they cover a prefix of the range, at least one byte */
    /* `result`: 0 or a negative code. On -EIO the rest is in the device's log line. */
    void (*done)(struct device_io *io, int result);

    /* The driver's, while the request runs. */
    struct device *dev;
    TAILQ_ENTRY(device_io) link;
    int result;
    uint32_t driver_u32;
    uint64_t driver_u64[4];
    void *driver_ptr[4];
};

TAILQ_HEAD(device_io_list, device_io);

struct device_limits {
    uint32_t alignment;     /* bytes; requests so aligned need no bounce. 512 or more */
    uint64_t best_io_bytes; /* largest request that is worth sending as one */
    bool discards;          /* DISCARD does something */
    uint64_t discard_align; /* bytes; a finer discard may do nothing */
    bool zeroes_fast;       /* WRITE_ZEROES costs about nothing for each byte */
    bool grows;             /* GROW may work (a regular file) */
    bool zeroes_fresh;      /* DISCARD then EXTENTS can prove zeros */
};

struct device_ops {
    const char *kind; /* "file", "memory", "fault", "log", "nbd" */
    void (*submit)(struct device *dev, struct device_io *io);
    /*
     * Called by device_close on the loop when nothing is in flight any more: frees the
     * device, then calls `closed`, once, at once or later.
     */
    void (*close)(struct device *dev, void (*closed)(void *arg), void *arg);
};

/* Drivers embed it first in their own struct. Fields are read-only to callers. */
struct device {
    const struct device_ops *ops;
    struct thin_loop *loop;
    struct device_limits limits;
    uint64_t size; /* bytes, a multiple of 512; changes only by GROW and by notice */
    bool read_only;
    bool lost; /* every error is final from here on (-THIN_E_LOST) */
    unsigned in_flight;
    char name[256]; /* for words: the path or URI, cut */
    /* Told when the backend's size changed under us; may be NULL. On the loop. */
    void (*resized)(struct device *dev, uint64_t new_size, void *arg);
    void *resized_arg;

    /* device.c's own: what has ended and is told at the next turn; closing. */
    struct device_io_list finished;
    struct thin_task finish_task;
    void (*closed)(void *arg);
    void *closed_arg;
    bool closing;
    bool winding_up; /* ops->close has been called */
    bool delivering;
};

/*
 * Hands the request in; `done` follows, also for a refused one (-THIN_E_RANGE,
 * -THIN_E_READ_ONLY, -THIN_E_INVALID for a broken shape, which a length of 0 is too,
 * -THIN_E_LOST, -THIN_E_SHUTDOWN after device_close).
 *
 * GROW to the present size or below what the backend has by now only takes notice of
 * the backend's size; a block device grows in no other way.
 */
void device_submit(struct device *dev, struct device_io *io);

/*
 * Ends the device after its requests; `closed` (may be NULL) follows on the loop, when
 * the device is freed, never inside this call. NULL is fine: nothing is then called.
 */
void device_close(struct device *dev, void (*closed)(void *arg), void *arg);

/*
 * Waiting forms for tools, tests and format: they run the device's loop until the
 * request is done, so they are forbidden on the server's loops (lint checks it).
 */
int device_wait(struct device *dev, struct device_io *io);
int device_read_wait(struct device *dev, uint64_t offset, void *buf, uint64_t len_bytes);
int device_write_wait(struct device *dev, uint64_t offset, const void *buf,
                      uint64_t len_bytes, unsigned flags);
int device_zero_wait(struct device *dev, uint64_t offset, uint64_t len_bytes,
                     unsigned flags);
int device_flush_wait(struct device *dev);
int device_grow_wait(struct device *dev, uint64_t new_size);
void device_close_wait(struct device *dev);

/* ---- drivers -------------------------------------------------------------------- */

enum device_file_way {
    DEVICE_WAY_AUTO,
    DEVICE_WAY_URING,
    DEVICE_WAY_THREADS,
    DEVICE_WAY_INLINE
};

struct device_file_params {
    const char *path;
    bool read_only;
    bool direct; /* O_DIRECT */
    bool create; /* O_CREAT|O_EXCL, of `create_size` bytes, raw */
    uint64_t create_size;
    bool allocate_in_full; /* with create: every byte gets its place (metadata) */
    bool no_lock;          /* for readers that must not hinder anyone */
    bool pad_tail; /* with read_only: a last part of a sector counts, followed by zeros */
    enum device_file_way way; /* AUTO unless a test, a bench or a switch says otherwise */
};

/*
 * -THIN_E_BUSY: the regular file backs a loop device; written through both it would have two
 * caches that know nothing of each other. device_file_open asks it by itself.
 */
int device_file_check_no_loop(const char *path, const struct stat *file,
                              struct thin_error *err);

/*
 * Opens a regular file or block device. Takes the exclusive open-file-description
 * lock (files) or O_EXCL (block devices) unless no_lock: -THIN_E_BUSY with words when
 * somebody holds it. Waits (open, stat, lock), so call it from a helper thread where
 * that matters. Errors: -errno with path and reason in words.
 *
 * A failed FLUSH is final: each later FLUSH and FUA write fails too, until the device is
 * opened anew. Buffers aligned to limits.alignment spare a copy with `direct`. Way INLINE
 * waits in device_submit and needs nothing of the loop but `defer`: for tools.
 * THIN_FILE_WAY=auto|uring|threads|inline in the environment overrides AUTO.
 */
int device_file_open(struct thin_loop *loop, const struct device_file_params *params,
                     struct device **ret_dev, struct thin_error *err);

/*
 * RAM. Unwritten parts are holes; DISCARD makes holes. `size` in bytes. -ENOMEM.
 * device_mem_page gives the store itself, for tests: 4 KiB pages, NULL for a hole.
 */
int device_mem_open(struct thin_loop *loop, uint64_t size, struct device **ret_dev);
const void *device_mem_page(struct device *dev, uint64_t page_index);

#endif
