/* Trees: shapes that random steps reach seldom, and blocks that somebody else wrote. */
#include "tests/unit/persist/persist_rig.h"

#define NR_BLOCKS 3000u

static struct rig *rig;
static struct btree plain; /* values refer to nothing */

static void
setup(void)
{
    rig = rig_create(NR_BLOCKS, 100, 2500, 6, true);
    plain = rig->top;
    plain.value = (struct btree_value_type){.size = 8};
}

static void
teardown(void)
{
    rig_destroy(rig);
}

static mblock_t
make_tree(const struct btree *t, uint64_t first, uint64_t nr, uint64_t step)
{
    mblock_t root = 0;
    uint8_t value[VALUE_SIZE_MAX] = {0};
    bool inserted;

    tm_op_begin(rig->tm, TM_COMMIT);
    ck_assert_int_eq(btree_create(t, &root, &rig->err), 0);
    tm_op_keep(rig->tm);
    for (uint64_t i = 0; i < nr; i++) {
        store_le32(value, (uint32_t)(first + i * step));
        tm_op_begin(rig->tm, TM_COMMIT);
        rig_ok(rig, btree_insert(t, root, first + i * step, value, &root, &inserted,
                                 &rig->err));
        ck_assert(inserted);
        tm_op_keep(rig->tm);
    }
    return root;
}

static struct btree_shape
shape_of(const struct btree *t, mblock_t root)
{
    struct btree_shape shape = {0};

    rig_ok(rig, btree_measure(t, root, &shape, &rig->err));
    return shape;
}

START_TEST(empty_tree_answers)
{
    mblock_t root = make_tree(&plain, 0, 0, 1), same;
    uint64_t key, value, removed, end;
    bool found = true;

    rig_ok(rig, btree_lookup(&plain, root, 5, &value, &found, &rig->err));
    ck_assert(!found);
    rig_ok(rig, btree_lowest(&plain, root, &key, &found, &rig->err));
    ck_assert(!found);
    rig_ok(rig, btree_highest(&plain, root, &key, &found, &rig->err));
    ck_assert(!found);
    tm_op_begin(rig->tm, TM_COMMIT);
    rig_ok(rig, btree_remove(&plain, root, 5, &same, &found, &rig->err));
    ck_assert(!found);
    ck_assert_uint_eq(same, root);
    rig_ok(rig,
           btree_trim(&plain, root, 0, UINT64_MAX, 8, &same, &removed, &end, &rig->err));
    ck_assert_uint_eq(removed, 0);
    ck_assert_uint_eq(end, 0);
    tm_op_keep(rig->tm);
}
END_TEST

START_TEST(removing_what_is_not_there_changes_nothing)
{
    mblock_t root = make_tree(&plain, 0, 100, 2), same;
    uint32_t before;
    bool removed = true;

    rig_ok(rig, rig_commit(rig));
    before = rig_state(rig);
    tm_op_begin(rig->tm, TM_COMMIT);
    rig_ok(rig, btree_remove(&plain, root, 51, &same, &removed, &rig->err));
    ck_assert(!removed);
    ck_assert_uint_eq(same, root);
    tm_op_keep(rig->tm);
    ck_assert_uint_eq(before, rig_state(rig));
}
END_TEST

START_TEST(all_value_sizes_and_extreme_keys_work)
{
    static const uint32_t sizes[] = {4, 8, 16, 24};
    struct btree t = plain;
    uint8_t value[VALUE_SIZE_MAX] = {0}, got[VALUE_SIZE_MAX];
    mblock_t root;
    uint64_t key = 0;
    bool flag;

    t.leaf_max = t.internal_max = 0;
    t.value.size = sizes[_i];
    root = make_tree(&t, 10, 1000, 3);
    tm_op_begin(rig->tm, TM_COMMIT);
    value[0] = 0x77;
    rig_ok(rig, btree_insert(&t, root, UINT64_MAX, value, &root, &flag, &rig->err));
    rig_ok(rig, btree_insert(&t, root, 0, value, &root, &flag, &rig->err));
    rig_ok(rig, btree_insert(&t, root, 0, value, &root, &flag, &rig->err));
    ck_assert(!flag);
    tm_op_keep(rig->tm);
    rig_ok(rig, btree_lookup(&t, root, UINT64_MAX, got, &flag, &rig->err));
    ck_assert(flag && got[0] == 0x77);
    rig_ok(rig, btree_highest(&t, root, &key, &flag, &rig->err));
    ck_assert_uint_eq(key, UINT64_MAX);
    rig_ok(rig, btree_lowest(&t, root, &key, &flag, &rig->err));
    ck_assert_uint_eq(key, 0);
    ck_assert_uint_eq(shape_of(&t, root).nr_entries, 1002);
    for (uint64_t i = 0; i < 1000; i++) {
        tm_op_begin(rig->tm, TM_COMMIT);
        rig_ok(rig, btree_remove(&t, root, 10 + 3 * i, &root, &flag, &rig->err));
        ck_assert(flag);
        tm_op_keep(rig->tm);
    }
    ck_assert_uint_eq(shape_of(&t, root).nr_entries, 2);
    ck_assert_uint_eq(shape_of(&t, root).depth, 1);
}
END_TEST

