/*
 * Superblocks kept outside of the pool: a file with the last KEPT_MAX that were written,
 * for a repair of metadata whose own is lost or leads to damage. What they reach has
 * mostly not been used again.
 *
 *      head       4096 bytes: magic "thinkept", version 1, CRC-32C of the rest, and from
 *                 byte 64 on the path of the metadata device, ended by a zero
 *      slot i     512 bytes: magic, sequence, Unix seconds, CRC-32C of the superblock,
 *                 CRC-32C of the 32 bytes before; then the superblock. A superblock goes
 *                 to slot (sequence mod KEPT_MAX)
 *
 * A slot that was torn is passed over. Little-endian.
 */
#ifndef THIN_CORE_OFFLINE_KEPT_H
#define THIN_CORE_OFFLINE_KEPT_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/ondisk/block.h"

#define KEPT_MAX        16u
#define KEPT_HEAD_BYTES 4096u
#define KEPT_SLOT_BYTES (512u + METADATA_BLOCK_SIZE)
#define KEPT_PATH_MAX   1024u /* with its end */
#define KEPT_FILE_NAME  "superblocks"
#define KEPT_FOLDERS    256u /* looked through by kept_find */

void kept_encode_head(const char *metadata_path, uint8_t head[KEPT_HEAD_BYTES]);
void kept_encode_slot(uint64_t sequence, uint64_t unix_s, const void *superblock,
                      uint8_t slot[KEPT_SLOT_BYTES]);
/* Where the slot of that sequence stands in the file. */
uint64_t kept_slot_offset(uint64_t sequence);

struct kept_superblock {
    uint64_t sequence, unix_s;
    uint8_t block[METADATA_BLOCK_SIZE]; /* its checks have passed */
};

struct kept {
    char path[KEPT_PATH_MAX];    /* of the metadata device */
    struct kept_superblock *all; /* newest first */
    unsigned nr;
};

/* -THIN_E_INVALID for what is no such file, -errno, -ENOMEM; no slot needs to be good. */
int kept_read(const char *file, struct kept *ret, struct thin_error *err);
void kept_fini(struct kept *kept);

/*
 * Looks through FOLDER/(any)/superblocks for the file of the metadata device at `path`.
 * 0 with its path, or -THIN_E_NOT_FOUND. The words of a file that is none are dropped.
 */
int kept_find(const char *folder, const char *path, char *ret_file, size_t room);

#endif
