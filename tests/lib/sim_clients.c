/* Requests of the simulated clients. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "tests/lib/sim_drive.h"

#define HOT_BYTES  4096u
#define LONG_BYTES (40u * 512u)

enum op_kind {
    OP_READ,
    OP_LOOK,
    OP_WRITE,
    OP_ZEROES,
    OP_DISCARD,
    OP_FLUSH,
    OP_PREFETCH,
    OP_KINDS
};

struct op {
    struct volume_io io;
    struct iovec iov[3];
    struct sim *sim;
    unsigned slot;
    enum op_kind kind;
    uint64_t id, value;
    uint64_t begin, end;             /* of the request */
    uint64_t whole_begin, whole_end; /* of a discard: the blocks that it unmaps at once */
    bool changes;
    unsigned char *bytes;
};

/* ---- answers ------------------------------------------------------------------------------- */

static void
note_marks(struct sim *sim)
{
    struct pool_marks marks;

    if (sim->cut || sim->rolled_back || !sim->pool)
        return;
    pool_get_marks(sim->pool, &marks);
    if (marks.incarnation != sim->incarnation)
        return;
    sim->marks[marks.change % SIM_MARKS].change = marks.change;
    sim->marks[marks.change % SIM_MARKS].at = sim->model.now;
}

static void
read_done(struct op *op)
{
    struct sim *sim = op->sim;
    struct sim_volume *v = &sim->model.volumes[op->slot];
    struct sim_client *client = &sim->clients[op->slot];
    /* What ended while it was on its way may have been overlooked. */
    struct sim_look look = {.by = client->lossy ? min_u64(v->flushed, op->id) : op->id,
                            .made = v->made};
    char why[512];

    sim->nr_looks++;
    /* A volume whose size changed meanwhile: what is left of it. */
    if (op->end > v->x.size)
        return;
    if (!sim_extents_allow(&v->x, op->begin, op->end, op->bytes, &look, why, sizeof(why)))
        sim_die(sim, "volume %s reads wrong (submitted at %" PRIu64 "): %s", v->now.name,
                op->id, why);
    if (op->kind != OP_LOOK || client->lossy || op->begin > 0 || op->end < v->now.size ||
        op->id <= v->made)
        return;
    if (!sim_model_compare(&sim->model, op->slot, op->bytes, true, op->id, why,
                           sizeof(why)))
        sim_die(sim, "volume %s is wrong: %s", v->now.name, why);
    sim_model_seen(&sim->model, op->slot, op->bytes);
}

static void
part_done(struct op *op, uint64_t begin, uint64_t end, bool ok)
{
    struct sim_event ev = {.kind = SIM_EV_WRITE_ENDED,
                           .slot = op->slot,
                           .begin = begin,
                           .end = end,
                           .id = op->id,
                           .ok = ok,
                           .fua = op->io.flags & VOLUME_FUA};

    if (begin < end)
        sim_model_apply(&op->sim->model, &ev);
}

/*
 * A discard of a part of a block is remembered, and done when all of the block is gone:
 * what was there may stay or turn to zeros, until it is written again. So it is over an
 * external origin, which still shows where nothing was mapped; and where there was no
 * metadata to take shared blocks out.
 */
static void
change_done(struct op *op, bool ok)
{
    bool over_origin = op->sim->model.volumes[op->slot].now.over_origin;

    if (op->kind == OP_DISCARD && !over_origin && op->whole_begin < op->whole_end) {
        part_done(op, op->begin, op->whole_begin, false);
        part_done(op, op->whole_begin, op->whole_end, ok && !op->io.ret_kept);
        part_done(op, op->whole_end, op->end, false);
    } else {
        part_done(op, op->begin, op->end, ok && op->kind != OP_DISCARD);
    }
    if (ok)
        note_marks(op->sim);
}

static void
flush_done(struct op *op)
{
    struct sim *sim = op->sim;
    struct sim_event ev = {.kind = SIM_EV_FLUSHED,
                           .slot = op->slot,
                           .id = op->id,
                           .prune = sim->clients[op->slot].reads == 0};

    sim_model_apply(&sim->model, &ev);
}