START_TEST(inserting_in_order_fills_nodes_better_than_half)
{
    struct btree t = plain;
    struct btree_shape shape;
    mblock_t root;

    t.leaf_max = t.internal_max = 0;
    root = make_tree(&t, 0, 20000, 1);
    shape = shape_of(&t, root);
    ck_assert_uint_eq(shape.nr_entries, 20000);
    ck_assert_uint_le(shape.nr_leaves, 20000 / 252 * 3 / 2);
}
END_TEST

/* Puts a node where the tree will read it. */
static void
plant(mblock_t b, bool leaf, uint32_t nr, const uint64_t *keys, const uint64_t *values)
{
    uint8_t block[METADATA_BLOCK_SIZE];

    node_init(block, leaf, 252, 8);
    for (uint32_t i = 0; i < nr; i++) {
        node_set_key(block, i, keys[i]);
        store_le64(node_value_rw(block, i), values[i]);
    }
    node_set_nr_entries(block, nr);
    block_seal(BLOCK_NODE, block, b);
    ck_assert_int_eq(
        device_write_wait(rig->dev, b * METADATA_BLOCK_SIZE, block, sizeof(block), 0), 0);
}

static int
visit_nothing(void *arg, uint64_t key, const uint8_t *value)
{
    (void)arg;
    (void)key;
    (void)value;
    return 0;
}

/* Every way into the tree ends, and never with a result. */
static void
refused(mblock_t root, uint64_t key)
{
    struct btree_shape shape;
    struct btree_entry64 entries[252];
    uint8_t value[8] = {0};
    uint64_t a, b;
    uint32_t before = rig_state(rig), nr;
    mblock_t out;
    bool flag;

    ck_assert_int_eq(btree_measure(&plain, root, &shape, &rig->err), -THIN_E_BAD_BLOCK);
    ck_assert_int_eq(
        btree_walk(&plain, root, 0, UINT64_MAX, visit_nothing, NULL, &rig->err),
        -THIN_E_BAD_BLOCK);
    ck_assert_int_eq(btree_lookup(&plain, root, key, value, &flag, &rig->err),
                     -THIN_E_BAD_BLOCK);
    ck_assert_int_eq(btree_lookup_next(&plain, root, key, &a, value, &flag, &rig->err),
                     -THIN_E_BAD_BLOCK);
    ck_assert_int_eq(
        btree_read_leaf(&plain, root, key, entries, 252, &nr, &a, &b, &rig->err),
        -THIN_E_BAD_BLOCK);
    for (unsigned i = 0; i < 4; i++) {
        int r = 0;

        tm_op_begin(rig->tm, TM_COMMIT);
        if (i == 0)
            r = btree_insert(&plain, root, key, value, &out, &flag, &rig->err);
        if (i == 1)
            r = btree_remove(&plain, root, key, &out, &flag, &rig->err);
        if (i == 2)
            r = btree_trim(&plain, root, 0, UINT64_MAX, 50, &out, &a, &b, &rig->err);
        if (i == 3)
            r = btree_delete(&plain, root, &rig->err);
        ck_assert_int_eq(r, -THIN_E_BAD_BLOCK);
        tm_op_undo(rig->tm);
        ck_assert_uint_eq(before, rig_state(rig));
    }
}

