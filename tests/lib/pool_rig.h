/*
 * Drives a pool in one thread for tests: waiting forms of its calls over a simulated
 * loop. A wait that finds nothing left to run ends the test with what it waited for.
 */
#ifndef THIN_TESTS_LIB_POOL_RIG_H
#define THIN_TESTS_LIB_POOL_RIG_H

#include "core/pool/pool.h"

struct pool_rig {
    struct thin_loop *loop;
    struct pool *pool;
    struct thin_error err; /* words of the last waiting call that failed */
    unsigned nr_events;
    char last_event[64];
};

/* Defaults for params: loop, devices, config, seed; the caller may change them. */
void rig_params(struct pool_rig *rig, struct pool_params *params, struct device *data,
                struct device *metadata);
int rig_open(struct pool_rig *rig, const struct pool_params *params);
int rig_close(struct pool_rig *rig, bool force);

int rig_create(struct pool_rig *rig, const char *name, uint64_t size);
int rig_snapshot(struct pool_rig *rig, const char *origin, const char *name);
int rig_delete(struct pool_rig *rig, const char *name);
int rig_commit(struct pool_rig *rig);
int rig_grow(struct pool_rig *rig, uint64_t data_bytes);
int rig_volume(struct pool_rig *rig, const char *name, struct volume **ret_volume);

/* A request that runs by itself until rig_io_wait. */
struct rig_io {
    struct volume_io io;
    struct iovec iov;
    struct pool_rig *rig;
    bool done;
    int result;
};
void rig_io_start(struct pool_rig *rig, struct volume *volume, struct rig_io *rio,
                  enum volume_op op, unsigned flags, uint64_t offset, void *buf,
                  uint64_t len);
int rig_io_wait(struct rig_io *rio);

int rig_io(struct pool_rig *rig, struct volume *volume, enum volume_op op, unsigned flags,
           uint64_t offset, void *buf, uint64_t len);
int rig_read(struct pool_rig *rig, struct volume *volume, uint64_t offset, void *buf,
             uint64_t len);
int rig_write(struct pool_rig *rig, struct volume *volume, uint64_t offset,
              const void *buf, uint64_t len);
int rig_flush(struct pool_rig *rig, struct volume *volume);

#endif
