/*
 * Random steps on several trees, two levels as in a pool, against a plain model: every
 * undone pass leaves the state as it was, every answer is the model's, and after each
 * commit a full recount of the image finds all counts right. More than 10^5 steps in all,
 * 10^6 with THIN_TEST_LONG.
 */
#include "tests/unit/persist/persist_rig.h"

#define DEVICES    6u
#define KEYS       700u
#define LONG_TIMES 8u /* all variants together: more than a million steps */

struct model {
    bool exists;
    uint32_t nr;
    uint64_t value[KEYS]; /* 0: not mapped (block numbers are stored plus one) */
};

static struct model model[DEVICES];
static struct rig *rig;
static struct thin_random rng;
static uint64_t key_scale;  /* keys are spread by this */
static uint64_t nr_refused; /* for want of metadata space */

/* The metadata is too small for everything: what needs more of it may be refused, what
   gives it back may not. */
static bool
is_refused(int r)
{
    nr_refused += r == -THIN_E_NO_METADATA_SPACE;
    return r == -THIN_E_NO_METADATA_SPACE;
}

struct step {
    uint32_t id, other;
    uint64_t key, end;
    uint64_t value, ret_key, ret_end, removed;
    uint32_t budget;
    bool found;
};

static uint64_t
pack(uint64_t value)
{
    return mapping_pack(value - 1, 0);
}

/* ---- operations ------------------------------------------------------------------------ */

static int
op_create(struct rig *r_, void *arg, struct thin_error *err)
{
    struct step *s = arg;
    mblock_t root = 0;
    int r = btree_create(&r_->map, &root, err);

    return r < 0 ? r : rig_put_root(r_, s->id, root, err);
}

static int
op_clone(struct rig *r_, void *arg, struct thin_error *err)
{
    struct step *s = arg;
    mblock_t root = 0;
    int r = rig_touch_root(r_, s->other, &root, err);

    if (r == 0)
        r = btree_clone(&r_->map, root, err);
    return r < 0 ? r : rig_put_root(r_, s->id, root, err);
}

static int
op_insert(struct rig *r_, void *arg, struct thin_error *err)
{
    struct step *s = arg;
    uint8_t value[8];
    dblock_t b = 0;
    mblock_t root = 0;
    int r = rig_touch_root(r_, s->id, &root, err);

    if (r == 0)
        r = rig_take_data(r_, &b, err);
    if (r < 0)
        return r;
    s->value = b + 1;
    store_le64(value, pack(s->value));
    r = btree_insert(&r_->map, root, s->key * key_scale, value, &root, &s->found, err);
    return r < 0 ? r : rig_put_root(r_, s->id, root, err);
}

static int
op_remove(struct rig *r_, void *arg, struct thin_error *err)
{
    struct step *s = arg;
    mblock_t root = 0;
    int r = rig_touch_root(r_, s->id, &root, err);

    if (r == 0)
        r = btree_remove(&r_->map, root, s->key * key_scale, &root, &s->found, err);
    return r < 0 ? r : rig_put_root(r_, s->id, root, err);
}

static int
op_trim(struct rig *r_, void *arg, struct thin_error *err)
{
    struct step *s = arg;
    mblock_t root = 0;
    int r = rig_touch_root(r_, s->id, &root, err);

    if (r == 0)
        r = btree_trim(&r_->map, root, s->key, s->end, s->budget, &root, &s->removed,
                       &s->ret_end, err);
    return r < 0 ? r : rig_put_root(r_, s->id, root, err);
}

static int
op_delete(struct rig *r_, void *arg, struct thin_error *err)
{
    struct step *s = arg;
    mblock_t root = 0;
    bool removed;
    int r = rig_touch_root(r_, s->id, &root, err);

    if (r == 0)
        r = btree_delete(&r_->map, root, err);
    if (r == 0)
        r = btree_remove(&r_->top, r_->top_root, s->id, &r_->top_root, &removed, err);
    return r;
}

static int
op_lookup(struct rig *r_, void *arg, struct thin_error *err)
{
    struct step *s = arg;
    uint8_t value[8];
    mblock_t root = 0;
    bool found;
    int r = rig_get_root(r_, s->id, &root, &found, err);

    if (r == 0)
        r = btree_lookup(&r_->map, root, s->key, value, &s->found, err);
    if (r == 0 && s->found)
        s->value = load_le64(value);
    return r;
}

