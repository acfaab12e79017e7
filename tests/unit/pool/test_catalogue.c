/* The catalogue's codecs and its records in memory, without a pool. */
#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/base/random.h"
#include "core/pool/catalogue.h"

static struct thin_random rng;
static const uint8_t uuid[16] = "0123456789abcdef";
static const uint8_t other_uuid[16] = "0123456789abcdeF";

static void
set_up(void)
{
    const char *text = getenv("SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 20240607;

    printf("seed %" PRIu64 "\n", seed);
    random_seed(&rng, seed);
}

static struct catalogue_record *
make(uint32_t dev_id, const char *name)
{
    struct catalogue_record *record = catalogue_record_create(dev_id, name);

    ck_assert_ptr_nonnull(record);
    record->uid = 1000 + dev_id;
    record->size = 512;
    return record;
}

static struct catalogue_record *
full_record(void)
{
    struct catalogue_record *record = make(16777215, "a-volume.with+all_1");

    record->flags = RECORD_READ_ONLY | RECORD_TRIMMING | RECORD_SHARED;
    record->uid = UINT64_MAX;
    record->parent_uid = 1;
    record->size = 1ull << 50;
    record->created = 1700000000;
    record->transaction_id = 77;
    record->creation_time = 16777214;
    record->reserve = 4096;
    record->quota = 1ull << 63;
    record->epoch = 9;
    record->session = 0x1122334455667788;
    ck_assert_int_eq(catalogue_record_set(&record->origin, "nbd://host/a b"), 0);
    ck_assert_int_eq(catalogue_record_set(&record->holder, "cert:web-1"), 0);
    return record;
}

static void
assert_same(const struct catalogue_record *a, const struct catalogue_record *b)
{
    ck_assert_uint_eq(a->dev_id, b->dev_id);
    ck_assert_uint_eq(a->flags, b->flags);
    ck_assert_uint_eq(a->uid, b->uid);
    ck_assert_uint_eq(a->parent_uid, b->parent_uid);
    ck_assert_uint_eq(a->size, b->size);
    ck_assert_uint_eq(a->created, b->created);
    ck_assert_uint_eq(a->transaction_id, b->transaction_id);
    ck_assert_uint_eq(a->creation_time, b->creation_time);
    ck_assert_uint_eq(a->reserve, b->reserve);
    ck_assert_uint_eq(a->quota, b->quota);
    ck_assert_uint_eq(a->epoch, b->epoch);
    ck_assert_uint_eq(a->session, b->session);
    ck_assert_str_eq(a->name, b->name);
    ck_assert_pstr_eq(a->origin, b->origin);
    ck_assert_pstr_eq(a->holder, b->holder);
    ck_assert_uint_eq(a->unknown_bytes, b->unknown_bytes);
    if (a->unknown_bytes)
        ck_assert_mem_eq(a->unknown, b->unknown, a->unknown_bytes);
}

/* ---- records ---------------------------------------------------------------------------- */

START_TEST(a_record_comes_back_as_it_was_written)
{
    struct catalogue_record *record = full_record();
    uint8_t bytes[CATALOGUE_PAYLOAD_BYTES];
    struct catalogue_item item;
    uint32_t pos = 0;
    int n = catalogue_encode_record(record, bytes, NULL);

    ck_assert_int_gt(n, 0);
    ck_assert_int_eq(catalogue_decode(bytes, (uint32_t)n, &pos, &item, NULL), 0);
    ck_assert_uint_eq(pos, (uint32_t)n);
    ck_assert_int_eq(item.kind, CATALOGUE_VOLUME);
    assert_same(record, item.record);
    ck_assert_uint_eq(item.record->encoded_bytes, (uint32_t)n);
    catalogue_record_destroy(record);
    catalogue_record_destroy(item.record);
}
END_TEST

START_TEST(fields_of_a_later_version_are_kept)
{
    struct catalogue_record *record = make(1, "v");
    uint8_t bytes[CATALOGUE_PAYLOAD_BYTES];
    static uint8_t again[CATALOGUE_PAYLOAD_BYTES];
    struct catalogue_item item;
    uint32_t pos = 0;
    int n = catalogue_encode_record(record, bytes, NULL), m;

    ck_assert_int_gt(n, 0);
    memcpy(bytes + n,
           "\xc8\x04\x00"
           "ABCD",
           7);
    store_le16(bytes, (uint16_t)(load_le16(bytes) + 7));
    n += 7;
    ck_assert_int_eq(catalogue_decode(bytes, (uint32_t)n, &pos, &item, NULL), 0);
    m = catalogue_encode_record(item.record, again, NULL);
    ck_assert_int_eq(m, n);
    ck_assert_mem_eq(again, bytes, (size_t)n);
    catalogue_record_destroy(record);
    catalogue_record_destroy(item.record);
}
END_TEST

START_TEST(records_of_an_unknown_kind_are_passed_over)
{
    const uint8_t bytes[] = {2, 0, 99, 7, 7, 5, 0, 2, 1, 2, 0, 5, 1};
    struct catalogue_item item;
    uint32_t pos = 0;

    ck_assert_int_eq(catalogue_decode(bytes, sizeof(bytes), &pos, &item, NULL),
                     -THIN_E_CATALOGUE);
    /* Its fields must be sound all the same: a body without any is. */
    const uint8_t good[] = {0, 0, 99, 5, 0, 2, 1, 2, 0, 5, 1};

    pos = 0;
    ck_assert_int_eq(catalogue_decode(good, sizeof(good), &pos, &item, NULL), 0);
    ck_assert_int_eq(item.kind, 99);
    ck_assert_int_eq(catalogue_decode(good, sizeof(good), &pos, &item, NULL), 0);
    ck_assert_int_eq(item.kind, CATALOGUE_TOMBSTONE);
    ck_assert_uint_eq(item.dev_id, 261);
    ck_assert_uint_eq(pos, sizeof(good));
}
END_TEST

START_TEST(a_tombstone_names_its_device_also_device_0)
{
    const uint32_t ids[] = {0, 1, 255, 256, 16777215};

    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        uint8_t bytes[64];
        struct catalogue_item item = {.dev_id = 12345};
        uint32_t pos = 0, n = catalogue_encode_tombstone(ids[i], bytes);

        ck_assert_int_eq(catalogue_decode(bytes, n, &pos, &item, NULL), 0);
        ck_assert_int_eq(item.kind, CATALOGUE_TOMBSTONE);
        ck_assert_uint_eq(item.dev_id, ids[i]);
    }
}
END_TEST

