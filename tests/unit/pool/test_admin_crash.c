/*
 * Rows of changes, power cut anywhere in them: what is found again is the state after
 * some number of them, and no answered one is missing. Also with failing requests.
 */
#include <errno.h>

#include "tests/unit/pool/admin_rig.h"

#define NR_SLOTS   40u
#define NR_OPS_MAX 24u

struct slot {
    bool there;
    uint64_t size, epoch;
    bool is_protected;
};

struct state {
    struct slot slots[NR_SLOTS];
};

static struct state states[NR_OPS_MAX + 1]; /* [k]: after k operations */
static int expected[NR_OPS_MAX];
static uint32_t nr_ops;      /* submitted in this round */
static uint32_t nr_answered; /* 1 + the last one answered with success */
static uint32_t nr_told;
static bool faults; /* results may be errors that the model does not know */

static void
slot_name(uint32_t slot, char name[32])
{
    snprintf(name, 32, "volume-%02u", slot);
}

static void
op_done(void *arg, int result, const struct thin_error *err)
{
    uint32_t op = (uint32_t)(uintptr_t)arg;

    nr_told++;
    if (result == 0) {
        ck_assert(faults || expected[op] == 0);
        if (op + 1 > nr_answered)
            nr_answered = op + 1;
    } else if (!faults && result != -THIN_E_ROLLED_BACK && result != -THIN_E_READ_ONLY &&
               result != -THIN_E_LOST && result != -THIN_E_SHUTDOWN &&
               result != -THIN_E_FAILED) {
        ck_assert_msg(result == expected[op], "%s instead of %s: %s",
                      thin_error_name(result), thin_error_name(expected[op]), err->text);
    }
}

/* One random change: submitted to the pool, and made in the model. */
static void
submit_one(void)
{
    struct state *now = &states[nr_ops + 1];
    uint32_t a = (uint32_t)random_below(&rig.rng, NR_SLOTS);
    uint32_t b = (uint32_t)random_below(&rig.rng, NR_SLOTS);
    struct slot *sa = &now->slots[a], *sb = &now->slots[b];
    struct pool_done done = {op_done, (void *)(uintptr_t)nr_ops};
    char name[32], other[32];
    const char *origins[1] = {name}, *names[1] = {other};
    int r = 0;

    *now = states[nr_ops];
    slot_name(a, name);
    slot_name(b, other);
    switch (random_below(&rig.rng, 8)) {
    case 0:
    case 1: {
        struct volume_spec spec = {.name = name,
                                   .size = 512 * (1 + random_below(&rig.rng, 5000))};

        pool_volume_create(rig.pool, &spec, done);
        if (sa->there)
            r = -THIN_E_EXISTS;
        else
            *sa = (struct slot){.there = true, .size = spec.size};
        break;
    }
    case 2:
        pool_volume_delete(rig.pool, name, done);
        if (!sa->there)
            r = -THIN_E_NOT_FOUND;
        else if (sa->is_protected)
            r = -THIN_E_BUSY;
        else
            memset(sa, 0, sizeof(*sa));
        break;
    case 3:
        pool_volume_rename(rig.pool, name, other, done);
        if (!sa->there) {
            r = -THIN_E_NOT_FOUND;
        } else if (a != b && sb->there) {
            r = -THIN_E_EXISTS;
        } else if (a != b) {
            *sb = *sa;
            memset(sa, 0, sizeof(*sa));
        }
        break;
    case 4: {
        uint64_t size = sa->size + 512 * (1 + random_below(&rig.rng, 100));

        pool_volume_resize(rig.pool, name, size, false, done);
        if (!sa->there)
            r = -THIN_E_NOT_FOUND;
        else
            sa->size = size;
        break;
    }
    case 5:
        pool_volume_snapshot(rig.pool, origins, names, 1, done);
        if (!sa->there)
            r = -THIN_E_NOT_FOUND;
        else if (sb->there)
            r = -THIN_E_EXISTS;
        else
            *sb = (struct slot){.there = true, .size = sa->size};
        break;
    case 6: {
        struct pool_attachment attachment = {.epoch = sa->epoch + 1,
                                             .session = random_u64(&rig.rng)};

        snprintf(attachment.holder, sizeof(attachment.holder), "cert:host-%u",
                 (unsigned)random_below(&rig.rng, 100));
        pool_volume_attach(rig.pool, name, &attachment, done);
        if (!sa->there)
            r = -THIN_E_NOT_FOUND;
        else
            sa->epoch++;
        break;
    }
    default:
        if (random_below(&rig.rng, 2)) {
            pool_volume_set(rig.pool, name, VOLUME_PROTECTED, 1, done);
            if (!sa->there)
                r = -THIN_E_NOT_FOUND;
            else
                sa->is_protected = true;
        } else {
            pool_volume_rollback(rig.pool, name, other, done);
            if (!sa->there || !sb->there) {
                r = -THIN_E_NOT_FOUND;
            } else if (a == b) {
                r = -THIN_E_INVALID;
            } else if (sa->is_protected) {
                r = -THIN_E_BUSY;
            } else {
                sa->size = sb->size;
                sa->epoch++;
            }
        }
        break;
    }
    expected[nr_ops++] = r;
}

