/*
 * What a pool must hold, as far as its clients can know: volumes with their contents
 * (sim_extents), names, sizes and attachments, and the changes whose outcome is open.
 *
 * The model is moved by events and by nothing else, so that a run can be written down
 * and gone through again: the state after n events is what may stand on disks that stopped
 * there. Each event is a tick of its clock.
 *
 * After a stop, the reader of the pool decides what became of the open changes
 * (sim_model_judge), compares contents, and fixes what was found.
 */
#ifndef THIN_TESTS_LIB_SIM_MODEL_H
#define THIN_TESTS_LIB_SIM_MODEL_H

#include "tests/lib/sim_extents.h"

#define SIM_VOLUMES     8u
#define SIM_CHANGES     4u /* that may be open at a time */
#define SIM_GROUP       3u
#define SIM_NAME_BYTES  16u
#define SIM_SIZE_MAX    (6u * SIM_BLOCK)
#define SIM_SLOT_NONE   SIM_VOLUMES
#define SIM_CHANGE_NONE SIM_CHANGES

enum sim_change_kind {
    SIM_CREATE,
    SIM_SNAPSHOT,
    SIM_DELETE,
    SIM_RENAME,
    SIM_RESIZE,
    SIM_ROLLBACK,
    SIM_ATTACH,
    SIM_PROTECT,
    SIM_CHANGE_KINDS
};

struct sim_change {
    enum sim_change_kind kind;
    unsigned nr; /* volumes: more than one only in a group snapshot */
    unsigned slots[SIM_GROUP], origins[SIM_GROUP];
    char names[SIM_GROUP][SIM_NAME_BYTES]; /* new ones */
    uint64_t value;                        /* size, epoch, flag */
    uint64_t origin_size; /* bytes of the external origin of a new one; 0: it has none */
};

enum sim_outcome { SIM_DONE, SIM_REFUSED, SIM_UNKNOWN };

enum sim_event_kind {
    SIM_EV_WRITE,        /* slot, [begin, end), value: submitted */
    SIM_EV_WRITE_ENDED,  /* slot, [begin, end), id, ok, fua */
    SIM_EV_FLUSHED,      /* slot, id: of the flush's submission; prune */
    SIM_EV_STABLE,       /* id: what had ended then is durable, of all volumes */
    SIM_EV_CHANGE,       /* change: submitted */
    SIM_EV_CHANGE_ENDED, /* index, outcome */
    SIM_EV_TICK,         /* nothing but time: a flush or a read was submitted */
};

struct sim_event {
    enum sim_event_kind kind;
    unsigned slot, index;
    uint64_t begin, end, value, id;
    bool ok, fua, prune;
    enum sim_outcome outcome;
    struct sim_change change;
};

struct sim_state {
    bool there;
    char name[SIM_NAME_BYTES];
    uint64_t size, epoch;
    bool is_protected;
    bool over_origin; /* it, or what it was taken of, was made over an external origin */
};

struct sim_volume {
    struct sim_state now, next; /* next: while a change is open */
    struct sim_extents x, next_x;
    bool has_next_x;      /* the change replaces the contents */
    unsigned next_origin; /* whose writes go into next_x as well; SIM_SLOT_NONE */
    unsigned change;      /* the open one, or SIM_CHANGE_NONE */
    uint64_t flushed;     /* writes that had ended then are durable */
    uint64_t made;        /* of a snapshot: when it was answered */
    unsigned moment;      /* index in model->moments, or SIM_SLOT_NONE */
};

struct sim_model {
    uint64_t now;
    struct sim_volume volumes[SIM_VOLUMES];
    struct {
        bool open, unknown; /* unknown: answered, but nobody can know */
        uint64_t id;
        unsigned moment;
        struct sim_change c;
    } changes[SIM_CHANGES];
    struct sim_moment moments[SIM_VOLUMES];
    /* Told of each event before it is applied; may be NULL. */
    void (*listener)(void *arg, const struct sim_event *event);
    void *listener_arg;
};

/* Zeroed memory is a model without volumes, but for this. */
void sim_model_init(struct sim_model *m);
void sim_model_fini(struct sim_model *m);
/* `to` is an initialised model. Without the listener. */
void sim_model_copy(struct sim_model *to, const struct sim_model *from);

/* The time that the event got: the name of what was submitted. */
uint64_t sim_model_apply(struct sim_model *m, const struct sim_event *event);

/* One line on stdout. */
void sim_event_print(const struct sim_event *event, uint64_t time);

/* A place for one more open change, or SIM_CHANGE_NONE. */
unsigned sim_model_free_change(const struct sim_model *m);
/* True if an open change takes this volume's contents. */
bool sim_model_is_origin(const struct sim_model *m, unsigned slot);

/* What was read of an open change's volumes tells its outcome: fixes `next` or `now`. */
void sim_model_judge(struct sim_model *m, unsigned index, bool done);

/*
 * Compares what was read of a volume, all of it. `live`: read in a pool that has lost
 * nothing, a read submitted at `by`; else after a stop. The answer is in `why` if false.
 */
bool sim_model_compare(struct sim_model *m, unsigned slot, const unsigned char *bytes,
                       bool live, uint64_t by, char *why, unsigned why_bytes);
/* After a comparison: what was read is what stands there, and it is durable. */
void sim_model_fix(struct sim_model *m, unsigned slot, const unsigned char *bytes);
/* After a live comparison of all of a snapshot. */
void sim_model_seen(struct sim_model *m, unsigned slot, const unsigned char *bytes);

#endif