static int
op_lookup_next(struct rig *r_, void *arg, struct thin_error *err)
{
    struct step *s = arg;
    uint8_t value[8];
    mblock_t root = 0;
    bool found;
    int r = rig_get_root(r_, s->id, &root, &found, err);

    if (r == 0)
        r = btree_lookup_next(&r_->map, root, s->key, &s->ret_key, value, &s->found, err);
    if (r == 0 && s->found)
        s->value = load_le64(value);
    return r;
}

static int
op_highest(struct rig *r_, void *arg, struct thin_error *err)
{
    struct step *s = arg;
    mblock_t root = 0;
    bool found;
    int r = rig_get_root(r_, s->id, &root, &found, err);

    return r < 0 ? r : btree_highest(&r_->map, root, &s->ret_key, &s->found, err);
}

static struct btree_entry64 entries[252];
static uint32_t nr_entries;

static int
op_read_leaf(struct rig *r_, void *arg, struct thin_error *err)
{
    struct step *s = arg;
    mblock_t root = 0;
    bool found;
    int r = rig_get_root(r_, s->id, &root, &found, err);

    return r < 0 ? r
                 : btree_read_leaf(&r_->map, root, s->key, entries, 252, &nr_entries,
                                   &s->ret_key, &s->ret_end, err);
}

/* ---- against the model ----------------------------------------------------------------------- */

static uint64_t
model_at(uint32_t id, uint64_t key)
{
    if (key % key_scale || key / key_scale >= KEYS)
        return 0;
    return model[id].value[key / key_scale];
}

/* The first mapped key at or after `key`, or UINT64_MAX. */
static uint64_t
model_next(uint32_t id, uint64_t key)
{
    for (uint64_t i = (key + key_scale - 1) / key_scale; i < KEYS; i++)
        if (model[id].value[i])
            return i * key_scale;
    return UINT64_MAX;
}

static void
check_lookup(uint32_t id, uint64_t key)
{
    struct step s = {.id = id, .key = key};

    rig_ok(rig, rig_read(rig, op_lookup, &s));
    want_eq(s.found, model_at(id, key) != 0);
    if (s.found)
        want_eq(s.value, pack(model_at(id, key)));
}

static void
check_next(uint32_t id, uint64_t key)
{
    struct step s = {.id = id, .key = key};
    uint64_t want = model_next(id, key);

    rig_ok(rig, rig_read(rig, op_lookup_next, &s));
    want_eq(s.found, want != UINT64_MAX);
    if (s.found) {
        want_eq(s.ret_key, want);
        want_eq(s.value, pack(model_at(id, want)));
    }
}

static void
check_highest(uint32_t id)
{
    struct step s = {.id = id};
    uint64_t want = UINT64_MAX;

    for (uint64_t i = 0; i < KEYS; i++)
        if (model[id].value[i])
            want = i * key_scale;
    rig_ok(rig, rig_read(rig, op_highest, &s));
    want_eq(s.found, want != UINT64_MAX);
    if (s.found)
        want_eq(s.ret_key, want);
}

static void
check_leaf(uint32_t id, uint64_t key)
{
    struct step s = {.id = id, .key = key};
    uint64_t expect;
    uint32_t i = 0;

    rig_ok(rig, rig_read(rig, op_read_leaf, &s));
    want(s.ret_key <= key && key < s.ret_end);
    expect = model_next(id, s.ret_key);
    while (expect != UINT64_MAX && expect < s.ret_end) {
        want(i < nr_entries);
        want_eq(entries[i].key, expect);
        want_eq(entries[i].value, pack(model_at(id, expect)));
        i++;
        expect = model_next(id, expect + 1);
    }
    want_eq(i, nr_entries);
}

static void
check_all(uint32_t id)
{
    uint64_t key = 0;
    struct step s = {.id = id};

    for (;;) {
        s.key = key;
        rig_ok(rig, rig_read(rig, op_lookup_next, &s));
        want_eq(s.found ? s.ret_key : UINT64_MAX, model_next(id, key));
        if (!s.found)
            break;
        want_eq(s.value, pack(model_at(id, s.ret_key)));
        key = s.ret_key + 1;
    }
}

