/* The check: silent on healthy pools, and each kind of damage found and named. */
#include <stdatomic.h>
#include <unistd.h>

#include "core/offline/check.h"
#include "core/offline/mend.h"
#include "core/ondisk/details.h"
#include "core/ondisk/mapping.h"
#include "tests/unit/offline/fixture.h"

struct outcome {
    struct report rep;
    struct check_result res;
};

/* Reads wait as for a disk, but those of a sweep. */
static int
slow_read(void *arg, uint64_t offset, void *buf, size_t len)
{
    usleep(100);
    return mem_read(arg, offset, buf, len);
}

static atomic_uint nr_swept; /* reads of sweeps */

static int
sweep_read(void *arg, uint64_t offset, void *buf, size_t len)
{
    atomic_fetch_add(&nr_swept, 1);
    usleep(
        (useconds_t)(offset / METADATA_BLOCK_SIZE % 3 * 200)); /* some overtake others */
    return mem_read(arg, offset, buf, len);
}

static struct meta_source *
disk_open(struct mem_device *m)
{
    static const struct source_ops ops = {.read = slow_read,
                                          .any_thread = true,
                                          .read_from_disk = sweep_read,
                                          .write = mem_write,
                                          .flush = mem_flush};
    struct meta_source *src = NULL;

    ck_assert_int_eq(source_open_ops(&ops, m, m->len, true, &src), 0);
    return src;
}

static bool
counts_equal(const struct counts *a, const struct counts *b)
{
    for (uint64_t i = 0; i < a->nr; i++)
        if (counts_get(a, i) != counts_get(b, i))
            return false;
    return a->nr == b->nr;
}

/* From a disk the blocks are met in another order: what is found must be the same. */
static void
check_from_disk(struct mem_device *m, const struct check_options *opts,
                const struct outcome *o)
{
    struct meta_source *src = disk_open(m);
    const struct check_result *a, *b;
    struct outcome d;
    int r;

    report_init(&d.rep);
    r = check_run(src, opts, &d.rep, &d.res, NULL);
    ck_assert_int_eq(r, 0);
    ck_assert_uint_eq(d.rep.nr, o->rep.nr);
    for (size_t i = 0; i < d.rep.nr; i++)
        ck_assert_str_eq(d.rep.findings[i].text, o->rep.findings[i].text);
    ck_assert_uint_eq(d.rep.nr_affected, o->rep.nr_affected);
    for (size_t i = 0; i < d.rep.nr_affected; i++) {
        const struct affected *x = &d.rep.affected[i], *y = &o->rep.affected[i];

        ck_assert(x->dev_id == y->dev_id && x->held == y->held && x->begin == y->begin &&
                  x->last == y->last && x->block == y->block);
    }
    a = &d.res;
    b = &o->res;
    ck_assert_uint_eq(a->nr_mappings, b->nr_mappings);
    ck_assert_uint_eq(a->trees_known, b->trees_known);
    ck_assert_uint_eq(a->leaked_metadata, b->leaked_metadata);
    ck_assert_uint_eq(a->leaked_data, b->leaked_data);
    ck_assert_uint_eq(a->nr_miscounts, b->nr_miscounts);
    ck_assert(!a->refs.chunk || counts_equal(&a->refs, &b->refs));
    ck_assert(!a->data.chunk || counts_equal(&a->data, &b->data));
    check_result_fini(&d.res);
    report_fini(&d.rep);
    source_close(src);
}

static void
check_with(struct mem_device *m, const struct check_options *opts, struct outcome *o)
{
    struct meta_source *src = mem_open(m);
    struct thin_error err;
    int r;

    thin_error_init(&err);
    report_init(&o->rep);
    r = check_run(src, opts, &o->rep, &o->res, &err);
    ck_assert_msg(r == 0, "%s", err.text);
    source_close(src);
    check_from_disk(m, opts, o);
}

