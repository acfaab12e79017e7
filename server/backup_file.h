/*
 * The files of server/backup.h, below STATE_DIR/backups/POOL: packed copies of the
 * metadata (thinmeta unpack reads them), named TIME-KIND.pack, and the last superblocks
 * (core/offline/kept.h). All of it waits: helper thread, or a thread of its own.
 */
#ifndef THIN_SERVER_BACKUP_FILE_H
#define THIN_SERVER_BACKUP_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/base/name.h"
#include "core/offline/kept.h"
#include "core/offline/source.h"

#define BACKUP_FILES_MAX 65536u /* in one folder; beyond that nothing is tidied up */

/* Makes the folder of a pool if it must; its path in *ret_folder, to be freed. */
int backup_folder(const char *state_dir, const char *pool, char **ret_folder,
                  struct thin_error *err);

/*
 * Packs `src` to FOLDER/TIME-KIND.pack, durable with its folder when it returns, and then
 * removes the oldest of that kind beyond `keep`. On failure there is no new file.
 */
int backup_write_pack(const char *folder, const char *kind, uint64_t unix_s,
                      struct meta_source *src, unsigned keep, struct thin_error *err);

/*
 * Opens the file of superblocks of a metadata device, making it if it is missing, damaged
 * or (`anew`) of another pool. *ret_next: the sequence that comes next.
 */
int backup_open_kept(const char *folder, const char *metadata_path, bool anew,
                     int *ret_fd, uint64_t *ret_next, struct thin_error *err);
/* `slot` as kept_encode_slot made it. Not flushed. */
int backup_write_kept(int fd, uint64_t sequence, const uint8_t *slot,
                      struct thin_error *err);
int backup_flush_kept(int fd, struct thin_error *err);

#endif
