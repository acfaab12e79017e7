/*
 * A device around another one, that records what is asked of it: each request with a
 * copy of its data, in the order of submission, with the order of completion. A prefix
 * can be replayed onto another device. The log outlives the device. Everything on the
 * loop; aborts when out of memory.
 */
#ifndef THIN_TESTS_LIB_DEVICE_LOG_H
#define THIN_TESTS_LIB_DEVICE_LOG_H

#include <stddef.h>
#include <stdint.h>

#include "core/device/device.h"

struct device_log_entry {
    enum device_op op;
    unsigned flags;
    unsigned source; /* its device: 0 is the one opened first on the log */
    uint64_t offset, len;
    char *data;             /* WRITE: a copy; NULL otherwise */
    size_t submitted_after; /* completions delivered before it was submitted */
    size_t completed_as;    /* its place among the completions, from 1; 0: not yet */
    int result;
};

struct device_log;

struct device_log *device_log_create(void);
void device_log_destroy(struct device_log *log);

/* Takes `inner`, borrows the log. Several devices may write to one log. */
struct device *device_log_open(struct device_log *log, struct device *inner);

size_t device_log_length(const struct device_log *log);
const struct device_log_entry *device_log_get(const struct device_log *log, size_t i);

/* Whether flush (or FUA write) `f` protects write `w`: w ended before f was submitted. */
bool device_log_covers(const struct device_log *log, size_t f, size_t w);

/*
 * Does entry `i` to `dev`, if it changes anything and has not failed. Waits. 0 or the
 * device's error.
 */
int device_log_replay_one(const struct device_log *log, size_t i, struct device *dev);
/* Entries [from, to). Goes forwards from a device that has [0, from). */
int device_log_replay(const struct device_log *log, size_t from, size_t to,
                      struct device *dev);

#endif
