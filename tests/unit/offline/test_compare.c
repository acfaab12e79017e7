/* Delta, rmap and shares against a model made of the runs that the dump tells. */
#include "core/offline/delta.h"
#include "core/offline/rmap.h"
#include "core/offline/shares.h"
#include "tests/unit/offline/fixture.h"

#define VIRT_MAX 4096u
#define DATA_MAX 32768u
#define DEVS_MAX 64u
#define NOTHING  UINT64_MAX

/* Where each device maps each virtual block. */
struct model {
    size_t nr;
    uint64_t ids[DEVS_MAX];
    uint64_t map[DEVS_MAX][VIRT_MAX];
};

static int
model_superblock(void *arg, const struct ir_superblock *sb)
{
    (void)arg;
    (void)sb;
    return 0;
}

static int
model_device(void *arg, const struct ir_device *dev)
{
    struct model *m = arg;

    ck_assert_uint_lt(m->nr, DEVS_MAX);
    m->ids[m->nr] = dev->dev_id;
    memset(m->map[m->nr], 0xff, sizeof(m->map[0]));
    return 0;
}

static int
model_run(void *arg, const struct ir_run *run)
{
    struct model *m = arg;

    ck_assert_uint_le(run->virt + run->len, VIRT_MAX);
    ck_assert_uint_le(run->data + run->len, DATA_MAX);
    for (uint64_t i = 0; i < run->len; i++)
        m->map[m->nr][run->virt + i] = run->data + i;
    return 0;
}

static int
model_device_end(void *arg)
{
    ((struct model *)arg)->nr++;
    return 0;
}

static int
model_end(void *arg)
{
    (void)arg;
    return 0;
}

static const struct ir_visitor model_visitor = {
    .superblock = model_superblock,
    .device_begin = model_device,
    .run = model_run,
    .device_end = model_device_end,
    .end = model_end,
};

static const char *const pools[] = {"few-thins", "snapshots",      "discards",
                                    "held-root", "one-entry-root", "external-origin"};
#define NR_POOLS ((int)(sizeof(pools) / sizeof(pools[0])))

struct rig {
    struct mem_device m;
    struct meta_source *src;
    struct live_pool pool;
    struct model *model;
};

static void
rig_init(struct rig *rig, const char *name)
{
    static const struct live_options opts;

    rig->m = fixture_pool(name);
    rig->src = mem_open(&rig->m);
    rig->model = calloc(1, sizeof(*rig->model));
    ck_assert_ptr_nonnull(rig->model);
    ck_assert_int_eq(live_open(rig->src, &opts, &rig->pool, NULL), 0);
    ck_assert_int_eq(live_feed(&rig->pool, &opts, &model_visitor, rig->model, NULL), 0);
}

static void
rig_fini(struct rig *rig)
{
    live_close(&rig->pool);
    source_close(rig->src);
    free(rig->model);
    free(rig->m.bytes);
}

struct delta_seen {
    const uint64_t *left, *right;
    bool differences_only;
    uint64_t next;
};

static enum delta_kind
kind_of(const struct delta_seen *s, uint64_t v, bool *ret_any)
{
    uint64_t l = s->left[v], r = s->right[v];

    *ret_any = l != NOTHING || r != NOTHING;
    if (l == r)
        return DELTA_SAME;
    if (r == NOTHING)
        return DELTA_LEFT_ONLY;
    return l == NOTHING ? DELTA_RIGHT_ONLY : DELTA_DIFFERENT;
}

/* Virtual blocks that were passed over must hold nothing that should be told. */
static void
assert_silent(const struct delta_seen *s, uint64_t begin, uint64_t end)
{
    for (uint64_t v = begin; v < end; v++) {
        bool any;
        enum delta_kind kind = kind_of(s, v, &any);

        if (any && s->differences_only)
            any = kind != DELTA_SAME;
        if (any)
            ck_abort_msg("block %lu is not told", (unsigned long)v);
    }
}

static int
on_delta(void *arg, const struct delta_run *run)
{
    struct delta_seen *s = arg;

    ck_assert_uint_ge(run->begin, s->next);
    assert_silent(s, s->next, run->begin);
    for (uint64_t i = 0; i < run->len; i++) {
        bool any;

        ck_assert_int_eq(kind_of(s, run->begin + i, &any), run->kind);
        ck_assert(any);
        if (run->kind != DELTA_RIGHT_ONLY)
            ck_assert_uint_eq(s->left[run->begin + i], run->left + i);
        if (run->kind != DELTA_LEFT_ONLY)
            ck_assert_uint_eq(s->right[run->begin + i], run->right + i);
    }
    s->next = run->begin + run->len;
    return 0;
}

static void
compare_pair(struct rig *rig, size_t i, size_t j, bool differences_only)
{
    struct delta_seen s = {.left = rig->model->map[i],
                           .right = rig->model->map[j],
                           .differences_only = differences_only};
    int r = delta_devices(&rig->pool, &rig->pool.devices[i], &rig->pool.devices[j],
                          differences_only, on_delta, &s, NULL);

    ck_assert_int_eq(r, 0);
    assert_silent(&s, s.next, VIRT_MAX);
}

START_TEST(delta_tells_each_block_as_it_is)
{
    struct rig rig;

    rig_init(&rig, pools[_i]);
    for (size_t i = 0; i < rig.model->nr; i++)
        for (size_t j = i; j < rig.model->nr && j < i + 3; j++) {
            compare_pair(&rig, i, j, false);
            compare_pair(&rig, j, i, true);
        }
    rig_fini(&rig);
}
END_TEST

/* What differs, run by run. */
struct differing {
    struct delta_run runs[20000];
    size_t nr;
    bool differences_only;
};