static void
op_done(struct volume_io *io, int result)
{
    struct op *op = container_of(io, struct op, io);
    struct sim *sim = op->sim;
    struct sim_client *client = &sim->clients[op->slot];

    sim->ops_in_flight--;
    client->in_flight--;
    if (op->kind == OP_READ || op->kind == OP_LOOK)
        client->reads--;
    sim->nr_ops++;
    sim_note(sim, op->id << 16 ^ (uint64_t)(int64_t)result);
    if (result == -THIN_E_ROLLED_BACK && !sim->cut)
        client->fenced = client->lossy = true;
    if (result < 0)
        sim_judge_error(sim, result, "a request", op->slot);
    if (sim->damage == SIM_IN_COUNTS && op->kind <= OP_LOOK &&
        (result == -THIN_E_CHECKSUM || result == -THIN_E_BAD_BLOCK || result == -EIO))
        sim_die(sim, "counts have gone bad, and volume %s does not read: %s",
                sim->model.volumes[op->slot].now.name, thin_error_name(result));
    if (op->changes)
        change_done(op, result == 0);
    else if (result == 0 && op->kind == OP_FLUSH)
        flush_done(op);
    else if (result == 0 && op->bytes)
        read_done(op);
    free(op->bytes);
    free(op);
}

/* ---- requests ------------------------------------------------------------------------------- */

static enum op_kind
draw_kind(struct sim *sim)
{
    const struct sim_mix *x = &sim->mix;
    const unsigned weights[OP_KINDS] = {
        [OP_READ] = x->read,         [OP_LOOK] = x->look,       [OP_WRITE] = x->write,
        [OP_ZEROES] = x->zeroes,     [OP_DISCARD] = x->discard, [OP_FLUSH] = x->flush,
        [OP_PREFETCH] = x->prefetch,
    };
    unsigned sum = 0, kind = 0;
    uint64_t dice;

    for (unsigned i = 0; i < OP_KINDS; i++)
        sum += weights[i];
    dice = random_below(&sim->rng, sum);
    while (dice >= weights[kind])
        dice -= weights[kind++];
    return (enum op_kind)kind;
}

static uint64_t
draw_inside(struct sim *sim, uint64_t size)
{
    if (random_below(&sim->rng, 100) < sim->mix.hot && size > HOT_BYTES)
        return min_u64(sim->hot_at, size - HOT_BYTES) +
               random_below(&sim->rng, HOT_BYTES);
    return random_below(&sim->rng, size);
}

static void
draw_range(struct sim *sim, struct op *op, uint64_t size)
{
    uint64_t len;

    if (op->kind == OP_LOOK) {
        op->end = size;
        return;
    }
    if (random_below(&sim->rng, 100) < sim->mix.whole || op->kind == OP_DISCARD) {
        op->begin = random_below(&sim->rng, div_up_u64(size, SIM_BLOCK)) * SIM_BLOCK;
        len =
            (1 + random_below(&sim->rng, random_below(&sim->rng, 4) ? 1 : 3)) * SIM_BLOCK;
        /* Parts of blocks, large ones, so that they add up. */
        if (op->kind == OP_DISCARD && random_below(&sim->rng, 3) == 0) {
            op->begin += SIM_BLOCK / 4 * random_below(&sim->rng, 4);
            len = SIM_BLOCK / 4 * (1 + random_below(&sim->rng, 6));
            if (random_below(&sim->rng, 4) == 0)
                op->begin += 512 * random_below(&sim->rng, 3);
        }
    } else {
        op->begin = draw_inside(sim, size);
        len = random_below(&sim->rng, 4) ? 1 + random_below(&sim->rng, 4096)
                                         : 1 + random_below(&sim->rng, LONG_BYTES);
        if (random_below(&sim->rng, 100) < sim->mix.part) {
            op->begin = round_down_u64(op->begin, 8);
            len = round_up_u64(len, 8);
        } else {
            op->begin = round_down_u64(op->begin, SECTOR_SIZE);
            len = round_up_u64(len, SECTOR_SIZE);
        }
    }
    op->begin = min_u64(op->begin, size);
    op->end = min_u64(op->begin + len, size);
}

static bool
room_for(const struct sim *sim, unsigned slot, uint64_t begin, uint64_t end)
{
    if (!sim_extents_have_room(&sim->model.volumes[slot].x, begin, end))
        return false;
    for (unsigned i = 0; i < SIM_VOLUMES; i++)
        if (sim->model.volumes[i].next_origin == slot &&
            !sim_extents_have_room(&sim->model.volumes[i].next_x, begin, end))
            return false;
    return true;
}