static void
check_all(struct mem_device *m, struct outcome *o)
{
    static const struct check_options opts;

    check_with(m, &opts, o);
}

static void
outcome_fini(struct outcome *o)
{
    check_result_fini(&o->res);
    report_fini(&o->rep);
}

static const struct finding *
find(const struct outcome *o, const char *words)
{
    for (size_t i = 0; i < o->rep.nr; i++)
        if (strstr(o->rep.findings[i].text, words))
            return &o->rep.findings[i];
    return NULL;
}

static void
assert_found(const struct outcome *o, enum report_class class, enum report_place place,
             const char *words)
{
    const struct finding *f = find(o, words);

    ck_assert_msg(f, "'%s' is not told; first: %s", words,
                  o->rep.nr ? o->rep.findings[0].text : "(nothing)");
    ck_assert_int_eq(f->class, class);
    ck_assert_int_eq(f->place, place);
}

static struct superblock
superblock_of(struct mem_device *m)
{
    struct superblock sb;

    superblock_decode(&sb, m->bytes);
    return sb;
}

static void
put_superblock(struct mem_device *m, const struct superblock *sb)
{
    superblock_encode(sb, m->bytes);
    block_seal(BLOCK_SUPERBLOCK, m->bytes, 0);
}

static void
seal_node(struct mem_device *m, mblock_t b)
{
    block_seal(BLOCK_NODE, mem_block(m, b), b);
}

/* Root of the i-th device; the top level of every fixture is a single leaf. */
static mblock_t
device_root(struct mem_device *m, uint32_t i)
{
    struct superblock sb = superblock_of(m);

    return node_value64(mem_block(m, sb.data_mapping_root), i);
}

/* First leaf of the i-th device. */
static mblock_t
first_leaf(struct mem_device *m, uint32_t i)
{
    mblock_t b = device_root(m, i);

    while (!node_is_leaf(mem_block(m, b)))
        b = node_value64(mem_block(m, b), 0);
    return b;
}

static mblock_t
first_bitmap(struct mem_device *m)
{
    struct superblock sb = superblock_of(m);
    struct index_entry e;

    index_entry_decode(&e, node_value(mem_block(m, sb.data_sm.bitmap_root), 0));
    return e.blocknr;
}

START_TEST(healthy_pools_have_no_findings)
{
    struct mem_device m = fixture_pool(fixture_pools[_i]);
    struct outcome o;

    check_all(&m, &o);
    ck_assert_msg(o.rep.nr == 0, "%s", o.rep.nr ? o.rep.findings[0].text : "");
    ck_assert_uint_gt(atomic_load(&nr_swept), 0);
    ck_assert(o.res.trees_known);
    ck_assert_uint_eq(o.res.data_used, superblock_of(&m).data_sm.nr_allocated);
    ck_assert_uint_eq(o.res.metadata_used, superblock_of(&m).metadata_sm.nr_allocated);
    outcome_fini(&o);
    free(m.bytes);
}
END_TEST

START_TEST(needs_check_alone_is_no_damage)
{
    struct mem_device m = fixture_pool("needs-check");
    struct outcome o;

    check_all(&m, &o);
    ck_assert_uint_eq(o.rep.nr, 0);
    ck_assert(o.res.needs_check);
    outcome_fini(&o);
    free(m.bytes);
}
END_TEST

START_TEST(any_flipped_byte_of_a_used_block_is_noticed)
{
    struct mem_device m = fixture_pool("snapshots");
    struct outcome o;
    struct counts used;

    check_all(&m, &o);
    ck_assert_int_eq(counts_copy(&used, &o.res.refs), 0);
    outcome_fini(&o);
    for (uint64_t b = 0; b < used.nr - 1; b++) {
        uint8_t *byte = counts_get(&used, b) ? mem_block(&m, b) + (b * 977) % 4096 : NULL;

        if (!byte)
            continue;
        *byte ^= 0x10;
        check_all(&m, &o);
        ck_assert_msg(o.rep.nr_class[REPORT_DAMAGE] > 0, "block %lu", (unsigned long)b);
        outcome_fini(&o);
        *byte ^= 0x10;
    }
    counts_fini(&used);
    free(m.bytes);
}
END_TEST

