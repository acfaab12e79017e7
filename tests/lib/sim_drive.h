/*
 * Clients that work a pool with all it can do, all from one seed, and the comparison of
 * the pool with the model that they keep (sim_model). The devices are the caller's.
 *
 *   sim_init ─► sim_open ─► sim_work ... ─► sim_close | power cut, sim_abandon
 *                  ▲                                        │
 *                  └─────────── sim_open ◄──────────────────┘ ─► sim_verify
 *
 * A mistake of the pool ends the program with words that begin with the seed.
 */
#ifndef THIN_TESTS_LIB_SIM_DRIVE_H
#define THIN_TESTS_LIB_SIM_DRIVE_H

#include "core/base/log.h"
#include "core/base/random.h"
#include "core/pool/pool.h"
#include "tests/lib/recount.h"
#include "tests/lib/sim_loop.h"
#include "tests/lib/sim_model.h"

#define SIM_DEPTH     12u /* requests in flight */
#define SIM_MARKS     64u
#define SIM_STEPS_MAX 3000000u

/* How often what is done, drawn anew for each seed: some seeds do without some. */
struct sim_mix {
    unsigned read, look /* 0: never */, write, zeroes, discard, flush, prefetch,
        commit;       /* weights */
    unsigned whole;   /* of 100: requests in whole blocks */
    unsigned part;    /* of 100: requests that begin or end inside a sector */
    unsigned fua;     /* of 100 */
    unsigned origin;  /* of 100: new volumes over an external origin */
    unsigned changes; /* of 1000 turns */
    unsigned change[SIM_CHANGE_KINDS]; /* weights */
    unsigned grow, snap_metadata;      /* of 100 changes */
    unsigned hot;                      /* of 100: requests that go to one small place */
};

/* What a metadata block that went bad takes with it, by its place (sim_damage.c). */
enum sim_damage {
    SIM_WHOLE,        /* nothing has gone bad */
    SIM_BELOW_VOLUME, /* of the volumes that reach it those places: nothing else */
    SIM_IN_COUNTS,    /* of data: the blocks are neither allocated nor freed */
    SIM_BELOW_NAMES,  /* in the catalogue's own tree: nobody has his name */
    SIM_ABOVE_ALL,    /* anything may fail, nothing may be wrong */
    SIM_AT_ONCE,      /* the same, and opening meets it: no change at all */
    SIM_DAMAGES
};

struct sim_client {
    struct volume *volume;
    bool opening, fenced;
    bool lossy;    /* a roll-back may have taken what was acknowledged */
    bool reserved; /* all of it, for certain: no write of it may find no room */
    bool touched;  /* may meet the block that went bad */
    unsigned in_flight, reads;
};

struct sim {
    uint64_t seed;
    const char *label; /* for words: what is looked at; NULL: nothing special */
    uint64_t label_nr;
    struct thin_random rng;
    struct thin_loop *loop;
    struct sim_model model;
    struct sim_mix mix;
    struct sim_client clients[SIM_VOLUMES];

    struct pool *pool;
    struct pool_config config;
    bool call_ended, rolled_back, cut;
    bool closed_well; /* the last time: the incarnation must outlive it */
    bool has_lost;    /* rolled back since the last opening, not by a power cut */
    bool rolling;     /* a roll-back has begun, maybe not ended */
    bool in_doubt;    /* the pool said that counts are: the mark may be durable */
    enum sim_damage damage;
    bool faulty; /* the devices have failed, or may, since the pool was opened */
    int call_result;
    uint64_t incarnation;
    unsigned ops_in_flight, changes_in_flight;
    struct pool_pin *pin; /* a reader's view of the metadata; sim_pins.c */
    bool pinning, pin_lost;
    const void *pinned;                    /* its block 0 */
    const struct recount_source *metadata; /* of the disk, for the reader; NULL: none */
    uint64_t nr_pins, nr_pins_lost;
    uint64_t next_value, next_name;
    uint64_t hot_at;
    uint64_t data_size, data_size_max, metadata_size_max;
    uint64_t origin_size;       /* bytes of the external origin, which never changes */
    uint32_t origin_faults_ppm; /* openings and reads of it that fail */
    uint64_t origin_failed_ns;  /* 0: never */
    unsigned nr_origin_devices;
    struct { /* the last answer given while the pool said `change` */
        uint64_t change, at;
    } marks[SIM_MARKS];
    struct {
        bool known;
        uint64_t hash; /* of what it held after a roll-back */
    } rolled[SIM_VOLUMES];
    uint64_t hash; /* of all answers */
    uint64_t nr_ops, nr_changes, nr_rollbacks, nr_looks, nr_kept_incarnations;
};

