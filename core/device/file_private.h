/*
 * The file device, inside. A request's way:
 *
 *   device_file.c  submit: judges, sends it one of four ways, hears of its end
 *     inline        file_run on the loop: cached reads, small buffered writes; way INLINE
 *     file_ring.c   io_uring: reads that would wait, direct I/O
 *     file_lanes.c  threads: what is large, what blocks, and all of it without io_uring
 *     file_sync.c   the blocking calls themselves, used inline and by the threads
 *
 * Everything is the loop's thread but what stands in a lane: requests handed to a lane
 * belong to it until they come back through `done`, under `lock`.
 *
 *        submit --> inline ----------------------------> file_ended --> device_finish
 *               \-> ring  --> completion queue ---------->/    |
 *               \-> lane  --> thread --> done --> wake -->/    | FUA: once more through
 *                     ^----------------------------------------/ the flush lane
 */
#ifndef THIN_CORE_DEVICE_FILE_PRIVATE_H
#define THIN_CORE_DEVICE_FILE_PRIVATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/log.h"
#include "core/device/driver.h"

#define FILE_LARGE_BYTES     (256u << 10) /* from here on a copy leaves the loop */
#define FILE_WRITEBACK_BYTES (4u << 20)   /* dense writes between two writebacks */
#define FILE_SCATTERED_BYTES (16u << 20)  /* the same for scattered ones */
#define FILE_INLINE_DIRTY_MAX \
    (64u << 20) /* while one runs; beyond, writes leave the loop */
#define FILE_ZERO_WRITE_MAX (64u << 10)  /* NO_UNMAP zeroes up to here are written */
#define FILE_IO_THREADS     4u           /* threads of the I/O lane */
#define FILE_WRITE_BATCH    32u          /* requests a writer takes at once */
#define FILE_RING_DEPTH     128u         /* requests in one ring */
#define FILE_BOUNCE_BYTES   (256u << 10) /* one for each thread that needs one */
#define FILE_PAGE_BYTES     4096u
#define FILE_FOLIO_BYTES \
    (32u << 10) /* a buffered write in one call, so cached together */

/* The unaligned request's stand-in under O_DIRECT; allocated when first needed. */
struct file_bounce {
    char *buf;
};

enum file_lane_id {
    FILE_LANE_IO,    /* reads; direct writes */
    FILE_LANE_WRITE, /* buffered writes: one thread, the inode's lock allows no more */
    FILE_LANE_FLUSH, /* fdatasync for all who wait, writeback, the last close */
    FILE_LANE_SPACE, /* fallocate, ftruncate, extents */
    FILE_LANES
};

struct file_device;

struct file_thread {
    struct file_device *f;
    struct file_lane *lane;
    pthread_t id;
    struct file_bounce bounce;
};

struct file_lane {
    struct device_io_list queue;
    pthread_cond_t wake;
    unsigned nr_queued, nr_idle, nr_threads, max_threads;
    struct file_thread threads[FILE_IO_THREADS];
    bool ready; /* the condition variable exists */
};

struct file_ring;

/* device_io.driver_u32: what this driver remembers of a request. */
#define FILE_IO_BY_WRITING 1u /* WRITE_ZEROES done as a write of zeros */
#define FILE_IO_SYNCING    2u /* the write is done, it waits for its flush */
#define FILE_IO_SPACE      4u /* counted in nr_space */

struct file_device {
    struct device base;
    int fd;
    bool is_block;
    bool direct;
    enum device_file_way way;
    uint32_t offset_align, mem_align; /* O_DIRECT; 1 otherwise */
    uint64_t data_end; /* in the last sector, which zeros fill up; 0: no such sector */

