/*
 * thinsrv.conf as a checked struct. INI, read by inih line by line through a reader of
 * ours that counts lines and refuses those that inih would cut silently.
 * The file is documented in thinsrv.conf(5).
 */
#ifndef THIN_SERVER_CONFIG_H
#define THIN_SERVER_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/pool/pool.h"

#define CONFIG_LISTENERS_MAX 16u
#define CONFIG_DIRS_MAX      16u
#define CONFIG_LINE_MAX      190u /* bytes; inih cuts at 200 */
#define CONFIG_WORKERS_MAX   64u

enum config_nbd_tls {
    CONFIG_NBD_TLS_DEFAULT, /* required on TCP, off on unix sockets */
    CONFIG_NBD_TLS_OFF,
    CONFIG_NBD_TLS_ALLOWED,
    CONFIG_NBD_TLS_REQUIRED,
};

struct server_config {
    /* [server] */
    char *state_dir;
    unsigned workers; /* 0: as many as processors */
    enum thin_log_level log_level;
    char *user;
    char *device_dirs[CONFIG_DIRS_MAX];
    unsigned nr_device_dirs;
    char *origin_uris[CONFIG_DIRS_MAX];
    unsigned nr_origin_uris;
    unsigned spin_us;
    uint64_t payload_memory;     /* bytes lent to all connections together */
    uint64_t backup_interval_ms; /* between copies of a pool's metadata; 0: none */
    unsigned backup_keep;        /* copies of each kind */

    /* [listen] */
    char *listen_unix;
    char *listen_tls; /* HOST:PORT */

    /* [tls] */
    char *cert, *key, *ca, *crl;

    /* [nbd] */
    char *nbd_listen[CONFIG_LISTENERS_MAX]; /* unix:PATH or tcp:HOST:PORT */
    unsigned nr_nbd_listen;
    enum config_nbd_tls nbd_tls;
    char *nbd_default_export; /* POOL/VOLUME for the empty name; NULL: none */

    /* [metrics] */
    char *metrics_listen;

    /* [pool-defaults] */
    bool io_direct;
    uint32_t block_size; /* bytes */
    struct pool_config pool;
};

/*
 * Reads and checks `path`. -THIN_E_CONFIG with "FILE:LINE: ..." in words, -errno when
 * it cannot be read. On failure nothing is left to free.
 */
int config_read(const char *path, struct server_config *ret_config,
                struct thin_error *err);
void config_fini(struct server_config *config);

/* "PERCENT:STEP:LIMIT" ("80:10G:1T", "90:10%:200%"; "off"). -THIN_E_INVALID. */
int config_parse_auto_extend(const char *text, struct pool_auto_extend *ret,
                             struct thin_error *err);

/* Turns percent of `data_bytes` into bytes. A device that cannot grow keeps it, in vain. */
void config_resolve_auto_extend(struct pool_auto_extend *extend, uint64_t data_bytes);

#define CONFIG_POOL_KEYS                                                                \
    "commit_interval, commit_max_dirty, on_full, no_space_timeout, discards, zeroing, " \
    "auto_extend, extend_metadata and overcommit"

/*
 * One KEY=VALUE of `pool set` or [pool-defaults]: commit_interval, commit_max_dirty,
 * on_full, no_space_timeout, zeroing, discards, auto_extend, extend_metadata, overcommit.
 * -THIN_E_INVALID naming the key and what it takes; *ret_known false for another key.
 */
int config_parse_pool_key(struct pool_config *config, const char *key, const char *value,
                          bool *ret_known, struct thin_error *err);

#endif