_Noreturn void sim_die(const struct sim *sim, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Draws the mix. The loop is made and destroyed here. */
void sim_init(struct sim *sim, uint64_t seed);
void sim_fini(struct sim *sim);

/* ---- the pool ----------------------------------------------------------------------------- */

/* Begins; sim->call_ended when it is over, with sim->call_result. Takes the devices. */
void sim_open_begin(struct sim *sim, struct device *data, struct device *metadata,
                    bool format);
/* Steps until sim->call_ended. */
void sim_wait_call(struct sim *sim, const char *what);
/* After a successful open: limits, incarnation. */
void sim_opened(struct sim *sim);
/* Every request must end; `answer` also those of a pool in which faults are over. */
void sim_drain(struct sim *sim);
/* Closes by force: after a power cut, or in the middle of everything. */
void sim_abandon(struct sim *sim);
/* Closes as one should: 0, or the pool's word. What was answered is durable after 0. */
int sim_close(struct sim *sim);
/* What the pool says is durable is durable: before a power cut. */
void sim_heed_marks(struct sim *sim);

/* Compares names, sizes and contents, decides open changes, and fixes what was found. */
void sim_verify(struct sim *sim);
/* With damage: of volumes that may meet it, all that can be read. Fixes nothing. */
void sim_verify_damaged(struct sim *sim);
/* After a roll-back, while the pool serves on, reading: volumes without open changes. */
void sim_verify_rolled_back(struct sim *sim);
/* The same pool opened again without a power cut: they hold what they held then. */
void sim_verify_as_before(struct sim *sim);

/* A metadata block in use, and what it takes with it when it goes bad. */
struct sim_place {
    uint64_t block;
    enum sim_damage damage;
    uint32_t nr_devices; /* SIM_BELOW_VOLUME: that reach it */
    uint32_t devices[SIM_VOLUMES + 1];
};
#define SIM_PLACES 512u
/* Those that the superblock in block 0 reaches, the held root left out; their number. */
unsigned sim_places(const struct recount_source *source, struct sim_place *ret_places);

/* Recounts the metadata of a disk; a disk without a superblock is passed over. */
void sim_recount(struct sim *sim, const struct recount_source *source);

/* ---- clients (sim_clients.c, sim_changes.c) ------------------------------------------------- */

/* So many turns: a request, a change, an open, or a step of the loop. Ends early when
   the pool has rolled back, and after `steps` turns. */
void sim_work(struct sim *sim, uint64_t steps);

/* For the files behind this header. */
void sim_op_start(struct sim *sim, unsigned slot);
void sim_change_start(struct sim *sim);
/* Takes a view, or reads all that one reaches (recounting it) and lets go. */
void sim_pin_turn(struct sim *sim);
/* Before the pool is closed or given up. */
void sim_pin_end(struct sim *sim);
/* The external origin, as pool_params wants it; `arg` is the sim. (sim_origin.c) */
void sim_origin_open(void *arg, struct thin_loop *loop, const char *uri,
                     pool_origin_opened_fn opened, void *opened_arg);
/* True after it failed a short time ago, and is up again: the pool tries it anew. */
bool sim_origin_wait(struct sim *sim);
/* The pool is closed, so nobody may have it open. */
void sim_origin_closed(struct sim *sim);
void sim_client_open(struct sim *sim, unsigned slot);
void sim_client_close(struct sim *sim, unsigned slot);
/* Writes beyond this are not made: the smaller size while one changes. */
uint64_t sim_usable(const struct sim *sim, unsigned slot);
void sim_note(struct sim *sim, uint64_t what);
/* True if a request may fail so; ends the program otherwise. */
void sim_judge_error(struct sim *sim, int result, const char *what, unsigned slot);

#endif
