/* Repair: which of several states it takes. */
#include "core/offline/repair.h"
#include "core/ondisk/mapping.h"
#include "core/ondisk/superblock.h"
#include "tests/unit/offline/fixture.h"

/* Puts a copy of a node at another block. */
static void
copy_node(struct mem_device *m, mblock_t from, mblock_t to)
{
    memcpy(mem_block(m, to), mem_block(m, from), METADATA_BLOCK_SIZE);
    block_seal(BLOCK_NODE, mem_block(m, to), to);
}

/* No superblock and no counts: only the nodes tell. */
static void
lose_all_but_nodes(struct mem_device *m)
{
    for (uint64_t b = 0; b < m->len / METADATA_BLOCK_SIZE; b++) {
        const uint8_t *block = mem_block(m, b);

        if (block_check(BLOCK_NODE, block, b, NULL) < 0)
            memset(mem_block(m, b), 0, METADATA_BLOCK_SIZE);
    }
}

/* Two states of a device with equally many mappings: the clock of one is ahead. `later`
   is the one at the higher blocks, or at the lower ones. */
START_TEST(of_two_equally_full_states_the_later_is_taken)
{
    static const struct build_override over = {.have_trans_id = true,
                                               .have_data_block_size = true,
                                               .data_block_size = 128,
                                               .have_nr_data_blocks = true,
                                               .nr_data_blocks = 640};
    struct mem_device m = fixture_pool("few-thins");
    mblock_t nr = m.len / METADATA_BLOCK_SIZE, top2 = nr - 1, root2 = nr - 2;
    const struct live_device *dev;
    struct repair_plan plan;
    struct superblock sb;
    struct meta_source *src;
    struct thin_error err;
    uint8_t *leaf;
    mblock_t root;
    int r;

    superblock_decode(&sb, m.bytes);
    root = node_value64(mem_block(&m, sb.data_mapping_root), 0);
    ck_assert(node_is_leaf(mem_block(&m, root)));
    copy_node(&m, root, root2);
    copy_node(&m, sb.data_mapping_root, top2);
    store_le64(node_value_rw(mem_block(&m, top2), 0), root2);
    block_seal(BLOCK_NODE, mem_block(&m, top2), top2);
    leaf = mem_block(&m, _i ? root2 : root);
    store_le64(node_value_rw(leaf, 3),
               mapping_pack(mapping_block(node_value64(leaf, 3)), 5));
    block_seal(BLOCK_NODE, leaf, _i ? root2 : root);
    lose_all_but_nodes(&m);

    src = mem_open(&m);
    thin_error_init(&err);
    r = repair_plan_make(&plan, src, &over, NULL, &err);
    ck_assert_msg(r == 0, "%s", err.text);
    dev = live_find(&plan.pool, node_key(mem_block(&m, top2), 0));
    ck_assert_ptr_nonnull(dev);
    ck_assert_uint_eq(dev->root, _i ? root2 : root);
    ck_assert_uint_eq(plan.recovered, 107);
    repair_plan_fini(&plan);
    source_close(src);
    free(m.bytes);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("offline repair");
    TCase *tc = tcase_create("states");
    SRunner *sr;
    int failed;

    tcase_add_loop_test(tc, of_two_equally_full_states_the_later_is_taken, 0, 2);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
