/*
 * The pools that this server knows, by name: where their devices are, which of them are
 * open, and their life from create to destroy. Main loop only; what waits (probing,
 * creating and opening files) runs on the helper thread.
 *
 * Each pool is one file STATE_DIR/pools/NAME.conf, replaced atomically. A pool that was
 * open at the last stop or kill is opened again at start.
 */
#ifndef THIN_SERVER_POOLS_H
#define THIN_SERVER_POOLS_H

#include "core/pool/pool.h"
#include "server/server.h"
#include "server/stack.h"

#define POOLS_MAX         256u
#define POOLS_PATH_MAX    1024u
#define POOLS_VOLUMES_MAX 4096u /* that an import says something of */
#define POOLS_METADATA_MIN \
    (4u << 20) /* bytes of the smallest metadata that create makes */

enum pools_state { POOLS_CLOSED, POOLS_OPENING, POOLS_OPEN, POOLS_CLOSING, POOLS_FAILED };
const char *pools_state_name(enum pools_state state);

/* A device of an imported pool: what its administrator said of it. Kept here, since
   import writes nothing to the pool. */
struct server_pool_volume {
    uint32_t dev_id;
    uint64_t size; /* 0: not said */
    char name[THIN_NAME_MAX + 1];
};

/* One known pool. Read-only outside pools*.c. */
struct server_pool {
    char name[THIN_NAME_MAX + 1];
    enum pools_state state;
    struct pool *pool;              /* NULL unless POOLS_OPEN */
    char data_path[POOLS_PATH_MAX]; /* or the URI of an NBD export; likewise: */
    char metadata_path[POOLS_PATH_MAX];
    bool data_is_ours, metadata_is_ours; /* files that `create` made */
    bool want_open;                      /* at the next start */
    bool direct;
    struct pool_config config;
    struct server_pool_volume *volumes;
    uint32_t nr_volumes;
    struct backup *backup; /* NULL: none, or not open */
    struct thin_error why; /* why it is not open */
    char stack_id[STACK_ID_BYTES], stack_uuid[STACK_ID_BYTES]; /* see stack.h */
    LIST_HEAD(, stack_leg) legs;
    /* Those of its devices that are exports, while it is open; else NULL. */
    const struct device *data_export, *metadata_export;
    uint64_t retry_ms, retry_at_ns; /* pools_watch.c */
    struct pools *pools;
    TAILQ_ENTRY(server_pool) link;
};

struct pools_done { /* borrowed words; on the main loop, never inside the call */
    void (*fn)(void *arg, int result, const struct thin_error *err);
    void *arg;
};

struct pools_create_spec {
    const char *name, *data, *metadata; /* copied */
    uint64_t data_size,
        metadata_size;   /* 0: as the device is (metadata: a fitting size) */
    uint32_t block_size; /* bytes */
    struct pool_config config;
    bool force, takeover;
};

struct pools_import_spec {
    const char *name, *data, *metadata;
    uint32_t catalogue_id;
    const struct pool_import_volume *volumes; /* copied */
    uint32_t nr_volumes;
    bool takeover;
};

/* Reads the known pools; opens nothing. Waits: before the loops run. */
int pools_create_registry(struct server *server, struct pools **ret,
                          struct thin_error *err);
void pools_destroy_registry(struct pools *pools); /* all are closed */

/* Opens all that were open. `settled` when each is open or has failed. */
void pools_start(struct pools *pools, void (*settled)(void *arg), void *arg);
/* Nothing waits for room in any of them from here on. */
void pools_drain(struct pools *pools);
/* Closes all by force, keeping want_open. `stopped` when the last is closed. */
void pools_stop(struct pools *pools, void (*stopped)(void *arg), void *arg);

struct server *pools_server(struct pools *pools);
/* Its data or metadata is an NBD export, which may come and go. */
bool pools_stands_on_exports(const struct server_pool *sp);
struct server_pool *pools_find(struct pools *pools, const char *name);
/* In order of names; NULL starts. */
struct server_pool *pools_next(struct pools *pools, const struct server_pool *after);
/* The open pool, or NULL with words (-THIN_E_NOT_FOUND, -THIN_E_BUSY ...) in *ret_code. */
struct pool *pools_find_open(struct pools *pools, const char *name, int *ret_code,
                             struct thin_error *err);

void pools_new(struct pools *pools, const struct pools_create_spec *spec,
               struct pools_done done);
void pools_import(struct pools *pools, const struct pools_import_spec *spec,
                  struct pools_done done);
/* `takeover`: also if another machine has it, or died with it. */
void pools_open(struct pools *pools, const char *name, bool takeover,
                struct pools_done done);
void pools_close(struct pools *pools, const char *name, bool force,
                 struct pools_done done);
/* An open pool is closed by force, and opened again as soon as that is possible. */
void pools_reopen(struct pools *pools, struct server_pool *sp);
/* A closed pool leaves the list; its devices stay as they are. */
void pools_forget(struct pools *pools, const char *name, struct pools_done done);
/* Closes, wipes the superblock, removes the files that `create` made, forgets. */
void pools_destroy(struct pools *pools, const char *name, struct pools_done done);
/* Keeps the config (of an open pool: at once) and writes it down. */
void pools_set(struct pools *pools, const char *name, const struct pool_config *config,
               struct pools_done done);

#endif
