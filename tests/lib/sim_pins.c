/*
 * A reader of the metadata beside the clients: he pins the durable state, and some time
 * later reads all that it reaches, which must be as whole as on the day it was pinned.
 */
#include <string.h>

#include "tests/lib/sim_drive.h"

/* The disk as it is now, under the block 0 of then. */
static const void *
pinned_page(void *arg, uint64_t index)
{
    struct sim *sim = arg;

    return index == 0 ? sim->pinned : sim->metadata->page(sim->metadata->arg, index);
}

static void
pinned(void *arg, const void *superblock, int result, const struct thin_error *err)
{
    struct sim *sim = arg;

    (void)err;
    sim->pinning = false;
    sim_note(sim, (uint64_t)(int64_t)result ^ 0x77);
    sim->pinned = superblock;
    if (result < 0)
        sim->pin = NULL;
}

static void
lost(void *arg, int why)
{
    struct sim *sim = arg;

    sim_note(sim, (uint64_t)(int64_t)why ^ 0x78);
    sim->pin_lost = true;
}

static void
read_all(struct sim *sim)
{
    const struct recount_source source = {
        .page = pinned_page, .arg = sim, .size = sim->metadata->size};
    struct recount rc;

    if (recount_pages(&source, NULL, &rc) < 0)
        sim_die(sim, "a pinned view is no longer whole: %s", rc.why);
    sim->nr_pins++;
}

void
sim_pin_turn(struct sim *sim)
{
    struct pool_pin *pin = sim->pin;

    if (sim->pinning)
        return;
    if (!pin) {
        sim->pin_lost = false;
        sim->pinning = pool_pin(sim->pool, pinned, lost, sim, &sim->pin, NULL) == 0;
        if (!sim->pinning)
            sim->pin = NULL;
        return;
    }
    /* What faulty devices show need not be what stands there. */
    if (sim->pin_lost)
        sim->nr_pins_lost++;
    else if (!sim->faulty && !sim->cut)
        read_all(sim);
    sim->pin = NULL;
    pool_unpin(pin);
}

void
sim_pin_end(struct sim *sim)
{
    struct pool_pin *pin;

    while (sim->pinning)
        if (!sim_loop_step(sim->loop))
            sim_die(sim, "pinning has no end");
    pin = sim->pin;
    sim->pin = NULL;
    pool_unpin(pin);
}
