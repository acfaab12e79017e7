/*
 * Changes of the pool by name, one after another (admin.c); what each kind does stands in
 * admin_volume.c, admin_snapshot.c, admin_delete.c and admin_pool.c, reading in
 * admin_list.c and exclusive.c. One thread: the pool's.
 *
 *    queued ─► room in the catalogue? ─► plan ─► encode ─► write pages ─► operation ─┐
 *                  (map, checkpoint)       ▲ another look was needed │               │
 *                                          └───────────────────────◄┘               │
 *    answered ◄─ durable ◄─ commit_join ◄─ after (quiesce) ◄─ memory follows ◄───────┘
 *
 * One that finds no metadata space, where the device can grow, is queued again, once, when
 * that has ended (admin_grown).
 *
 * From plan to operation a job has the catalogue for itself; the next one begins when the
 * operation was kept, while this one waits to be durable. A page whose operation failed is
 * dead room again: the root in memory has not moved.
 */
#ifndef THIN_CORE_POOL_ADMIN_PRIVATE_H
#define THIN_CORE_POOL_ADMIN_PRIVATE_H

#include "core/pool/catalogue_private.h"
#include "core/pool/limits.h"
#include "core/pool/origin.h"

#define ADMIN_QUEUE_MAX  1024u /* changes that wait; more are refused */
#define ADMIN_TRIES_MAX  8u    /* rounds of planning or finding room for one change */
#define ADMIN_LIST_MAX   256u  /* volumes in one answer of a list */
#define ADMIN_REFUSE_MAX 64u   /* refusals told in one turn */
#define DELETE_BUDGET    8u    /* nodes that one step of a delete enters */
#define VOLUME_BYTES_MAX (1ull << 56)

struct admin_job;

struct admin_kind {
    const char *name; /* of its operation, for step times */
    enum tm_purse purse;
    enum catalogue_growth growth;
    bool no_records;     /* touches no catalogue: no plan, no room */
    bool has_first_step; /* does more than it must, unless job->no_first_step */
    bool bare;       /* possible without a catalogue, where there is no room for one */
    bool makes_room; /* growth itself: does not wait for it */
    bool degraded;   /* also while the catalogue is damaged (with no_records) */
    /* Judges by what stands in memory and fills job->change; an empty change is no change,
       answered when all before it is durable. May be called again. */
    int (*plan)(struct admin_job *job, struct thin_error *err);
    /* In the operation; may be run again. May set job->again and fail: plan anew. */
    int (*apply)(struct admin_job *job, struct thin_error *err);
    /* The operation was kept and memory has followed, on the same turn. True: run the
       operation once more (steps of long work). */
    bool (*applied)(struct admin_job *job);
    /* True: something must be waited for; admin_job_commit goes on. */
    bool (*after)(struct admin_job *job);
    void (*fini)(struct admin_job *job);
};

struct admin_snap {
    char origin[THIN_NAME_MAX + 1], name[THIN_NAME_MAX + 1];
    uint32_t origin_id, dev_id;
    uint32_t snapshotted_time; /* of the origin, as the operation left it */
    struct quiesce quiesce;
    struct volume_core *core; /* held while it quiesces */
    struct admin_job *job;
    bool looked; /* learned_* tell what the operation found */
    uint32_t learned_time;
    uint64_t learned_txn;
};

struct admin_job {
    const struct admin_kind *kind;
    struct pool *pool;
    struct pool_done done; /* fn may be NULL */
    struct catalogue_change change;
    bool again;         /* the operation found that the plan must be another */
    bool looked;        /* learned_* tell what it found */
    bool ticks_first;   /* what it found changes with each write: time moves on anyway */
    bool bare;          /* without a catalogue: memory has followed already */
    bool compacted;     /* a checkpoint was made for its sake */
    bool no_first_step; /* of a delete: its tree makes trouble, or needs too much room */
    bool has_waited;    /* for the metadata device to grow */
    bool doomed;        /* a roll-back came between */
    unsigned tries;
    uint32_t learned_time;
    uint64_t learned_txn;

    /* Arguments, by kind. */
    char name[THIN_NAME_MAX + 1], other[THIN_NAME_MAX + 1];
    uint32_t dev_id;
    uint64_t value, value2;
    uint64_t reserve, quota;
    bool flag;
    enum volume_key key;
    char *origin, *origin_identity;
    uint64_t origin_size;
    struct pool_attachment *attachment;
    struct admin_snap *snaps;
    uint32_t nr_snaps, nr_quiescing;
    uint32_t *ids;
    uint32_t nr_ids;

    /* The runner's. */
    struct catalogue_io io;
    struct catalogue_mapping mapping;
    struct metaop op;
    struct commit_wait wait;
    struct thin_error err;
    TAILQ_ENTRY(admin_job) link;
};
TAILQ_HEAD(admin_job_list, admin_job);

