/*
 * What stands on a device before we take it: known signatures, kind and size; and
 * making the files that `pool create` asks for. All of it waits: helper thread.
 */
#ifndef THIN_SERVER_PROBE_H
#define THIN_SERVER_PROBE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/base/error.h"

struct probe_file {
    bool exists;
    bool is_block; /* else a regular file */
    uint64_t size; /* bytes */
    dev_t dev;     /* with ino: the same thing under another name */
    ino_t ino;
};

/*
 * -THIN_E_INVALID for what is neither a regular file nor a block device; -errno. What
 * does not exist is fine if its folder does.
 */
int probe_path(const char *path, struct probe_file *ret, struct thin_error *err);

/*
 * -THIN_E_SIGNATURE with what was found: a file system, LVM, RAID, a partition table
 * (libblkid knows them), qcow2, a thin pool's superblock.
 */
int probe_signatures(const char *path, struct thin_error *err);

/* The same for what is not a file here: its first `len` bytes, of `size`. */
int probe_signatures_in(const char *name, const void *head, size_t len, uint64_t size,
                        struct thin_error *err);

/* The UUID in the pool's superblock; all zeros: none, or it cannot be read. */
void probe_uuid(const char *path, uint8_t ret_uuid[16]);
void probe_uuid_in(const void *block, uint8_t ret_uuid[16]);

/*
 * Makes a raw file of exactly `size` bytes, durable with its folder; `in_full`: every
 * byte gets its place. An empty file that is there already becomes it. -EEXIST (it is not
 * empty), -ENOSPC, ...; on failure all is as it was.
 */
int probe_make_file(const char *path, uint64_t size, bool in_full,
                    struct thin_error *err);

/*
 * -THIN_E_BUSY: another process holds the lock of the metadata there, or, unless
 * `takeover`, another machine has marked it as its own. `head`: the first block of an
 * export, which is no file; else NULL.
 */
int probe_owner(const char *path, const void *head, bool takeover,
                struct thin_error *err);

/* Overwrites the first metadata block with zeros, durably, under the pool's lock.
   -THIN_E_BUSY as probe_owner. */
int probe_wipe_superblock(const char *path, struct thin_error *err);

#endif