static int
keep_differing(void *arg, const struct delta_run *run)
{
    struct differing *d = arg;

    ck_assert(run->kind != DELTA_SAME || !d->differences_only);
    if (run->kind == DELTA_SAME)
        return 0;
    ck_assert_uint_lt(d->nr, sizeof(d->runs) / sizeof(d->runs[0]));
    d->runs[d->nr++] = *run;
    return 0;
}

/* A tree of 70000 mappings and its snapshot, which has been written to. */
START_TEST(what_both_have_is_not_even_read)
{
    static const struct live_options opts;
    struct mem_device m = fixture_pool("big-tree");
    struct meta_source *src = mem_open(&m);
    struct differing *all = calloc(1, sizeof(*all)), *only = calloc(1, sizeof(*only));
    const struct live_device *one, *two;
    struct live_pool pool;
    uint64_t before;

    ck_assert(all && only);
    only->differences_only = true;
    ck_assert_int_eq(live_open(src, &opts, &pool, NULL), 0);
    one = live_find(&pool, 1);
    two = live_find(&pool, 2);
    ck_assert(one && two);
    for (int turn = 0; turn < 2; turn++) {
        const struct live_device *left = turn ? two : one, *right = turn ? one : two;

        all->nr = only->nr = 0;
        ck_assert_int_eq(
            delta_devices(&pool, left, right, false, keep_differing, all, NULL), 0);
        ck_assert_int_eq(
            delta_devices(&pool, left, right, true, keep_differing, only, NULL), 0);
        ck_assert_uint_gt(all->nr, 0);
        ck_assert_uint_eq(all->nr, only->nr);
        for (size_t i = 0; i < all->nr; i++) {
            const struct delta_run *a = &all->runs[i], *b = &only->runs[i];

            ck_assert(a->kind == b->kind && a->begin == b->begin && a->len == b->len);
            ck_assert(a->left == b->left && a->right == b->right);
        }
    }
    before = src->nr_read;
    only->nr = 0;
    ck_assert_int_eq(delta_devices(&pool, one, one, true, keep_differing, only, NULL), 0);
    ck_assert_uint_eq(only->nr, 0);
    ck_assert_uint_le(src->nr_read - before, 2 * 4); /* the way down, for the height */
    live_close(&pool);
    source_close(src);
    free(m.bytes);
    free(all);
    free(only);
}
END_TEST

struct rmap_seen {
    const struct model *model;
    dblock_t begin, end, last;
    uint8_t *told; /* by data block */
};

static int
on_rmap(void *arg, const struct rmap_run *run)
{
    struct rmap_seen *s = arg;
    size_t d = 0;

    while (d < s->model->nr && s->model->ids[d] != run->dev_id)
        d++;
    ck_assert_uint_lt(d, s->model->nr);
    ck_assert_uint_ge(run->data, s->begin);
    ck_assert_uint_le(run->data + run->len, s->end);
    ck_assert_uint_ge(run->data, s->last);
    s->last = run->data;
    for (uint64_t i = 0; i < run->len; i++) {
        ck_assert_uint_eq(s->model->map[d][run->virt + i], run->data + i);
        s->told[run->data + i] = 1;
    }
    return 0;
}

START_TEST(rmap_tells_each_mapped_block_of_the_region)
{
    struct rmap_region region = {10, 300};
    struct rig rig;
    struct rmap_seen s;

    rig_init(&rig, pools[_i]);
    s = (struct rmap_seen){rig.model, region.begin, region.end, 0, calloc(1, DATA_MAX)};
    ck_assert_int_eq(rmap(&rig.pool, &region, 1, on_rmap, &s, NULL), 0);
    for (size_t d = 0; d < rig.model->nr; d++)
        for (uint64_t v = 0; v < VIRT_MAX; v++) {
            uint64_t b = rig.model->map[d][v];

            if (b != NOTHING && b >= region.begin && b < region.end)
                ck_assert_int_eq(s.told[b], 1);
        }
    free(s.told);
    rig_fini(&rig);
}
END_TEST

START_TEST(exclusive_blocks_are_those_that_one_device_maps)
{
    struct device_shares shares[DEVS_MAX];
    uint32_t *users = calloc(DATA_MAX, sizeof(*users));
    struct rig rig;

    rig_init(&rig, pools[_i]);
    ck_assert_int_eq(shares_count(&rig.pool, shares, NULL), 0);
    for (size_t d = 0; d < rig.model->nr; d++)
        for (uint64_t v = 0; v < VIRT_MAX; v++)
            if (rig.model->map[d][v] != NOTHING)
                users[rig.model->map[d][v]]++;
    for (size_t d = 0; d < rig.model->nr; d++) {
        uint64_t mapped = 0, exclusive = 0, highest = 0;

        for (uint64_t v = 0; v < VIRT_MAX; v++) {
            uint64_t b = rig.model->map[d][v];

            if (b == NOTHING)
                continue;
            mapped++;
            exclusive += users[b] == 1;
            highest = v;
        }
        ck_assert_uint_eq(shares[d].mapped, mapped);
        ck_assert_uint_eq(shares[d].exclusive, exclusive);
        ck_assert_int_eq(shares[d].any, mapped > 0);
        ck_assert_uint_eq(shares[d].highest, highest);
    }
    free(users);
    rig_fini(&rig);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("offline compare");
    TCase *tc = tcase_create("compare");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, delta_tells_each_block_as_it_is, 0, NR_POOLS);
    tcase_add_test(tc, what_both_have_is_not_even_read);
    tcase_add_loop_test(tc, rmap_tells_each_mapped_block_of_the_region, 0, NR_POOLS);
    tcase_add_loop_test(tc, exclusive_blocks_are_those_that_one_device_maps, 0, NR_POOLS);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