START_TEST(hostile_trees_end_in_an_error)
{
    static const uint64_t keys[] = {10, 20, 30};
    static uint64_t values[3];
    mblock_t base = 1000; /* never allocated: their counts are 0, which is wrong too */

    for (unsigned i = 0; i < 3; i++)
        values[i] = i;
    values[0] = base + 1;
    values[1] = base + 2;
    values[2] = base + 3;
    plain.leaf_max = plain.internal_max = 0;
    for (mblock_t b = 1; b <= 3; b++)
        plant(base + b, true, 1, &keys[b - 1], values);
    switch (_i) {
    case 0: /* points to itself */
        values[1] = base;
        plant(base, false, 3, keys, values);
        break;
    case 1: /* two that point to each other */
        values[1] = base + 7;
        plant(base, false, 3, keys, values);
        values[1] = base;
        plant(base + 7, false, 3, keys, values);
        break;
    case 2: /* a circle of nodes with one entry each */
        values[1] = base + 7;
        plant(base, false, 1, &keys[1], &values[1]);
        values[1] = base;
        plant(base + 7, false, 1, &keys[1], &values[1]);
        break;
    case 3: /* beyond the end */
        values[1] = NR_BLOCKS;
        plant(base, false, 3, keys, values);
        break;
    case 4: /* block 0 */
        values[1] = 0;
        plant(base, false, 3, keys, values);
        break;
    case 5: /* a child's keys belong to its neighbour */
        plant(base + 2, true, 1, &keys[2], values);
        plant(base, false, 3, keys, values);
        break;
    case 6: /* an empty leaf below */
        plant(base + 2, true, 0, keys, values);
        plant(base, false, 3, keys, values);
        break;
    case 7: /* a superblock's number as a root */
        base = 0;
        break;
    default: /* one child twice */
        values[0] = base + 2;
        plant(base, false, 3, keys, values);
        break;
    }
    /* Where removing and deleting would see the count first, let it be right. */
    tm_op_begin(rig->tm, TM_COMMIT);
    rig->tm->core.cursor = 1000;
    for (unsigned i = 0; i < 8; i++) {
        mblock_t b;

        ck_assert_int_eq(tm_alloc(rig->tm, &b, &rig->err), 0);
        bitset_clear(&rig->tm->made, b);
    }
    tm_op_keep(rig->tm);
    if (_i == 8) {
        struct btree_shape shape;

        ck_assert_int_eq(btree_measure(&plain, base, &shape, &rig->err),
                         -THIN_E_BAD_BLOCK);
        return;
    }
    refused(base, 20);
}
END_TEST

/* An internal root with one child, as kernels leave it, over a child that is shared. */
START_TEST(collapse_over_a_shared_child_counts_its_children)
{
    mblock_t child = make_tree(&plain, 0, 30, 1), root = 0, b = 0;
    struct btree_shape before = shape_of(&plain, child), after;
    struct bm_block *block;
    struct bm_validator v;
    uint64_t first = 0;
    uint32_t count = 0;
    bool flag;

    ck_assert_uint_ge(before.depth, 2);
    btree_validator(&plain, &v);
    tm_op_begin(rig->tm, TM_COMMIT);
    ck_assert_int_eq(tm_new_block(rig->tm, &v, &block, &rig->err), 0);
    root = bm_location(block);
    node_init(bm_data_rw(block), false, 6, 8);
    node_set_key(bm_data_rw(block), 0, 0);
    store_le64(node_value_rw(bm_data_rw(block), 0), child);
    node_set_nr_entries(bm_data_rw(block), 1);
    tm_unlock(rig->tm, block);
    ck_assert_int_eq(btree_clone(&plain, child, &rig->err), 0); /* and a second holder */
    tm_op_keep(rig->tm);

    if (_i)
        rig_ok(rig, rig_commit(rig));
    tm_op_begin(rig->tm, TM_COMMIT);
    rig_ok(rig, btree_remove(&plain, root, 29, &root, &flag, &rig->err));
    ck_assert(flag);
    tm_op_keep(rig->tm);

    rig_ok(rig, tm_ref(rig->tm, child, &count, &rig->err));
    ck_assert_uint_eq(count, 1);
    rig_ok(rig, tm_read_lock(rig->tm, child, &v, &block, &rig->err));
    first = node_value64(bm_data(block), 0);
    tm_unlock(rig->tm, block);
    rig_ok(rig, tm_ref(rig->tm, first, &count, &rig->err));
    ck_assert_uint_eq(count, 2); /* the old child's and the root's */
    after = shape_of(&plain, child);
    ck_assert_uint_eq(after.nr_entries, 30);
    after = shape_of(&plain, root);
    ck_assert_uint_eq(after.nr_entries, 29);
    ck_assert_uint_eq(after.depth, before.depth);

    /* Both go, and nothing is left. */
    b = tm_nr_free(rig->tm);
    tm_op_begin(rig->tm, TM_COMMIT);
    rig_ok(rig, btree_delete(&plain, root, &rig->err));
    rig_ok(rig, btree_delete(&plain, child, &rig->err));
    tm_op_keep(rig->tm);
    ck_assert_uint_eq(rig->tm->core.nr_overflow, 0);
    ck_assert_uint_ge(tm_nr_free(rig->tm), b);
    rig_ok(rig, rig_commit(rig));
    rig_recount(rig);
}
END_TEST