enum admin_waiting { WAITS_FOR_NOTHING, WAITS_FOR_CHECKPOINT, WAITS_FOR_SETTLED };

/* Given back, one device after another (admin_delete.c). */
struct admin_background {
    bool running;
    uint64_t next_id; /* pending records below were looked at in this round */
    bool again;       /* something came meanwhile: another round */
    uint32_t dev_id;
    uint64_t size;    /* of the one that trims... */
    vblock_t highest; /* ...and where its mappings end */
    bool mapped;
    bool gone;
    uint32_t budget;                 /* nodes that the next step of a delete enters */
    uint32_t buried[POOL_GROUP_MAX]; /* devices that are gone, their records not yet */
    uint32_t nr_buried;
    bool
        empties; /* a volume that is being deleted: first of its mappings, little by little */
    struct metaop op;
    struct unmap unmap;
    struct thin_task task;
};

/* The shape of the answer to pool_volume_list. */
typedef void (*admin_list_fn)(void *arg, int result, const struct thin_error *err,
                              const struct volume_info *infos, uint32_t nr);

struct admin_refusal {
    struct pool_done done;
    admin_list_fn list; /* NULL: done.fn */
    int result;
    struct thin_error err;
};

struct admin {
    struct pool *pool;
    struct admin_job_list queue;
    struct admin_job_list growing; /* have no metadata space until the device has grown */
    unsigned nr_queued;            /* in both */
    struct admin_job *running;     /* has the catalogue for itself */
    enum admin_waiting waiting;
    bool checkpoint_written;      /* its end is to be made, before the next job */
    bool ending;                  /* it is being made */
    struct admin_job_list posted; /* wait for what follows the operation */
    unsigned nr_posted, nr_reads;
    struct admin_background background;
    struct thin_task pump_task;
    bool stopping;
    void (*stopped)(struct pool *pool);
    struct thin_task stopped_task;
    struct exclusive *exclusive;

    struct admin_refusal refusals[ADMIN_REFUSE_MAX];
    unsigned nr_refusals;
    struct thin_task refuse_task;
};

/* ---- admin.c ------------------------------------------------------------------------------- */

/* A job of that kind, or NULL after `done` was arranged to hear of it. */
struct admin_job *admin_job_create(struct pool *pool, const struct admin_kind *kind,
                                   struct pool_done done);
void admin_job_destroy(struct admin_job *job);
/* Queues it. The admin's own jobs have room beyond the limit. */
void admin_submit(struct admin_job *job, bool internal);
/* `done` is told `result` later, and the job, if there is one, is freed. */
void admin_refuse(struct pool *pool, struct admin_job *job, struct pool_done done,
                  int result, const struct thin_error *err);
void admin_refuse_list(struct pool *pool, admin_list_fn fn, void *arg, int result,
                       const struct thin_error *err);
void admin_job_commit(struct admin_job *job);
/* Something that keeps admin_stop waiting has ended. */
void admin_check_stopped(struct admin *admin);

/* ---- admin_help.c --------------------------------------------------------------------------- */

/* Copies a name argument and checks its alphabet. */
int admin_take_name(char ret[THIN_NAME_MAX + 1], const char *name,
                    struct thin_error *err);
/* The record, or -THIN_E_NOT_FOUND. */
int admin_find(struct pool *pool, const char *name, struct catalogue_record **ret,
               struct thin_error *err);
/* A copy of it, to be changed and put in the change. -ENOMEM. */
int admin_copy(const struct catalogue_record *record, struct catalogue_record **ret,
               struct thin_error *err);
/* Fills what the details of a device made by this job will be: guessed, or as learned. */
void admin_guess_details(struct admin_job *job, struct catalogue_record *record,
                         bool ticks);
/* In the operation, after the device was made: was the guess right? */
int admin_check_details(struct admin_job *job, uint32_t dev_id, struct thin_error *err);

/* ---- admin_delete.c ---------------------------------------------------------------------------- */

/* Looks for records that are deleting or trimming and works on them, in the background. */
void admin_background_kick(struct admin *admin);

/* ---- exclusive.c ---------------------------------------------------------------------------------- */

#define EXCLUSIVE_BLOCKS_MAX (1u << 26) /* data blocks: one byte of memory for each */

/*
 * Counts, for each volume, the data blocks that no other one maps: two walks over all
 * mappings in bounded steps, into record->exclusive. Not done again until the pool has
 * changed. While it walks the pool goes on: what changes meanwhile may be counted either
 * way. Damaged leaves are passed over. -THIN_E_LIMIT for a pool that is too large.
 */
void exclusive_count(struct pool *pool, struct pool_done done);
void exclusive_destroy(struct exclusive *ex);

#endif
