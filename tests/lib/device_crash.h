/*
 * A disk that lies as much as a disk may, for crash tests.
 *
 * Requests complete in any order, each after a random (virtual) time. A flush protects
 * exactly the writes whose completion had been delivered before it was submitted; FUA
 * writes are durable when done. When the power is cut, every other write, also one in
 * flight, is by itself kept, dropped or torn at any sector, whatever came after it. A
 * failed flush may lose what it covered, and the next one succeeds. A discard may do
 * nothing, zero, or leave rubbish. A buffer that changes while it is being written
 * stops the test.
 *
 * The disk outlives the devices that are opened on it, one at a time:
 *
 *   disk = crash_disk_create(&rng, size, NULL);
 *   dev = crash_disk_open(disk, loop);       ... run the loop ...
 *   crash_disk_cut(disk);                    dev is lost: every request on it fails
 *   device_close(dev, ...), run the loop
 *   dev = crash_disk_open(disk, loop);       what has survived
 *
 * Everything comes from `rng`; images are copy-on-write pages, so that a fork is cheap.
 * Functions here abort when out of memory.
 */
#ifndef THIN_TESTS_LIB_DEVICE_CRASH_H
#define THIN_TESTS_LIB_DEVICE_CRASH_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/loop.h"
#include "core/base/random.h"
#include "core/device/device.h"

enum crash_discard {
    CRASH_DISCARD_ANY, /* each time another */
    CRASH_DISCARD_NOTHING,
    CRASH_DISCARD_RUBBISH,
    CRASH_DISCARD_ZEROES
};

struct crash_params {
    uint32_t read_error_ppm; /* of a million requests */
    uint32_t
        write_error_ppm; /* also write zeroes; a failed write may have changed parts */
    uint32_t flush_error_ppm;                /* also FUA writes */
    uint64_t latency_min_ns, latency_max_ns; /* both 0: 10 us to 2 ms */
    enum crash_discard discard;              /* what a discard leaves */
    unsigned max_kept; /* unflushed writes held; older ones become durable. 0: 4096 */
};

struct crash_disk;

/* `params` may be NULL; borrows `rng` as long as the disk lives. Starts as all zeros. */
struct crash_disk *crash_disk_create(struct thin_random *rng, uint64_t size,
                                     const struct crash_params *params);
/* No device may be open on it, but for a lost one. NULL is fine. */
void crash_disk_destroy(struct crash_disk *disk);

/* May be changed at any time; faults end by setting the rates to 0. */
struct crash_params *crash_disk_params(struct crash_disk *disk);

/* The device owns nothing of the disk. The one before it must be closed or lost. */
struct device *crash_disk_open(struct crash_disk *disk, struct thin_loop *loop);

/* Power cut. An open device is lost; what was in flight fails with -THIN_E_LOST. */
void crash_disk_cut(struct crash_disk *disk);

/*
 * What the disk might be if power were cut now: a disk of its own, all of it durable.
 * `disk` goes on untouched.
 */
struct crash_disk *crash_disk_fork_cut(const struct crash_disk *disk,
                                       struct thin_random *rng);

/*
 * Fails the nth request (1: the next) of the ops in `op_mask` (1u << DEVICE_WRITE ...)
 * with `code`. One such order at a time; nth 0 takes it back.
 */
void crash_disk_fail_nth(struct crash_disk *disk, unsigned op_mask, uint64_t nth,
                         int code);
bool
crash_disk_failed(const struct crash_disk *disk); /* that order has been carried out */

/* Requests submitted so far, and those of one op. */
uint64_t crash_disk_nr_ios(const struct crash_disk *disk);
uint64_t crash_disk_nr_op(const struct crash_disk *disk, enum device_op op);
/* Completed writes that no flush protects yet. */
unsigned crash_disk_nr_kept(const struct crash_disk *disk);
uint64_t crash_disk_size(const struct crash_disk *disk);

/* What a read would give now; what is durable for certain. Any length, inside the size. */
void crash_disk_read(const struct crash_disk *disk, uint64_t offset, void *buf,
                     uint64_t len);
/* 4 KiB of what a read would give; NULL for a hole. Until the next change. */
const void *crash_disk_page(const struct crash_disk *disk, uint64_t index);
void crash_disk_read_durable(const struct crash_disk *disk, uint64_t offset, void *buf,
                             uint64_t len);
/* Makes it larger, durably. */
void crash_disk_grow(struct crash_disk *disk, uint64_t size);
/* From now on these 4 KiB cannot be read, until something is written there. */
void crash_disk_spoil(struct crash_disk *disk, uint64_t page);
/* Puts bytes there, durable, past every rule. Whole sectors. */
void crash_disk_write(struct crash_disk *disk, uint64_t offset, const void *buf,
                      uint64_t len);

#endif
