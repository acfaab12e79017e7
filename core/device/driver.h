/*
 * What those who write a driver or a wrapper need of device.c. Everything on the
 * device's loop.
 *
 * device.c checks a request before the driver sees it: shape, range, alignment,
 * rights. The driver runs it and says so with device_finish, as early as inside its
 * submit: `done` is called from a deferred task, all that ended in one turn together.
 * A successful GROW raises dev->size there, before `done`.
 */
#ifndef THIN_CORE_DEVICE_DRIVER_H
#define THIN_CORE_DEVICE_DRIVER_H

#include <stddef.h>

#include "core/base/log.h"
#include "core/device/device.h"

/* Fills what all devices share; the driver then sets size, limits and read_only. */
void device_init(struct device *dev, const struct device_ops *ops, struct thin_loop *loop,
                 const char *name);

/* The request has ended; `done` follows from a deferred task. */
void device_finish(struct device *dev, struct device_io *io, int result);

/*
 * The request has ended and `done` is called at once. Only from a callback of the loop
 * (a timer, a watch), never from inside submit. The device may be closed by it.
 */
void device_deliver(struct device *dev, struct device_io *io, int result);

/* A line in the log for a request that failed; a full file system or a refusal is an
   answer for the caller and says nothing here. */
void device_log_trouble(const struct device *dev, const struct device_io *io, int result,
                        struct thin_log_limit *limit);

/* Copies `len` bytes between `buf` and the request's pieces, from `skip` bytes on. */
void device_iov_to_buf(const struct device_io *io, uint64_t skip, void *buf, size_t len);
void device_iov_from_buf(const struct device_io *io, uint64_t skip, const void *buf,
                         size_t len);

/*
 * The request's pieces from `skip` bytes on, at most `max` of them. Returns how many
 * were written to `ret_iov`.
 */
unsigned device_iov_window(const struct device_io *io, uint64_t skip,
                           struct iovec *ret_iov, unsigned max);

/* Appends to the request's extents, joined with the last one if alike. False: full. */
bool device_extent_add(struct device_io *io, uint64_t len, enum device_extent_kind kind);

#endif
