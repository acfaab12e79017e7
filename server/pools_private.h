/*
 * What pools*.c share: the registry, and one thing asked of a pool from the call to its
 * answer. Main loop only, but for the work of a blocking job, which sees nothing but `copy`
 * and its devices.
 */
#ifndef THIN_SERVER_POOLS_PRIVATE_H
#define THIN_SERVER_POOLS_PRIVATE_H

#include "server/blocking.h"
#include "server/pool_devices.h"
#include "server/pools.h"

TAILQ_HEAD(server_pool_list, server_pool);

struct pools {
    struct server *server;
    struct server_pool_list list; /* in order of names */
    unsigned nr;
    uint8_t host_id[16], boot_id[16];

    void (*settled)(void *arg);
    void *settled_arg;
    void (*stopped)(void *arg);
    void *stopped_arg;
    struct thin_task check_task; /* settled or stopped may have come true */
    struct thin_timer patience;  /* of `settled` with exports that do not answer */
    bool impatient;
    struct pools_watch *watch;
};

/* One thing asked of a pool, from the call to its `done`. */
struct pool_job {
    struct blocking_job job;
    struct pools *pools;
    struct server_pool *sp;
    struct pools_done done;
    enum { JOB_NEW, JOB_IMPORT, JOB_OPEN, JOB_STORE, JOB_FORGET, JOB_DESTROY } kind;
    bool reopens; /* its close is to be followed by an open */
    uint32_t catalogue_id;
    struct pool_import_volume *volumes; /* the pool's, as the engine takes them */

    struct pool_devices devices;
    struct server_pool copy; /* what the helper writes down */
    int result;
    struct thin_error err;
    struct thin_task task;
};

/* A pool in its place in the list, with the server's settings. NULL: no memory. */
struct server_pool *pools_add(struct pools *pools, const char *name);
void pools_drop(struct server_pool *sp);

/* NULL: no memory. */
struct pool_job *pool_job_create(struct pools *pools, struct server_pool *sp, int kind,
                                 struct pools_done done);
/* On a known pool that must be in one of two states. NULL: refused already. */
struct pool_job *pool_job_begin(struct pools *pools, const char *name, enum pools_state a,
                                enum pools_state b, int kind, struct pools_done done);
/* Answers on a turn of its own; `j` ends there. */
void pool_job_finish(struct pool_job *j, int result);
/* For mistakes found before there is a pool to speak of. */
void pool_job_refuse(struct pools *pools, struct pools_done done, int code,
                     const struct thin_error *err);

/* `work` on the helper thread, then `done` here. */
void pool_job_submit(struct pool_job *j, void (*work)(struct blocking_job *),
                     void (*done)(struct blocking_job *));
const char *pool_job_state_dir(const struct pool_job *j);
/* Work: writes down what is known of the pool. */
void pool_job_store(struct blocking_job *job);

void pool_job_open(struct pool_job *j);              /* pools_open.c */
void pool_job_close(struct pool_job *j, bool force); /* pools_close.c */

#endif