START_TEST(an_unreadable_block_is_named_with_its_volume_and_range)
{
    struct mem_device m = fixture_pool("discards");
    struct outcome o;

    m.bad_block = first_leaf(&m, 0);
    check_all(&m, &o);
    assert_found(&o, REPORT_DAMAGE, REPORT_AT_MAPPING, "cannot be read");
    ck_assert_uint_gt(o.rep.nr_affected, 0);
    ck_assert_uint_eq(o.rep.affected[0].block, m.bad_block);
    ck_assert_uint_eq(o.rep.affected[0].dev_id,
                      node_key(mem_block(&m, superblock_of(&m).data_mapping_root), 0));
    ck_assert_uint_lt(o.rep.affected[0].last, UINT64_MAX);
    outcome_fini(&o);
    free(m.bytes);
}
END_TEST

/* A leaf of the snapshot that is in use and that nothing points to any more. */
static mblock_t
leak_a_leaf(struct mem_device *m)
{
    struct superblock sb = superblock_of(m);
    mblock_t leaf = first_leaf(m, 0);
    uint8_t *top = mem_block(m, sb.data_mapping_root);

    ck_assert_uint_gt(node_nr_entries(top), 1);
    store_le64(node_value_rw(top, 0), device_root(m, 1));
    seal_node(m, sb.data_mapping_root);
    return leaf;
}

START_TEST(leaves_that_nothing_points_to_are_not_counted)
{
    struct mem_device m = fixture_pool("few-thins");
    struct outcome o;

    leak_a_leaf(&m);
    check_all(&m, &o); /* and from the disk */
    ck_assert_uint_gt(o.rep.nr, 0);
    outcome_fini(&o);
    free(m.bytes);
}
END_TEST

/* Good in the sweep, unreadable afterwards. */
static int
read_fails_later(void *arg, uint64_t offset, void *buf, size_t len)
{
    struct mem_device *m = arg;
    uint64_t bad = m->bad_block * METADATA_BLOCK_SIZE;

    usleep(100);
    if (offset <= bad && bad < offset + len)
        return -EIO;
    memcpy(buf, m->bytes + offset, len);
    return 0;
}

static int
read_all(void *arg, uint64_t offset, void *buf, size_t len)
{
    memcpy(buf, ((struct mem_device *)arg)->bytes + offset, len);
    return 0;
}

START_TEST(a_leaf_that_was_counted_and_is_lost_since_ends_the_check)
{
    static const struct source_ops ops = {
        .read = read_fails_later, .any_thread = true, .read_from_disk = read_all};
    static const struct check_options opts;
    struct mem_device m = fixture_pool("few-thins");
    struct meta_source *src = NULL;
    struct check_result res;
    struct thin_error err;
    struct report rep;

    m.bad_block = leak_a_leaf(&m);
    thin_error_init(&err);
    report_init(&rep);
    ck_assert_int_eq(source_open_ops(&ops, &m, m.len, false, &src), 0);
    ck_assert_int_eq(check_run(src, &opts, &rep, &res, &err), -EIO);
    ck_assert_ptr_nonnull(strstr(err.text, "while they were checked"));
    check_result_fini(&res);
    report_fini(&rep);
    source_close(src);
    free(m.bytes);
}
END_TEST

/* ---- damage with good checksums --------------------------------------------------------- */

static void
lose_superblock(struct mem_device *m)
{
    memset(m->bytes, 0, METADATA_BLOCK_SIZE);
}

static void
version_9(struct mem_device *m)
{
    struct superblock sb = superblock_of(m);

    sb.version = 9;
    put_superblock(m, &sb);
}

