/*
 * A device around another one, that fails as it is told. Everything on the loop.
 * Orders count requests from the moment they are given: nth 1 is the next one.
 */
#ifndef THIN_TESTS_LIB_DEVICE_FAULT_H
#define THIN_TESTS_LIB_DEVICE_FAULT_H

#include <stdint.h>

#include "core/device/device.h"

#define FAULT_OP(op)    (1u << (op))
#define FAULT_ALL_OPS   0xffu
#define FAULT_RULES_MAX 8u /* orders at a time */

enum fault_kind {
    FAULT_FAIL,        /* fails with `code`; the inner device never hears of it */
    FAULT_FAIL_AFTER,  /* done by the inner device, and then said to have failed */
    FAULT_TEAR,        /* WRITE: the first `arg` bytes are written, then `code` */
    FAULT_TEAR_SILENT, /* the same, and said to have worked */
    FAULT_CORRUPT,     /* READ: byte `arg` of the data is flipped */
    FAULT_DELAY,       /* starts `arg` nanoseconds late */
    FAULT_HOLD,        /* starts when device_fault_release is called */
};

/* Takes `inner`: closed with the wrapper. Aborts when out of memory. */
struct device *device_fault_open(struct device *inner);

/*
 * From the nth request of one of the ops in `op_mask` on, `times` requests (0: all)
 * meet with `kind`. Aborts beyond FAULT_RULES_MAX.
 */
void device_fault_order(struct device *dev, enum fault_kind kind, unsigned op_mask,
                        uint64_t nth, uint64_t times, int code, uint64_t arg);

/* Takes all orders back; what is held or delayed stays so. */
void device_fault_clear(struct device *dev);

/* Starts what is held, in the order it came. Returns how many. */
unsigned device_fault_release(struct device *dev);
unsigned device_fault_nr_held(struct device *dev);

/* Requests that met with an order; requests of one op that came at all. */
uint64_t device_fault_nr_met(struct device *dev);
uint64_t device_fault_nr_op(struct device *dev, enum device_op op);

#endif