/* ---- steps --------------------------------------------------------------------------------------- */

static uint64_t
some_key(void)
{
    /* Dense stretches, so that leaves fill up, and any place at all. */
    static uint64_t at;

    if (random_below(&rng, 4) == 0)
        at = random_below(&rng, KEYS);
    at = (at + 1) % KEYS;
    return at;
}

static void
do_insert(uint32_t id)
{
    struct step s = {.id = id, .key = some_key()};
    int r = rig_do(rig, TM_NORMAL, op_insert, &s);

    if (r == -THIN_E_NO_DATA_SPACE) {
        rig_ok(rig, rig_commit(rig));
        return;
    }
    if (is_refused(r))
        return;
    rig_ok(rig, r);
    want_eq(s.found, model[id].value[s.key] == 0);
    model[id].nr += s.found;
    model[id].value[s.key] = s.value;
}

static void
do_remove(uint32_t id)
{
    struct step s = {.id = id, .key = some_key()};

    rig_ok(rig, rig_do(rig, TM_RESERVE, op_remove, &s));
    want_eq(s.found, model[id].value[s.key] != 0);
    model[id].nr -= s.found;
    model[id].value[s.key] = 0;
}

static void
do_trim(uint32_t id, uint64_t begin, uint64_t end, uint32_t budget)
{
    struct step s = {.id = id, .key = begin, .end = end, .budget = budget};

    do {
        uint64_t expect = 0;

        rig_ok(rig, rig_do(rig, TM_RESERVE, op_trim, &s));
        want(s.ret_end <= s.end && s.ret_end >= begin);
        for (uint64_t i = 0; i < KEYS; i++)
            if (i * key_scale >= s.ret_end && i * key_scale < s.end &&
                model[id].value[i]) {
                model[id].value[i] = 0;
                expect++;
            }
        want_eq(s.removed, expect);
        want(expect || s.ret_end == begin || begin >= end);
        model[id].nr -= (uint32_t)expect;
        s.end = s.ret_end;
    } while (s.end > begin && random_below(&rng, 50));
}

static void
do_delete(uint32_t id)
{
    struct step s = {.id = id};
    struct rig_details_arg d = {.id = id, .remove = true};

    /* What one operation may hold; in the smallest cache a delete is trims and a leaf. */
    uint32_t whole = rig->bm->clean_max > BM_CLEAN_MIN ? 60 : 3;

    if (random_below(&rng, 2))
        do_trim(id, 0, UINT64_MAX, 1 + (uint32_t)random_below(&rng, 12));
    if (model[id].nr > whole)
        return;
    rig_ok(rig, rig_do(rig, TM_RESERVE, op_delete, &s));
    rig_ok(rig, rig_do(rig, TM_RESERVE, rig_details_op, &d));
    model[id].exists = false;
}

static void
do_create(uint32_t id)
{
    struct step s = {.id = id, .other = (uint32_t)random_below(&rng, DEVICES)};
    bool clone = model[s.other].exists;
    int r = rig_do(rig, TM_NORMAL, clone ? op_clone : op_create, &s);

    if (is_refused(r))
        return;
    rig_ok(rig, r);
    if (clone)
        model[id] = model[s.other];
    else
        memset(&model[id], 0, sizeof(model[id]));
    model[id].exists = true;
}

static void
do_commit(bool finish)
{
    for (uint32_t id = 0; id < DEVICES; id++) {
        struct rig_details_arg d = {.id = id, .details.mapped_blocks = model[id].nr};

        if (model[id].exists)
            rig_ok(rig, rig_do(rig, TM_COMMIT, rig_details_op, &d));
    }
    rig_ok(rig, rig_commit_start(rig));
    if (!finish)
        return;
    rig_ok(rig, rig_commit_finish(rig));
    rig_recount(rig);
}