static void
too_many_metadata_blocks(struct mem_device *m)
{
    struct superblock sb = superblock_of(m);

    sb.metadata_sm.nr_blocks += 5;
    put_superblock(m, &sb);
}

static void
absurd_data_size(struct mem_device *m)
{
    struct superblock sb = superblock_of(m);

    sb.data_sm.nr_blocks = UINT64_MAX;
    put_superblock(m, &sb);
}

static void
root_outside(struct mem_device *m)
{
    struct superblock sb = superblock_of(m);

    sb.device_details_root = UINT64_MAX - 3;
    put_superblock(m, &sb);
}

static void
wrong_own_number(struct mem_device *m)
{
    mblock_t b = first_leaf(m, 0);

    block_seal(BLOCK_NODE, mem_block(m, b), b + 1);
}

static void
keys_out_of_order(struct mem_device *m)
{
    mblock_t b = first_leaf(m, 0);

    node_set_key(mem_block(m, b), 1, 0);
    node_set_key(mem_block(m, b), 0, 7);
    seal_node(m, b);
}

static void
too_many_entries(struct mem_device *m)
{
    mblock_t b = first_leaf(m, 0);

    node_set_nr_entries(mem_block(m, b), 253);
    seal_node(m, b);
}

static void
data_block_outside(struct mem_device *m)
{
    mblock_t b = first_leaf(m, 0);

    store_le64(node_value_rw(mem_block(m, b), 0), mapping_pack(1u << 30, 0));
    seal_node(m, b);
}

static void
time_of_the_future(struct mem_device *m)
{
    mblock_t b = first_leaf(m, 0);
    uint64_t v = node_value64(mem_block(m, b), 0);

    store_le64(node_value_rw(mem_block(m, b), 0), mapping_pack(mapping_block(v), 9999));
    seal_node(m, b);
}

static void
mapped_blocks_wrong(struct mem_device *m)
{
    mblock_t b = superblock_of(m).device_details_root;
    struct device_details d;

    device_details_decode(&d, node_value(mem_block(m, b), 0));
    d.mapped_blocks++;
    device_details_encode(&d, node_value_rw(mem_block(m, b), 0));
    seal_node(m, b);
}

static void
details_missing(struct mem_device *m)
{
    mblock_t b = superblock_of(m).device_details_root;

    node_set_nr_entries(mem_block(m, b), node_nr_entries(mem_block(m, b)) - 1);
    seal_node(m, b);
}

static void
mapping_tree_missing(struct mem_device *m)
{
    mblock_t b = superblock_of(m).data_mapping_root;

    node_set_nr_entries(mem_block(m, b), node_nr_entries(mem_block(m, b)) - 1);
    seal_node(m, b);
}

static void
count_too_low(struct mem_device *m)
{
    mblock_t b = first_bitmap(m);
    uint32_t e = (uint32_t)mapping_block(node_value64(mem_block(m, first_leaf(m, 0)), 0));

    bitmap_set(mem_block(m, b), e, 0);
    block_seal(BLOCK_BITMAP, mem_block(m, b), b);
}

static void
count_of_nobody(struct mem_device *m)
{
    struct superblock sb = superblock_of(m);
    mblock_t b = first_bitmap(m);
    uint32_t e = bitmap_find_free(mem_block(m, b), 0, 16320);

    uint8_t *index = mem_block(m, sb.data_sm.bitmap_root);
    struct index_entry entry;

    bitmap_set(mem_block(m, b), e, 1);
    block_seal(BLOCK_BITMAP, mem_block(m, b), b);
    index_entry_decode(&entry, node_value(index, 0));
    entry.nr_free--;
    index_entry_encode(&entry, node_value_rw(index, 0));
    seal_node(m, sb.data_sm.bitmap_root);
    sb.data_sm.nr_allocated++;
    put_superblock(m, &sb);
}

