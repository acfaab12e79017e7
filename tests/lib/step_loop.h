/*
 * A loop around another one that measures each callback: how long one step holds the
 * thread, in its own processor time (what the scheduler gives to others meanwhile does
 * not count; what a hypervisor gives to others does), on the clock, and how many pages
 * it touched first.
 */
#ifndef THIN_TESTS_LIB_STEP_LOOP_H
#define THIN_TESTS_LIB_STEP_LOOP_H

#include "core/base/loop.h"

#define STEP_LOOP_LONG_MAX 8u /* callbacks that are told apart */

struct step_cost {
    uint64_t used_ns; /* processor time of the thread */
    uint64_t took_ns; /* on the clock */
    uint64_t faults;  /* pages touched for the first time, or anew */
    uint64_t io_ns;   /* of used_ns: what *io_ns grew by */
};

struct step_loop_stats {
    uint64_t nr_steps, nr_long; /* long: used more than `limit_ns` */
    uint64_t nr_own_long;       /* long even without io_ns */
    uint64_t used_ns;           /* all steps */
    struct step_cost longest;
    struct {
        const void *fn; /* the callback's address, or a word; NULL: no more */
        bool is_word;
        uint64_t nr;
        struct step_cost longest;
    } longs[STEP_LOOP_LONG_MAX];
};

/* Borrows `inner`, which can wait (poll_loop.h). Aborts when out of memory. */
struct thin_loop *step_loop_create(struct thin_loop *inner, uint64_t limit_ns);
/* A counter of the caller's: processor time that went into calls to the kernel. */
void step_loop_count_io(struct thin_loop *loop, const uint64_t *io_ns);
void step_loop_destroy(struct thin_loop *loop);
/* Since the last reset. */
void step_loop_get(struct thin_loop *loop, struct step_loop_stats *ret_stats);
void step_loop_reset(struct thin_loop *loop);
/* A call from outside the loop counts as a step between these two; `word` names it. */
struct step_cost step_loop_begin(struct thin_loop *loop);
void step_loop_end(struct thin_loop *loop, struct step_cost began, const char *word);

#endif