static void
one_step(void)
{
    uint32_t id = (uint32_t)random_below(&rng, DEVICES);
    uint64_t key = random_below(&rng, KEYS * key_scale + 2);

    if (!model[id].exists) {
        if (random_below(&rng, 6) == 0)
            do_create(id);
        return;
    }
    switch (random_below(&rng, 40)) {
    case 0 ... 15:
        do_insert(id);
        break;
    case 16 ... 23:
        do_remove(id);
        break;
    case 24:
        do_trim(id, key, key + random_below(&rng, 200 * key_scale),
                1 + (uint32_t)random_below(&rng, 12));
        break;
    case 25 ... 28:
        check_lookup(id, key);
        break;
    case 29 ... 31:
        check_next(id, key);
        break;
    case 32 ... 35:
        check_leaf(id, key);
        break;
    case 36:
        check_highest(id);
        break;
    case 37:
        if (random_below(&rng, 8) == 0)
            do_delete(id);
        break;
    default:
        if (random_below(&rng, 3) == 0)
            do_commit(random_below(&rng, 2));
        break;
    }
}

struct variant {
    const char *name;
    uint32_t node_max, frames;
    uint64_t scale;
    unsigned steps, cold, fault; /* one in so many steps; 0: never */
    uint32_t blocks, reserve;
};

static const struct variant variants[] = {
    {"small nodes, all cached", 6, 1500, 1, 25000, 0, 0, 6000, 0},
    {"small nodes, cold cache, faults", 6, 100, 3, 12000, 2, 20, 6000, 0},
    {"nodes of 9", 9, 200, 1, 20000, 10, 50, 6000, 0},
    {"full size nodes", 0, 200, 1, 40000, 100, 200, 6000, 0},
    {"full size nodes, cold cache", 0, 48, 1, 10000, 2, 20, 6000, 0},
    {"little metadata, small nodes", 6, 1000, 1, 15000, 0, 0, 720, 520},
    {"little metadata, full size nodes", 0, 200, 1, 15000, 50, 0, 60, 30},
    {"small nodes, smallest cache", 6, BM_FRAMES_MIN, 1, 15000, 0, 0, 6000, 0},
    {"full size nodes, smallest cache", 0, BM_FRAMES_MIN, 1, 15000, 0, 0, 6000, 0},
};

START_TEST(trees_agree_with_the_model)
{
    const struct variant *v = &variants[_i];
    uint64_t seed = rig_seed(1000 + (uint64_t)_i);
    unsigned steps = v->steps * (getenv("THIN_TEST_LONG") ? LONG_TIMES : 1);

    random_seed(&rng, seed);
    memset(model, 0, sizeof(model));
    key_scale = v->scale;
    nr_refused = 0;
    rig =
        rig_create_reserving(v->blocks, 6000, v->frames, v->node_max, false, v->reserve);
    rig->check_undo = true;
    for (unsigned n = 0; n < steps; n++) {
        if (v->cold && random_below(&rng, v->cold) == 0)
            rig_drop_clean(rig);
        if (v->fault && random_below(&rng, v->fault) == 0) {
            device_fault_clear(rig->dev);
            device_fault_order(rig->dev,
                               random_below(&rng, 2) ? FAULT_CORRUPT : FAULT_FAIL,
                               FAULT_OP(DEVICE_READ), 1 + random_below(&rng, 5), 1, -EIO,
                               random_below(&rng, METADATA_BLOCK_SIZE));
        }
        one_step();
        if (n % 500 == 499) {
            do_commit(true);
            if (n % 2000 == 1999)
                rig_reopen(rig);
            for (uint32_t id = 0; id < DEVICES; id++)
                if (model[id].exists)
                    check_all(id);
        }
    }
    device_fault_clear(rig->dev);
    printf("%s: %" PRIu64 " passes undone, %" PRIu64 " fetches, %" PRIu64
           " commits, %" PRIu64 " faults, %" PRIu64 " refused, %" PRIu32
           " locks at most\n",
           v->name, rig->nr_undone, rig->nr_fetches, rig->nr_commits, rig->nr_faults,
           nr_refused, rig->locks_high_water);
    test_locks_within_bound(rig->locks_high_water);
    rig_destroy(rig);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("prop_btree");
    TCase *tc = tcase_create("model");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 250);
    tcase_add_loop_test(tc, trees_agree_with_the_model, 0,
                        (int)(sizeof(variants) / sizeof(variants[0])));
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
