/*
 * What tells one block device from another, beyond its size: what stands behind it (the
 * file of a loop device, the UUID of a mapped or an array device, the disk's own id and
 * where the partition begins) and what it holds (type and UUID of its file system or
 * partition table, by libblkid). Numbers and names that change from boot to boot are not
 * in it, nor anything that a look would have to read the whole device for: another content
 * of the same size without a UUID, on the same disk, is not seen.
 *
 * Waits for the device: helper threads only.
 */
#ifndef THIN_SERVER_BLOCK_IDENTITY_H
#define THIN_SERVER_BLOCK_IDENTITY_H

#include <stddef.h>
#include <sys/stat.h>

#define BLOCK_IDENTITY_MAX 512u

/* One line without line feeds, empty if nothing is known; `path` and `st` of the device. */
void block_identity(const char *path, const struct stat *st,
                    char ret_text[BLOCK_IDENTITY_MAX]);

#endif