    /* The loop's. */
    bool nowait; /* preadv2(RWF_NOWAIT) is answered here */
    /* Written buffered since the last writeback began: how much, and between where. */
    uint64_t dirty_bytes, dirty_begin, dirty_end;
    bool writeback_running;
    bool crowded;      /* the kernel would soon make writers wait */
    unsigned nr_space; /* requests of FILE_LANE_SPACE; they hold the inode's lock */
    struct file_bounce bounce;
    struct file_ring *ring;
    bool ring_refused;
    struct thin_log_limit log_limit;
    int wake_fd; /* eventfd of ring and threads; -1 before the first of them */
    struct thin_watch watch;
    void (*closed)(void *arg);
    void *closed_arg;
    bool closing;

    /* Direct writes of less than a disk block read, patch and write it: alone. */
    unsigned nr_writes;
    struct device_io *alone;
    struct device_io_list gated;
    bool pumping;

    /* Whoever runs the calls of FILE_LANE_SPACE: that thread, or the loop inline. */
    bool no_punch, no_zero_range, no_fiemap;

    /* Under `lock`, a leaf. */
    pthread_mutex_t lock;
    bool lock_ready;
    struct file_lane lanes[FILE_LANES];
    struct device_io_list done;
    int sync_error; /* a failed fdatasync: for ever, until the device is reopened */
    bool woken;     /* wake_fd has been written and not yet read */
    bool writeback_wanted, writeback_done;
    uint64_t writeback_begin, writeback_end; /* an empty range: only look */
    bool found_crowded;
    bool close_wanted, close_done;
    bool stop;
};

/* ---- device_file.c --------------------------------------------------------------- */

extern const struct device_ops file_ops;

/* A request has ended on the way it was sent. On the loop; may be inside submit. */
void file_ended(struct file_device *f, struct device_io *io, int result);

/* Sends it by the blocking way that is left: a lane, or inline if there is no thread. */
void file_send_lane(struct file_device *f, enum file_lane_id lane, struct device_io *io);

/* Starts watching wake_fd. 0, or -errno and nothing started. */
int file_wake_start(struct file_device *f);

void file_free(struct file_device *f);

/* ---- file_sync.c: these wait. Any thread, one request at a time ------------------------ */

/* Runs all but FLUSH; continues at driver_u64[0] bytes. `bounce` is the caller's. */
int file_run(struct file_device *f, struct device_io *io, struct file_bounce *bounce);

/* fdatasync with memory: once failed, it fails for ever. Takes `lock`. */
int file_flush(struct file_device *f);

bool file_is_aligned(const struct file_device *f, const struct device_io *io);

/* file_dirty.c: so many dirty pages that the kernel would soon make writers wait. */
bool file_dirty_crowded(void);

/* file_space.c */
int file_run_space(struct file_device *f, struct device_io *io,
                   struct file_bounce *bounce);
/* Writes zeros over the request's range. */
int file_write_zeros(struct file_device *f, const struct device_io *io,
                     struct file_bounce *bounce);

/*
 * A read that has moved io->driver_u64[0] bytes and finds no more: true if it has come to
 * the end inside the last sector. The rest of it is then zeros. Does not wait.
 */
bool file_pad_sector(const struct file_device *f, const struct device_io *io);

/* ---- file_lanes.c --------------------------------------------------------------------------- */

int file_lanes_init(struct file_device *f);
void file_lanes_fini(struct file_device *f); /* joins; nothing may be queued */

/* -EAGAIN: the lane has no thread and none can be started. */
int file_lane_push(struct file_device *f, enum file_lane_id lane, struct device_io *io);
/* Starts writeback of [begin, end), and of everything if the kernel is crowded. */
bool file_lane_start_writeback(struct file_device *f, uint64_t begin, uint64_t end);
bool file_lane_start_close(struct file_device *f);
bool file_lane_has_thread(struct file_device *f, enum file_lane_id lane);

/* ---- file_ring.c ----------------------------------------------------------------------------- */

/* 0, or -errno: io_uring is not to be had here. */
int file_ring_start(struct file_device *f);
void file_ring_stop(struct file_device *f);

/* False: not by this way (no ring, or a shape it does not take). */
bool file_ring_push(struct file_device *f, struct device_io *io);
void file_ring_reap(struct file_device *f);

#endif
