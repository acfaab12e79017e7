/*
 * The two devices of a pool on the way to an open pool: looked at, made if they are to
 * be, and opened. Files and block devices on the helper thread, NBD exports on the loop:
 *
 *   the metadata's UUID (not create) ─► exports opened ─► their heads read (create) ─►
 *   helper: files looked at, made, opened; signatures ─► done
 */
#ifndef THIN_SERVER_POOL_DEVICES_H
#define THIN_SERVER_POOL_DEVICES_H

#include "server/pools.h"

struct pool_devices {
    struct server_pool *sp; /* its paths and id; borrowed */
    bool make;              /* create: what is missing is made, what is there is empty */
    bool force;             /* create: or whatever it is */
    bool takeover;          /* also what another machine has marked as its own */
    uint64_t data_size, metadata_size; /* create: of files to be made; 0: not said */
    uint32_t block_size;               /* create */

    /* What `done` finds. */
    struct device *data, *metadata; /* NULL with a negative result */
    bool made_data, made_metadata;
    int result;
    struct thin_error err;

    /* The work's. */
    void (*done)(struct pool_devices *devices);
    struct blocking_job job;
    struct device_io io;
    struct iovec iov;
    char data_path[1024], metadata_path[1024]; /* for the helper */
    bool direct;
    void *data_head, *metadata_head; /* first bytes of exports */
    size_t data_head_len, metadata_head_len;
    bool identified; /* the UUID in the metadata was looked for */
    uint8_t uuid[16];
};

/* The first part is filled, the rest zero. `done` on a turn of its own. */
void pool_devices_open(struct pool_devices *devices,
                       void (*done)(struct pool_devices *devices));

/* After a failure further on: takes back the files that were made. Helper thread. */
void pool_devices_unmake(const struct pool_devices *devices);

/*
 * Overwrites the first metadata block of a closed pool with zeros, durably, and removes
 * the files that `create` made: result in `devices`.
 */
void pool_devices_wipe(struct pool_devices *devices,
                       void (*done)(struct pool_devices *devices));

#endif