static void
counts_beyond_the_end(struct mem_device *m)
{
    mblock_t b = first_bitmap(m);

    bitmap_set(mem_block(m, b), 16319, 1);
    block_seal(BLOCK_BITMAP, mem_block(m, b), b);
}

static void
three_without_overflow(struct mem_device *m)
{
    mblock_t b = first_bitmap(m);
    uint32_t e = (uint32_t)mapping_block(node_value64(mem_block(m, first_leaf(m, 0)), 0));

    bitmap_set(mem_block(m, b), e, 3);
    block_seal(BLOCK_BITMAP, mem_block(m, b), b);
}

static void
nr_allocated_wrong(struct mem_device *m)
{
    struct superblock sb = superblock_of(m);

    sb.data_sm.nr_allocated += 2;
    put_superblock(m, &sb);
}

static void
root_of_itself(struct mem_device *m)
{
    struct superblock sb = superblock_of(m);
    uint8_t *node = mem_block(m, sb.data_mapping_root);

    store_le64(node_value_rw(node, 0), sb.data_mapping_root);
    seal_node(m, sb.data_mapping_root);
}

static void
internal_cycle(struct mem_device *m)
{
    mblock_t b = device_root(m, 0);
    uint8_t *node = mem_block(m, b);

    node_init(node, false, 252, 8);
    node_set_nr_entries(node, 3);
    for (uint32_t i = 0; i < 3; i++) {
        node_set_key(node, i, 10 * i);
        store_le64(node_value_rw(node, i), b);
    }
    seal_node(m, b);
}

static void
details_used_as_mappings(struct mem_device *m)
{
    struct superblock sb = superblock_of(m);
    uint8_t *node = mem_block(m, sb.data_mapping_root);

    store_le64(node_value_rw(node, 0), sb.device_details_root);
    seal_node(m, sb.data_mapping_root);
}

static void
index_block_lost(struct mem_device *m)
{
    memset(mem_block(m, superblock_of(m).metadata_sm.bitmap_root), 0, 4096);
}

static const struct damage {
    const char *pool;
    void (*make)(struct mem_device *m);
    enum report_class class;
    enum report_place place;
    const char *words;
} damages[] = {
    {"few-thins", lose_superblock, REPORT_DAMAGE, REPORT_AT_SUPERBLOCK,
     "no thin metadata"},
    {"few-thins", version_9, REPORT_DAMAGE, REPORT_AT_SUPERBLOCK, "version 9"},
    {"few-thins", too_many_metadata_blocks, REPORT_DAMAGE, REPORT_AT_SUPERBLOCK,
     "1029 metadata blocks are recorded, the device has 1024"},
    {"few-thins", absurd_data_size, REPORT_DAMAGE, REPORT_AT_SUPERBLOCK,
     "cannot be counted"},
    {"few-thins", root_outside, REPORT_DAMAGE, REPORT_AT_DETAILS, "outside 1 to 1023"},
    {"few-thins", wrong_own_number, REPORT_DAMAGE, REPORT_AT_MAPPING, "says that it is"},
    {"few-thins", keys_out_of_order, REPORT_DAMAGE, REPORT_AT_MAPPING, "follows key"},
    {"few-thins", too_many_entries, REPORT_DAMAGE, REPORT_AT_MAPPING, "253 entries"},
    {"few-thins", data_block_outside, REPORT_DAMAGE, REPORT_AT_MAPPING,
     "1073741824 of 640"},
    {"few-thins", time_of_the_future, REPORT_NOTE, REPORT_AT_MAPPING, "up to 9999"},
    {"few-thins", mapped_blocks_wrong, REPORT_DAMAGE, REPORT_AT_DETAILS,
     "device 1: 41 mapped blocks are recorded, its tree holds 40"},
    {"few-thins", details_missing, REPORT_DAMAGE, REPORT_AT_DETAILS, "no details"},
    {"few-thins", mapping_tree_missing, REPORT_DAMAGE, REPORT_AT_TOP, "no mapping tree"},
    {"few-thins", count_too_low, REPORT_DAMAGE, REPORT_AT_DATA_SM,
     "has a count of 0, 1 pointers"},
    {"few-thins", count_of_nobody, REPORT_LEAK, REPORT_AT_DATA_SM, "more often"},
    {"few-thins", counts_beyond_the_end, REPORT_DAMAGE, REPORT_AT_DATA_SM,
     "beyond the last"},
    {"few-thins", three_without_overflow, REPORT_DAMAGE, REPORT_AT_DATA_SM,
     "no entry in the overflow tree"},
    {"few-thins", nr_allocated_wrong, REPORT_DAMAGE, REPORT_AT_DATA_SM,
     "recorded as allocated"},
    {"few-thins", root_of_itself, REPORT_DAMAGE, REPORT_AT_TOP, "is used as"},
    {"few-thins", internal_cycle, REPORT_DAMAGE, REPORT_AT_MAPPING, "is used as height"},
    {"few-thins", details_used_as_mappings, REPORT_DAMAGE, REPORT_AT_DETAILS,
     "is used as"},
    {"few-thins", index_block_lost, REPORT_DAMAGE, REPORT_AT_METADATA_SM, "index block"},
};
#define NR_DAMAGES ((int)(sizeof(damages) / sizeof(damages[0])))