START_TEST(the_largest_record_fits_in_a_page_and_a_larger_one_is_refused)
{
    struct catalogue_record *record = full_record();
    uint8_t bytes[CATALOGUE_PAYLOAD_BYTES];
    char name[THIN_NAME_MAX + 1], origin[POOL_ORIGIN_MAX], holder[POOL_HOLDER_MAX];

    memset(name, 'n', sizeof(name));
    memset(origin, 'o', sizeof(origin));
    memset(holder, 'h', sizeof(holder));
    name[sizeof(name) - 1] = origin[sizeof(origin) - 1] = holder[sizeof(holder) - 1] = 0;
    ck_assert_int_eq(catalogue_record_set(&record->name, name), 0);
    ck_assert_int_eq(catalogue_record_set(&record->origin, origin), 0);
    ck_assert_int_eq(catalogue_record_set(&record->holder, holder), 0);
    record->unknown = calloc(1, CATALOGUE_UNKNOWN_MAX);
    record->unknown_bytes = CATALOGUE_UNKNOWN_MAX;
    ck_assert_int_gt(catalogue_encode_record(record, bytes, NULL), 0);
    record->unknown = realloc(record->unknown, 4000);
    memset(record->unknown, 0, 4000);
    record->unknown_bytes = 4000;
    ck_assert_int_eq(catalogue_encode_record(record, bytes, NULL), -THIN_E_LIMIT);
    catalogue_record_destroy(record);
}
END_TEST