static bool
op_changes(const struct op *op)
{
    return op->kind == OP_WRITE || op->kind == OP_ZEROES || op->kind == OP_DISCARD;
}

static void
find_whole_blocks(const struct sim *sim, struct op *op)
{
    op->whole_begin = round_up_u64(op->begin, SIM_BLOCK);
    op->whole_end = op->end;
    if (op->end != sim->model.volumes[op->slot].now.size)
        op->whole_end = round_down_u64(op->end, SIM_BLOCK);
}

static void
buffers(struct sim *sim, struct op *op)
{
    uint64_t len = op->end - op->begin, cut_at = random_below(&sim->rng, len);

    op->bytes = malloc(len);
    THIN_ASSERT(op->bytes);
    /* In pieces, not always cut at a sector. */
    op->iov[0].iov_base = op->bytes;
    op->iov[0].iov_len = cut_at;
    op->iov[1].iov_base = op->bytes + cut_at;
    op->iov[1].iov_len = len - cut_at;
    op->io.iov = op->iov;
    op->io.nr_iov = 2;
}

static void
begin_change(struct sim *sim, struct op *op)
{
    struct sim_event ev = {
        .kind = SIM_EV_WRITE, .slot = op->slot, .begin = op->begin, .end = op->end};

    op->changes = true;
    find_whole_blocks(sim, op);
    if (op->kind == OP_WRITE) {
        op->value = ++sim->next_value;
        sim_fill(op->bytes, op->begin, op->end - op->begin, op->value);
    }
    ev.value = op->value;
    op->id = sim_model_apply(&sim->model, &ev);
    if (op->kind != OP_DISCARD && random_below(&sim->rng, 100) < sim->mix.fua)
        op->io.flags |= VOLUME_FUA;
    if (op->kind == OP_ZEROES && random_below(&sim->rng, 3) == 0)
        op->io.flags |= VOLUME_NO_HOLE;
}

void
sim_op_start(struct sim *sim, unsigned slot)
{
    static const enum volume_op ops[OP_KINDS] = {
        [OP_READ] = VOLUME_READ,         [OP_LOOK] = VOLUME_READ,
        [OP_WRITE] = VOLUME_WRITE,       [OP_ZEROES] = VOLUME_WRITE_ZEROES,
        [OP_DISCARD] = VOLUME_DISCARD,   [OP_FLUSH] = VOLUME_FLUSH,
        [OP_PREFETCH] = VOLUME_PREFETCH,
    };
    struct sim_client *client = &sim->clients[slot];
    uint64_t size = sim_usable(sim, slot);
    struct op *op = calloc(1, sizeof(*op));

    THIN_ASSERT(op);
    op->sim = sim;
    op->slot = slot;
    op->kind = draw_kind(sim);
    /* All of a volume is worth a look when it is a snapshot: soon after it was made and
       then again, since it must stay as it was seen. */
    if (op->kind == OP_LOOK && sim->model.volumes[slot].moment == SIM_SLOT_NONE &&
        random_below(&sim->rng, 4))
        op->kind = OP_READ;
    else if (sim->mix.look && sim->model.volumes[slot].moment != SIM_SLOT_NONE &&
             random_below(&sim->rng, 5) == 0)
        op->kind = OP_LOOK;
    /* How a discard ends at the volume's end depends on where that is. */
    if (op->kind == OP_DISCARD && sim->model.volumes[slot].change != SIM_CHANGE_NONE)
        op->kind = OP_READ;
    if (op->kind != OP_FLUSH)
        draw_range(sim, op, size);
    if (op->kind != OP_FLUSH && op->begin == op->end)
        op->kind = OP_FLUSH;
    if (op_changes(op) && !room_for(sim, slot, op->begin, op->end)) {
        op->kind = OP_FLUSH;
        op->begin = op->end = 0;
    }
    op->io.op = ops[op->kind];
    op->io.offset = op->begin;
    op->io.len = op->end - op->begin;
    op->io.done = op_done;
    if (op->kind == OP_READ || op->kind == OP_LOOK || op->kind == OP_WRITE)
        buffers(sim, op);
    if (op->kind == OP_READ || op->kind == OP_LOOK)
        client->reads++;
    if (op_changes(op))
        begin_change(sim, op);
    else
        op->id = sim_model_apply(&sim->model, &(struct sim_event){.kind = SIM_EV_TICK});
    sim->ops_in_flight++;
    client->in_flight++;
    volume_submit(client->volume, &op->io);
}