/* A clone that differs in one leaf: most of what is trimmed is shared. */
START_TEST(trim_counts_shared_subtrees_exactly)
{
    mblock_t a = make_tree(&plain, 0, 500, 1), b;
    uint64_t total = 0, removed, end = UINT64_MAX;
    uint8_t value[8] = {1};
    unsigned steps = 0;
    bool inserted;

    tm_op_begin(rig->tm, TM_COMMIT);
    rig_ok(rig, btree_clone(&plain, a, &rig->err));
    rig_ok(rig, btree_insert(&plain, a, 250, value, &b, &inserted, &rig->err));
    tm_op_keep(rig->tm);
    rig_ok(rig, rig_commit(rig));
    while (end > 0) {
        tm_op_begin(rig->tm, TM_COMMIT);
        rig_ok(rig, btree_trim(&plain, b, 0, end, (uint32_t)_i, &b, &removed, &end,
                               &rig->err));
        tm_op_keep(rig->tm);
        total += removed;
        steps++;
        ck_assert_uint_eq(shape_of(&plain, b).nr_entries, 500 - total);
    }
    ck_assert_uint_eq(total, 500);
    ck_assert_uint_ge(steps, 500 / 6 / ((unsigned)_i + 6));
    ck_assert_uint_eq(shape_of(&plain, a).nr_entries, 500);
    tm_op_begin(rig->tm, TM_COMMIT);
    rig_ok(rig, btree_delete(&plain, a, &rig->err));
    rig_ok(rig, btree_delete(&plain, b, &rig->err));
    tm_op_keep(rig->tm);
    rig_ok(rig, rig_commit(rig));
    rig_recount(rig);
}
END_TEST

static int
count_visit(void *arg, uint64_t key, const uint8_t *value)
{
    uint64_t *next = arg;

    ck_assert_uint_eq(key, *next);
    ck_assert_uint_eq(load_le32(value), key);
    *next += 3;
    return key == 600 ? 42 : 0;
}

START_TEST(walk_visits_a_range_in_order_and_stops_when_told)
{
    mblock_t root = make_tree(&plain, 0, 300, 3);
    uint64_t next = 102;

    ck_assert_int_eq(btree_walk(&plain, root, 100, 501, count_visit, &next, &rig->err),
                     0);
    ck_assert_uint_eq(next, 501);
    ck_assert_int_eq(
        btree_walk(&plain, root, 500, UINT64_MAX, count_visit, &next, &rig->err), 42);
    ck_assert_uint_eq(next, 603);
    ck_assert_int_eq(btree_walk(&plain, root, 7, 7, count_visit, &next, &rig->err), 0);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("btree");
    TCase *tc = tcase_create("all");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, empty_tree_answers);
    tcase_add_test(tc, removing_what_is_not_there_changes_nothing);
    tcase_add_loop_test(tc, all_value_sizes_and_extreme_keys_work, 0, 4);
    tcase_add_test(tc, inserting_in_order_fills_nodes_better_than_half);
    tcase_add_loop_test(tc, hostile_trees_end_in_an_error, 0, 9);
    tcase_add_loop_test(tc, collapse_over_a_shared_child_counts_its_children, 0, 2);
    tcase_add_loop_test(tc, trim_counts_shared_subtrees_exactly, 1, 20);
    tcase_add_test(tc, walk_visits_a_range_in_order_and_stops_when_told);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