START_TEST(unsound_records_are_refused)
{
    struct catalogue_record *record = make(1, "v");
    uint8_t bytes[CATALOGUE_PAYLOAD_BYTES];
    struct catalogue_item item;
    uint32_t pos;
    int n;

#define REFUSED()                                                             \
    n = catalogue_encode_record(record, bytes, NULL);                         \
    ck_assert_int_gt(n, 0);                                                   \
    pos = 0;                                                                  \
    ck_assert_int_eq(catalogue_decode(bytes, (uint32_t)n, &pos, &item, NULL), \
                     -THIN_E_CATALOGUE)

    record->size = 513;
    REFUSED();
    record->size = 512;
    record->uid = 0;
    REFUSED();
    record->uid = 1;
    record->name[0] = '/';
    REFUSED();
    record->name[0] = '\0';
    REFUSED();
    record->dev_id = DEV_ID_MAX + 1;
    record->flags = RECORD_DELETING;
    REFUSED();
    record->dev_id = 1;
    n = catalogue_encode_record(record, bytes, NULL);
    pos = 0;
    ck_assert_int_eq(catalogue_decode(bytes, (uint32_t)n, &pos, &item, NULL), 0);
    catalogue_record_destroy(item.record);
    catalogue_record_destroy(record);
}
END_TEST

/* Any bytes end in an item or a refusal; sanitizers watch. */
START_TEST(noise_never_crashes_the_decoder)
{
    struct catalogue_record *record = full_record();
    uint8_t bytes[CATALOGUE_PAYLOAD_BYTES];
    static uint8_t good[CATALOGUE_PAYLOAD_BYTES];
    int n = catalogue_encode_record(record, good, NULL);

    for (int i = 0; i < 20000; i++) {
        uint32_t len = (uint32_t)random_below(&rng, (uint64_t)n + 1), pos = 0;
        struct catalogue_item item;

        memcpy(bytes, good, sizeof(bytes));
        for (uint64_t k = random_below(&rng, 4); k > 0; k--)
            bytes[random_below(&rng, (uint64_t)n)] = (uint8_t)random_u64(&rng);
        while (pos < len) {
            item.record = NULL;
            if (catalogue_decode(bytes, len, &pos, &item, NULL) < 0)
                break;
            catalogue_record_destroy(item.record);
        }
    }
    catalogue_record_destroy(record);
}
END_TEST

/* ---- pages ------------------------------------------------------------------------------ */