START_TEST(each_damage_is_found_and_named)
{
    const struct damage *d = &damages[_i];
    struct mem_device m = fixture_pool(d->pool);
    struct outcome o;

    d->make(&m);
    check_all(&m, &o);
    assert_found(&o, d->class, d->place, d->words);
    outcome_fini(&o);
    free(m.bytes);
}
END_TEST

START_TEST(space_maps_are_made_anew_from_the_trees)
{
    static const struct {
        const char *pool;
        void (*make)(struct mem_device *m);
    } mendable[] = {
        {"snapshots", count_too_low},      {"held-root", count_of_nobody},
        {"few-thins", nr_allocated_wrong}, {"discards", three_without_overflow},
        {"snapshots", index_block_lost},   {"one-entry-root", counts_beyond_the_end},
    };
    struct mem_device m = fixture_pool(mendable[_i].pool);
    uint8_t trailer[SUPERBLOCK_TRAILER_BYTES];
    struct superblock sb = superblock_of(&m);
    struct outcome o;
    struct meta_source *src;
    struct thin_error err;
    int r;

    memset(sb.trailer, 0xa7, sizeof(sb.trailer));
    memcpy(trailer, sb.trailer, sizeof(trailer));
    put_superblock(&m, &sb);
    mendable[_i].make(&m);
    thin_error_init(&err);
    check_all(&m, &o);
    ck_assert_uint_gt(o.rep.nr, 0);
    src = mem_open(&m);
    r = mend_counts(src, &o.rep, &o.res, &err);
    ck_assert_msg(r == 0, "%s", err.text);
    source_close(src);
    outcome_fini(&o);
    check_all(&m, &o);
    ck_assert_msg(o.rep.nr == 0, "%s", o.rep.nr ? o.rep.findings[0].text : "");
    outcome_fini(&o);
    sb = superblock_of(&m);
    ck_assert_mem_eq(sb.trailer, trailer, sizeof(trailer));
    free(m.bytes);
}
END_TEST

