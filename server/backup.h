/*
 * Backups of the metadata of open pools: packed copies at intervals and before what is
 * risky, each over a pinned view and on a thread of its own, and the last superblocks as
 * they become durable. Files, names and rotation: backup_file.h.
 *
 *   backup_start ─► (copy "open") ─► interval ─► copy "regular" ─► interval ...
 *        │              ▲ backup_now: copy "grow", "handover", waited for
 *   backup_superblock ─► ring in memory ─► BACKUP_KEPT_MS later ─► file, flushed now and then
 *   backup_stop ─► (thread ends) ─► the ring is written out ─► stopped
 *
 * A copy that fails is logged and told as an event; it stops nothing else. Main loop only.
 */
#ifndef THIN_SERVER_BACKUP_H
#define THIN_SERVER_BACKUP_H

#include "core/pool/pool.h"
#include "server/server.h"

#define BACKUP_COPIES_MAX 2u     /* at work at the same time, of all pools */
#define BACKUP_NICE       10     /* of their threads, against the loop's 0 */
#define BACKUP_KEPT_MS    200u   /* from a superblock to its file */
#define BACKUP_FLUSH_MS   10000u /* at least between two flushes of that file */
#define BACKUP_KIND_MAX   16u    /* bytes, with the end */

struct backup;
struct server_pool;

/* The pool has just been opened; `anew`: just been made. NULL: no memory, and no backups,
   which is logged. `sp` lives until `stopped`. */
struct backup *backup_start(struct server *server, struct server_pool *sp, bool anew);

/* `block`: 4096 bytes that are durable as block 0 now. NULL as backup is fine here and
   with backup_now. */
void backup_superblock(struct backup *backup, const void *block);

/* A copy of the state as it is now; `done` on a turn of its own. With backups switched
   off, and for a copy that fails, it comes with a result as well. */
void backup_now(struct backup *backup, struct server *server, const char *kind,
                struct pool_done done);

/* The pool is closed. Frees the backup; `stopped` on a turn of its own. */
void backup_stop(struct backup *backup, void (*stopped)(void *arg), void *arg);

#endif