START_TEST(any_flipped_bit_of_a_page_is_found)
{
    uint8_t page[CATALOGUE_PAGE_BYTES] = {0};
    uint32_t crc, found, len;

    memset(page + CATALOGUE_HEADER_BYTES, 0x5a, 500);
    crc = catalogue_page_seal(page, uuid, 7, 8, 9, 500);
    ck_assert_int_eq(catalogue_page_judge(page, uuid, 7, 8, 9, &found, &len, NULL), 0);
    ck_assert_uint_eq(found, crc);
    ck_assert_uint_eq(len, 500);
    for (size_t bit = 0; bit < 8 * sizeof(page); bit++) {
        page[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        ck_assert_int_eq(catalogue_page_judge(page, uuid, 7, 8, 9, &found, &len, NULL),
                         -THIN_E_CATALOGUE);
        page[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
}
END_TEST

START_TEST(a_page_of_another_place_pool_or_chain_is_refused)
{
    uint8_t page[CATALOGUE_PAGE_BYTES] = {0};
    uint32_t crc, len;

    catalogue_page_seal(page, uuid, 7, 8, 9, 0);
    ck_assert_int_eq(catalogue_page_judge(page, uuid, 7, 8, 9, &crc, &len, NULL), 0);
#define OTHER(...)                                                              \
    ck_assert_int_eq(catalogue_page_judge(page, __VA_ARGS__, &crc, &len, NULL), \
                     -THIN_E_CATALOGUE)
    OTHER(other_uuid, 7, 8, 9);
    OTHER(uuid, 6, 8, 9);
    OTHER(uuid, 7, 9, 9);
    OTHER(uuid, 7, 8, 8);
}
END_TEST

START_TEST(sealing_clears_what_is_behind_the_payload)
{
    uint8_t page[CATALOGUE_PAGE_BYTES];

    memset(page, 0xff, sizeof(page));
    catalogue_page_seal(page, uuid, 0, 1, 0, 10);
    ck_assert_uint_eq(page[CATALOGUE_HEADER_BYTES + 9], 0xff);
    for (size_t i = CATALOGUE_HEADER_BYTES + 10; i < sizeof(page); i++)
        ck_assert_uint_eq(page[i], 0);
}
END_TEST

START_TEST(a_trailer_comes_back_and_a_flipped_bit_makes_it_none)
{
    struct catalogue_trailer trailer = {
        .dev_id = 16777215,
        .root = {.first = 1 << 24, .nr_pages = 9, .last_crc = 10, .sequence = 1ull << 40},
        .generation = 3,
        .changes = 4,
        .incarnation = 1ull << 63,
        .owner_start = 5,
        .flags = CATALOGUE_UNRECORDED,
        .stamp = 6};
    struct catalogue_trailer got;
    uint8_t bytes[SUPERBLOCK_TRAILER_BYTES];
    bool found;

    memcpy(trailer.uuid, uuid, 16);
    memcpy(trailer.owner_host, other_uuid, 16);
    memcpy(trailer.owner_boot, uuid, 16);
    catalogue_trailer_encode(&trailer, bytes);
    memset(&got, 0, sizeof(got));
    ck_assert_int_eq(catalogue_trailer_decode(bytes, &got, &found, NULL), 0);
    ck_assert(found);
    ck_assert_mem_eq(got.uuid, trailer.uuid, 16);
    ck_assert_mem_eq(got.owner_host, trailer.owner_host, 16);
    ck_assert_mem_eq(got.owner_boot, trailer.owner_boot, 16);
    ck_assert_uint_eq(got.dev_id, trailer.dev_id);
    ck_assert_uint_eq(got.root.first, trailer.root.first);
    ck_assert_uint_eq(got.root.nr_pages, trailer.root.nr_pages);
    ck_assert_uint_eq(got.root.last_crc, trailer.root.last_crc);
    ck_assert_uint_eq(got.root.sequence, trailer.root.sequence);
    ck_assert_uint_eq(got.generation, trailer.generation);
    ck_assert_uint_eq(got.changes, trailer.changes);
    ck_assert_uint_eq(got.incarnation, trailer.incarnation);
    ck_assert_uint_eq(got.flags, trailer.flags);
    ck_assert_uint_eq(got.stamp, trailer.stamp);
    for (size_t bit = 0; bit < 8 * sizeof(bytes); bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        ck_assert_int_eq(catalogue_trailer_decode(bytes, &got, &found, NULL), 0);
        ck_assert(!found);
        bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    memset(bytes, 0, sizeof(bytes));
    ck_assert_int_eq(catalogue_trailer_decode(bytes, &got, &found, NULL), 0);
    ck_assert(!found);
}
END_TEST

/* ---- memory ------------------------------------------------------------------------------- */

START_TEST(records_are_found_by_name_id_and_uid_against_a_model)
{
    enum { NR = 700 };
    struct catalogue_records records;
    int name_of[NR]; /* -1: not there */
    char name[32];

    catalogue_records_init(&records);
    for (int i = 0; i < NR; i++)
        name_of[i] = -1;
    for (int step = 0; step < 20000; step++) {
        uint32_t id = (uint32_t)random_below(&rng, NR);
        int to = (int)random_below(&rng, 2 * NR);
        bool taken = false;

        for (int i = 0; i < NR; i++)
            taken |= name_of[i] == to;
        if (random_below(&rng, 3) == 0) {
            catalogue_records_remove(&records, id);
            name_of[id] = -1;
        } else if (!taken) {
            snprintf(name, sizeof(name), "v%d", to);
            ck_assert_int_eq(catalogue_records_reserve(&records, 1), 0);
            catalogue_records_put(&records, make(id, name));
            name_of[id] = to;
        }
    }
    for (uint32_t id = 0; id < NR; id++) {
        const struct catalogue_record *record = catalogue_by_id(&records, id);

        ck_assert_int_eq(record != NULL, name_of[id] >= 0);
        if (!record)
            continue;
        snprintf(name, sizeof(name), "v%d", name_of[id]);
        ck_assert_str_eq(record->name, name);
        ck_assert_ptr_eq(catalogue_by_name(&records, name), record);
        ck_assert_ptr_eq(catalogue_by_uid(&records, record->uid), record);
    }
    /* In order of names: each above the one before, and none left out. */
    uint64_t nr = 0;
    const struct catalogue_record *record, *before = NULL;

    while ((record = catalogue_next_name(&records, before ? before->name : NULL))) {
        if (before)
            ck_assert_int_gt(strcmp(record->name, before->name), 0);
        before = record;
        nr++;
    }
    ck_assert_uint_eq(nr, records.by_id.nr_items);
    ck_assert_uint_eq(records.virtual_bytes, 512 * nr);
    catalogue_records_fini(&records);
}
END_TEST

START_TEST(a_record_keeps_its_address_over_a_change)
{
    struct catalogue_records records;
    struct catalogue_record *record = make(5, "before");

    catalogue_records_init(&records);
    ck_assert_int_eq(catalogue_records_reserve(&records, 2), 0);
    catalogue_records_put(&records, record);
    catalogue_records_put(&records, make(5, "after"));
    ck_assert_ptr_eq(catalogue_by_id(&records, 5), record);
    ck_assert_str_eq(record->name, "after");
    ck_assert_ptr_null(catalogue_by_name(&records, "before"));
    catalogue_records_fini(&records);
}
END_TEST

START_TEST(a_deleting_record_frees_its_name_and_is_pending)
{
    struct catalogue_records records;
    struct catalogue_record *record;

    catalogue_records_init(&records);
    ck_assert_int_eq(catalogue_records_reserve(&records, 3), 0);
    catalogue_records_put(&records, make(5, "name"));
    record = make(5, "");
    record->flags = RECORD_DELETING;
    catalogue_records_put(&records, record);
    ck_assert_ptr_null(catalogue_by_name(&records, "name"));
    ck_assert_ptr_null(catalogue_next_name(&records, NULL));
    ck_assert_uint_eq(catalogue_next_pending(&records, 0)->dev_id, 5);
    ck_assert_ptr_null(catalogue_next_pending(&records, 6));
    catalogue_records_put(&records, make(6, "name"));
    ck_assert_uint_eq(catalogue_by_name(&records, "name")->dev_id, 6);
    catalogue_records_remove(&records, 5);
    ck_assert_ptr_null(catalogue_next_pending(&records, 0));
    catalogue_records_fini(&records);
}
END_TEST

START_TEST(while_loading_names_may_stand_twice_until_the_end)
{
    struct catalogue_records records;

    catalogue_records_init(&records);
    records.loading = true;
    ck_assert_int_eq(catalogue_records_reserve(&records, 4), 0);
    catalogue_records_put(&records, make(1, "a"));
    catalogue_records_put(&records, make(2, "a"));
    catalogue_records_put(&records, make(1, "b"));
    records.loading = false;
    ck_assert(catalogue_records_index(&records, 1));
    ck_assert(catalogue_records_index(&records, 2));
    ck_assert_uint_eq(catalogue_by_name(&records, "a")->dev_id, 2);
    catalogue_records_fini(&records);

    catalogue_records_init(&records);
    records.loading = true;
    ck_assert_int_eq(catalogue_records_reserve(&records, 4), 0);
    catalogue_records_put(&records, make(1, "a"));
    catalogue_records_put(&records, make(2, "a"));
    records.loading = false;
    ck_assert(catalogue_records_index(&records, 1));
    ck_assert(!catalogue_records_index(&records, 2));
    /* Undone by hand: it stands in one order only. */
    records.loading = true;
    catalogue_records_remove(&records, 2);
    records.loading = false;
    catalogue_records_fini(&records);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("catalogue");
    TCase *tcase = tcase_create("codecs and memory");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tcase, set_up, NULL);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_record_comes_back_as_it_was_written);
    tcase_add_test(tcase, fields_of_a_later_version_are_kept);
    tcase_add_test(tcase, records_of_an_unknown_kind_are_passed_over);
    tcase_add_test(tcase, a_tombstone_names_its_device_also_device_0);
    tcase_add_test(tcase, the_largest_record_fits_in_a_page_and_a_larger_one_is_refused);
    tcase_add_test(tcase, unsound_records_are_refused);
    tcase_add_test(tcase, noise_never_crashes_the_decoder);
    tcase_add_test(tcase, any_flipped_bit_of_a_page_is_found);
    tcase_add_test(tcase, a_page_of_another_place_pool_or_chain_is_refused);
    tcase_add_test(tcase, sealing_clears_what_is_behind_the_payload);
    tcase_add_test(tcase, a_trailer_comes_back_and_a_flipped_bit_makes_it_none);
    tcase_add_test(tcase, records_are_found_by_name_id_and_uid_against_a_model);
    tcase_add_test(tcase, a_record_keeps_its_address_over_a_change);
    tcase_add_test(tcase, a_deleting_record_frees_its_name_and_is_pending);
    tcase_add_test(tcase, while_loading_names_may_stand_twice_until_the_end);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