START_TEST(mending_that_fails_leaves_the_old_state)
{
    struct mem_device m = fixture_pool("held-root");
    struct outcome o;
    struct meta_source *src;
    uint8_t *before;

    count_of_nobody(&m);
    before = malloc(METADATA_BLOCK_SIZE);
    memcpy(before, m.bytes, METADATA_BLOCK_SIZE);
    for (uint64_t n = 1;; n++) {
        int r;

        check_all(&m, &o);
        src = mem_open(&m);
        m.nr_writes = 0;
        m.fail_write = n;
        r = mend_counts(src, &o.rep, &o.res, NULL);
        source_close(src);
        outcome_fini(&o);
        if (r == 0)
            break;
        ck_assert_int_eq(r, -EIO);
        ck_assert_mem_eq(before, m.bytes, METADATA_BLOCK_SIZE);
        check_all(&m, &o);
        ck_assert_uint_eq(o.rep.nr_class[REPORT_DAMAGE], 0);
        outcome_fini(&o);
    }
    free(before);
    free(m.bytes);
}
END_TEST

START_TEST(wrong_numbers_of_mapped_blocks_are_mended)
{
    static const char *const pools[] = {"few-thins", "snapshots", "many-thins"};
    struct mem_device m = fixture_pool(pools[_i]);
    struct superblock sb = superblock_of(&m);
    struct outcome o;
    struct meta_source *src;
    struct thin_error err;
    struct device_details before, after;
    uint8_t *leaf = mem_block(&m, sb.device_details_root);
    int r;

    while (!node_is_leaf(leaf))
        leaf = mem_block(&m, node_value64(leaf, 0));
    device_details_decode(&before, node_value(leaf, 0));
    after = before;
    after.mapped_blocks += 3;
    device_details_encode(&after, node_value_rw(leaf, 0));
    block_seal(BLOCK_NODE, leaf, (mblock_t)((leaf - m.bytes) / METADATA_BLOCK_SIZE));
    count_too_low(&m); /* the space maps are mended by the same write */
    thin_error_init(&err);
    check_all(&m, &o);
    ck_assert_uint_eq(o.res.nr_miscounts, 1);
    ck_assert_uint_eq(o.res.miscounts[0].mapped_blocks, before.mapped_blocks);
    src = mem_open(&m);
    r = mend_counts(src, &o.rep, &o.res, &err);
    ck_assert_msg(r == 0, "%s", err.text);
    source_close(src);
    outcome_fini(&o);
    check_all(&m, &o);
    ck_assert_msg(o.rep.nr == 0, "%s", o.rep.nr ? o.rep.findings[0].text : "");
    ck_assert_uint_eq(o.res.nr_miscounts, 0);
    outcome_fini(&o);
    sb = superblock_of(&m);
    leaf = mem_block(&m, sb.device_details_root);
    while (!node_is_leaf(leaf))
        leaf = mem_block(&m, node_value64(leaf, 0));
    device_details_decode(&after, node_value(leaf, 0));
    ck_assert_mem_eq(&after, &before, sizeof(after));
    free(m.bytes);
}
END_TEST

START_TEST(mapped_blocks_that_the_held_snapshot_shares_are_left_alone)
{
    struct mem_device m = fixture_pool("held-root");
    struct superblock sb = superblock_of(&m);
    struct superblock held;
    struct outcome o;
    struct meta_source *src;
    uint8_t *leaf;

    superblock_decode(&held, mem_block(&m, sb.held_root));
    leaf = mem_block(&m, held.device_details_root);
    store_le64(node_value_rw(leaf, 0), 77777);
    seal_node(&m, held.device_details_root);
    check_all(&m, &o);
    ck_assert_uint_gt(o.rep.nr_class[REPORT_DAMAGE], 0);
    src = mem_open(&m);
    ck_assert_int_eq(mend_counts(src, &o.rep, &o.res, NULL), -THIN_E_INVALID);
    source_close(src);
    outcome_fini(&o);
    free(m.bytes);
}
END_TEST

START_TEST(damage_in_trees_is_not_mended_in_place)
{
    struct mem_device m = fixture_pool("few-thins");
    struct outcome o;
    struct meta_source *src;

    /* A good number of mapped blocks cannot be known either. */
    mapped_blocks_wrong(&m);
    mem_block(&m, first_leaf(&m, 0))[100] ^= 1;
    check_all(&m, &o);
    src = mem_open(&m);
    ck_assert_int_eq(mend_counts(src, &o.rep, &o.res, NULL), -THIN_E_INVALID);
    source_close(src);
    outcome_fini(&o);
    free(m.bytes);
}
END_TEST