static bool
state_stands(const struct state *state)
{
    struct volume_info info;
    char name[32];
    uint32_t nr = 0;

    for (uint32_t i = 0; i < NR_SLOTS; i++) {
        const struct slot *slot = &state->slots[i];

        slot_name(i, name);
        if (pool_volume_peek(rig.pool, name, &info) != slot->there)
            return false;
        if (!slot->there)
            continue;
        nr++;
        if (info.size != slot->size || info.attachment.epoch != slot->epoch ||
            info.is_protected != slot->is_protected || info.size_unknown)
            return false;
    }
    return rig.pool->catalogue->records.by_name.nr_items == nr;
}

/* The state that was found becomes the first of the next round. */
static void
find_state(uint32_t from, uint32_t to, int round)
{
    for (uint32_t k = to + 1; k-- > from;)
        if (state_stands(&states[k])) {
            states[0] = states[k];
            return;
        }
    ck_abort_msg("round %d: no state of %u to %u stands", round, from, to);
}

/* Some data, so that snapshots share and deletes have something to do. */
static void
write_some(void)
{
    struct volume_info info;

    if (!pool_volume_next(rig.pool, NULL, &info))
        return;
    for (uint64_t at = 0; at + 512 <= info.size && at < 8 * RIG_BLOCK; at += RIG_BLOCK)
        rig_fill(info.name, at, 512, (uint8_t)random_u64(&rig.rng));
}

static void
check_whole(void)
{
    struct recount re;

    rig_settle();
    ck_assert_ptr_null(catalogue_next_pending(&rig.pool->catalogue->records, 0));
    rig_close();
    rig_recount(&re);
    rig_open(false);
    ck_assert_uint_eq(re.nr_devices, rig.pool->catalogue->records.by_id.nr_items + 1);
}

static void
begin_round(void)
{
    nr_ops = nr_answered = nr_told = 0;
    for (uint64_t n = 1 + random_below(&rig.rng, NR_OPS_MAX); n > 0; n--)
        submit_one();
}

START_TEST(a_cut_leaves_a_prefix_with_all_that_was_answered)
{
    for (int round = 0; round < 250; round++) {
        uint64_t steps = random_below(&rig.rng, 60) * random_below(&rig.rng, 60);

        if (random_below(&rig.rng, 4) == 0)
            write_some();
        begin_round();
        for (uint64_t i = 0; i < steps; i++)
            if (!sim_loop_step(rig.loop))
                break;
        rig_cut();
        ck_assert_uint_eq(nr_told, nr_ops);
        rig_open(false);
        find_state(nr_answered, nr_ops, round);
        if (random_below(&rig.rng, 5) == 0)
            check_whole();
    }
    check_whole();
}
END_TEST

/* A cut while what the last one left is being worked on. */
START_TEST(a_second_cut_while_it_recovers_loses_nothing)
{
    for (int round = 0; round < 120; round++) {
        begin_round();
        rig_settle();
        ck_assert_uint_eq(nr_told, nr_ops);
        for (int cuts = 0; cuts < 4; cuts++) {
            rig_cut();
            rig_open(false);
            find_state(cuts ? 0 : nr_ops, cuts ? 0 : nr_ops, round);
            for (uint64_t i = random_below(&rig.rng, 200); i > 0; i--)
                if (!sim_loop_step(rig.loop))
                    break;
        }
    }
    check_whole();
}
END_TEST

/* Any request of the devices fails once: an error or none, and the pool is sound. */
START_TEST(a_failing_request_leaves_a_prefix_too)
{
    for (int round = 0; round < 150; round++) {
        struct crash_disk *disk = random_below(&rig.rng, 2) ? rig.data : rig.metadata;
        unsigned ops = 1u << DEVICE_READ | 1u << DEVICE_WRITE | 1u << DEVICE_FLUSH;

        faults = true;
        crash_disk_fail_nth(disk, ops, 1 + random_below(&rig.rng, 40), -EIO);
        begin_round();
        rig_settle();
        ck_assert_uint_eq(nr_told, nr_ops);
        crash_disk_fail_nth(disk, 0, 0, 0);
        faults = false;
        (void)rig_call(pool_close(rig.pool, true, RIG_DONE));
        sim_loop_run_until_idle(rig.loop, 0);
        rig_open(false);
        /* One that failed is left out, those behind it may stand: only the answered
           are certain. So the model begins anew from what is there. */
        memset(&states[0], 0, sizeof(states[0]));
        for (uint32_t i = 0; i < NR_SLOTS; i++) {
            struct volume_info info;
            char name[32];

            slot_name(i, name);
            if (!pool_volume_peek(rig.pool, name, &info))
                continue;
            states[0].slots[i] =
                (struct slot){true, info.size, info.attachment.epoch, info.is_protected};
        }
        if (random_below(&rig.rng, 4) == 0)
            check_whole();
    }
    check_whole();
}
END_TEST

static void
set_up(void)
{
    rig_init(300, 600);
    rig_open(true);
    memset(states, 0, sizeof(states));
    faults = false;
}

static void
tear_down(void)
{
    rig_fini();
}

int
main(void)
{
    Suite *suite = suite_create("admin under power cuts");
    TCase *tcase = tcase_create("crashes");
    SRunner *runner;
    int failed;

    /* Each cut says what it did to the pool; that is not news here. */
    thin_log_set_level(THIN_LOG_ERROR);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, a_cut_leaves_a_prefix_with_all_that_was_answered);
    tcase_add_test(tcase, a_second_cut_while_it_recovers_loses_nothing);
    tcase_add_test(tcase, a_failing_request_leaves_a_prefix_too);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
