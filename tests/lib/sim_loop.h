/*
 * A loop with a virtual clock, for tests. Deferred tasks run first come, first served;
 * when none is queued, time jumps to the soonest timer. Timers of the same instant fire
 * in an order drawn from the seed. Nothing here depends on an address or on real time:
 * the same seed gives the same run. Descriptors cannot be watched (-THIN_E_UNSUPPORTED).
 */
#ifndef THIN_TESTS_LIB_SIM_LOOP_H
#define THIN_TESTS_LIB_SIM_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/loop.h"

/* Aborts when out of memory. */
struct thin_loop *sim_loop_create(uint64_t seed);

/* What is still queued or armed is forgotten, not run. NULL is fine. */
void sim_loop_destroy(struct thin_loop *loop);

/* One task, or else one timer. False when nothing is queued or armed. */
bool sim_loop_step(struct thin_loop *loop);

/* Steps until nothing is left; aborts after `max_steps` (0: ten million). */
void sim_loop_run_until_idle(struct thin_loop *loop, uint64_t max_steps);

/* Steps until virtual time has passed `until_ns`, also when nothing is left. */
void sim_loop_run_until(struct thin_loop *loop, uint64_t until_ns);

/* Tasks and timers run so far. */
uint64_t sim_loop_steps(const struct thin_loop *loop);

/* A number that two equal runs have in common: all steps and their times, mixed. */
uint64_t sim_loop_trace(const struct thin_loop *loop);

/* Forgets all tasks and timers: the process "dies" here. */
void sim_loop_forget_all(struct thin_loop *loop);

#endif