START_TEST(needs_check_is_cleared_and_nothing_else)
{
    struct mem_device m = fixture_pool("needs-check");
    struct meta_source *src = mem_open(&m);
    uint8_t *before = malloc(m.len);

    memcpy(before, m.bytes, m.len);
    ck_assert_int_eq(mend_clear_needs_check(src, NULL), 0);
    source_close(src);
    ck_assert_uint_eq(m.nr_writes, 1);
    /* Checksum and flags are the first eight bytes. */
    ck_assert_uint_eq(superblock_of(&m).flags, 0);
    ck_assert_mem_eq(before + 8, m.bytes + 8, m.len - 8);
    ck_assert_int_eq(block_check(BLOCK_SUPERBLOCK, m.bytes, 0, NULL), 0);
    free(before);
    free(m.bytes);
}
END_TEST

START_TEST(leaks_are_not_told_where_damage_may_hide_the_user)
{
    struct mem_device m = fixture_pool("discards");
    struct outcome o;

    m.bad_block = first_leaf(&m, 0);
    check_all(&m, &o);
    ck_assert_uint_eq(o.rep.nr_class[REPORT_LEAK], 0);
    ck_assert_uint_eq(o.res.leaked_data, 0);
    ck_assert_uint_gt(o.res.unreached_data, 0);
    outcome_fini(&o);
    free(m.bytes);
}
END_TEST

START_TEST(the_held_snapshot_can_be_checked_alone)
{
    struct mem_device m = fixture_pool("held-root");
    struct check_options opts = {.metadata_snap = true};
    struct outcome o;

    check_with(&m, &opts, &o);
    ck_assert_uint_eq(o.rep.nr, 0);
    outcome_fini(&o);
    /* Damage to the live tree alone does not concern it. */
    memset(mem_block(&m, superblock_of(&m).data_mapping_root), 1, 4096);
    check_with(&m, &opts, &o);
    ck_assert_uint_eq(o.rep.nr, 0);
    outcome_fini(&o);
    check_all(&m, &o);
    ck_assert_uint_gt(o.rep.nr_class[REPORT_DAMAGE], 0);
    outcome_fini(&o);
    free(m.bytes);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("offline check");
    TCase *tc = tcase_create("check");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, healthy_pools_have_no_findings, 0, NR_FIXTURE_POOLS);
    tcase_add_test(tc, needs_check_alone_is_no_damage);
    tcase_add_test(tc, any_flipped_byte_of_a_used_block_is_noticed);
    tcase_add_test(tc, leaves_that_nothing_points_to_are_not_counted);
    tcase_add_test(tc, a_leaf_that_was_counted_and_is_lost_since_ends_the_check);
    tcase_add_test(tc, an_unreadable_block_is_named_with_its_volume_and_range);
    tcase_add_loop_test(tc, each_damage_is_found_and_named, 0, NR_DAMAGES);
    tcase_add_loop_test(tc, space_maps_are_made_anew_from_the_trees, 0, 6);
    tcase_add_test(tc, mending_that_fails_leaves_the_old_state);
    tcase_add_loop_test(tc, wrong_numbers_of_mapped_blocks_are_mended, 0, 3);
    tcase_add_test(tc, mapped_blocks_that_the_held_snapshot_shares_are_left_alone);
    tcase_add_test(tc, damage_in_trees_is_not_mended_in_place);
    tcase_add_test(tc, needs_check_is_cleared_and_nothing_else);
    tcase_add_test(tc, leaks_are_not_told_where_damage_may_hide_the_user);
    tcase_add_test(tc, the_held_snapshot_can_be_checked_alone);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
