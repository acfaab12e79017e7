/* The codecs: record and page. Layouts in catalogue.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/base/crc32c.h"
#include "core/pool/catalogue.h"

/* ---- records ----------------------------------------------------------------------------- */

/*        tag  field            of struct catalogue_record */
#define CATALOGUE_NUMBERS(X) \
    X(1, dev_id)             \
    X(2, flags)              \
    X(3, uid)                \
    X(4, parent_uid)         \
    X(5, size)               \
    X(6, created)            \
    X(7, transaction_id)     \
    X(8, creation_time)      \
    X(9, reserve)            \
    X(10, quota)             \
    X(11, epoch)             \
    X(12, session)           \
    X(16, origin_size)
#define CATALOGUE_STRINGS(X)           \
    X(13, name, THIN_NAME_MAX)         \
    X(14, origin, POOL_ORIGIN_MAX - 1) \
    X(15, holder, POOL_HOLDER_MAX - 1) \
    X(17, origin_identity, POOL_ORIGIN_IDENTITY_MAX - 1)

enum { RECORD_HEADER = 3, FIELD_HEADER = 3 };

struct writer {
    uint8_t *bytes;
    uint32_t pos;
    bool full;
};

static void
put_field(struct writer *w, uint8_t tag, const void *value, size_t len_bytes)
{
    if (len_bytes == 0 || w->full)
        return;
    if (len_bytes > CATALOGUE_PAYLOAD_BYTES - FIELD_HEADER - w->pos) {
        w->full = true;
        return;
    }
    w->bytes[w->pos] = tag;
    store_le16(w->bytes + w->pos + 1, (uint16_t)len_bytes);
    memcpy(w->bytes + w->pos + FIELD_HEADER, value, len_bytes);
    w->pos += (uint32_t)(FIELD_HEADER + len_bytes);
}

static void
put_number(struct writer *w, uint8_t tag, uint64_t value)
{
    uint8_t bytes[8];
    size_t n = 8;

    store_le64(bytes, value);
    while (n > 0 && bytes[n - 1] == 0)
        n--;
    put_field(w, tag, bytes, n);
}

static void
end_record(struct writer *w, enum catalogue_kind kind)
{
    store_le16(w->bytes, (uint16_t)(w->pos - RECORD_HEADER));
    w->bytes[2] = (uint8_t)kind;
}

int
catalogue_encode_record(const struct catalogue_record *record, uint8_t *ret,
                        struct thin_error *err)
{
    struct writer w = {.bytes = ret, .pos = RECORD_HEADER};

#define PUT_NUMBER(tag, field) put_number(&w, (tag), record->field);
#define PUT_STRING(tag, field, max) \
    put_field(&w, (tag), record->field, record->field ? strlen(record->field) : 0);
    CATALOGUE_NUMBERS(PUT_NUMBER)
    CATALOGUE_STRINGS(PUT_STRING)
#undef PUT_NUMBER
#undef PUT_STRING
    if (record->unknown_bytes > CATALOGUE_PAYLOAD_BYTES - w.pos)
        w.full = true;
    if (w.full)
        return thin_fail(err, -THIN_E_LIMIT,
                         "the record of device %u is longer than a page", record->dev_id);
    if (record->unknown_bytes)
        memcpy(w.bytes + w.pos, record->unknown, record->unknown_bytes);
    w.pos += record->unknown_bytes;
    end_record(&w, CATALOGUE_VOLUME);
    return (int)w.pos;
}

uint32_t
catalogue_encode_tombstone(uint32_t dev_id, uint8_t *ret)
{
    struct writer w = {.bytes = ret, .pos = RECORD_HEADER};

    /* Id 0 is a device like any other: a tombstone always has its field. */
    put_field(&w, 1,
              (uint8_t[4]){(uint8_t)dev_id, (uint8_t)(dev_id >> 8),
                           (uint8_t)(dev_id >> 16), (uint8_t)(dev_id >> 24)},
              4);
    end_record(&w, CATALOGUE_TOMBSTONE);
    return w.pos;
}

uint32_t
catalogue_encode_pool(const struct catalogue_pool_record *record, uint8_t *ret)
{
    struct writer w = {.bytes = ret, .pos = RECORD_HEADER};

    put_number(&w, 1, record->created);
    put_number(&w, 2, record->imported);
    end_record(&w, CATALOGUE_POOL);
    return w.pos;
}

static bool
get_number(const uint8_t *value, uint32_t len_bytes, uint64_t *ret)
{
    uint8_t bytes[8] = {0};

    if (len_bytes > sizeof(bytes))
        return false;
    memcpy(bytes, value, len_bytes);
    *ret = load_le64(bytes);
    return true;
}

static int
get_string(const uint8_t *value, uint32_t len_bytes, uint32_t max_bytes, char **ret)
{
    char *copy;

    if (len_bytes > max_bytes || memchr(value, 0, len_bytes))
        return -THIN_E_CATALOGUE;
    copy = malloc((size_t)len_bytes + 1);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, value, len_bytes);
    copy[len_bytes] = '\0';
    free(*ret);
    *ret = copy;
    return 0;
}

static int
keep_unknown(struct catalogue_record *record, const uint8_t *field, uint32_t len_bytes)
{
    uint8_t *grown;

    if (record->unknown_bytes + len_bytes > CATALOGUE_UNKNOWN_MAX)
        return -THIN_E_CATALOGUE;
    grown = realloc(record->unknown, record->unknown_bytes + len_bytes);
    if (!grown)
        return -ENOMEM;
    memcpy(grown + record->unknown_bytes, field, len_bytes);
    record->unknown = grown;
    record->unknown_bytes += len_bytes;
    return 0;
}

static int
get_field(struct catalogue_record *record, const uint8_t *field, uint32_t len_bytes)
{
    const uint8_t *value = field + FIELD_HEADER;
    uint64_t n;

    switch (field[0]) {
#define GET_NUMBER(tag, member)                         \
    case tag:                                           \
        if (!get_number(value, len_bytes, &n))          \
            return -THIN_E_CATALOGUE;                   \
        record->member = (__typeof__(record->member))n; \
        if (record->member != n)                        \
            return -THIN_E_CATALOGUE;                   \
        return 0;
#define GET_STRING(tag, member, max) \
    case tag:                        \
        return get_string(value, len_bytes, (max), &record->member);
        CATALOGUE_NUMBERS(GET_NUMBER)
        CATALOGUE_STRINGS(GET_STRING)
#undef GET_NUMBER
#undef GET_STRING
    default:
        return keep_unknown(record, field, FIELD_HEADER + len_bytes);
    }
}

static int
get_pool_field(struct catalogue_pool_record *record, const uint8_t *field,
               uint32_t len_bytes)
{
    uint64_t n;

    if (field[0] != 1 && field[0] != 2)
        return 0;
    if (!get_number(field + FIELD_HEADER, len_bytes, &n))
        return -THIN_E_CATALOGUE;
    if (field[0] == 1)
        record->created = n;
    else
        record->imported = n != 0;
    return 0;
}

/* What a volume's record must be, whoever wrote it: memory relies on it. */
static bool
record_is_sound(const struct catalogue_record *record)
{
    if (record->dev_id > DEV_ID_MAX || record->size % 512)
        return false;
    if (record->flags & RECORD_DELETING)
        return true;
    return record->uid != 0 && name_check(record->name, strlen(record->name), NULL) == 0;
}

static int
decode_fields(const uint8_t *body, uint32_t len_bytes, struct catalogue_item *item)
{
    uint32_t pos = 0;
    uint64_t n;
    int r = 0;

    while (r == 0 && pos < len_bytes) {
        uint32_t value_bytes;

        if (len_bytes - pos < FIELD_HEADER)
            return -THIN_E_CATALOGUE;
        value_bytes = load_le16(body + pos + 1);
        if (value_bytes > len_bytes - pos - FIELD_HEADER)
            return -THIN_E_CATALOGUE;
        if (item->kind == CATALOGUE_VOLUME) {
            r = get_field(item->record, body + pos, value_bytes);
        } else if (item->kind == CATALOGUE_POOL) {
            r = get_pool_field(&item->pool, body + pos, value_bytes);
        } else if (item->kind == CATALOGUE_TOMBSTONE && body[pos] == 1) {
            if (!get_number(body + pos + FIELD_HEADER, value_bytes, &n) || n > DEV_ID_MAX)
                return -THIN_E_CATALOGUE;
            item->dev_id = (uint32_t)n;
        }
        pos += FIELD_HEADER + value_bytes;
    }
    return r;
}

int
catalogue_decode(const uint8_t *payload, uint32_t len_bytes, uint32_t *pos,
                 struct catalogue_item *ret, struct thin_error *err)
{
    struct catalogue_item item = {.record = NULL};
    uint32_t body_bytes;
    int r;

    if (len_bytes - *pos < RECORD_HEADER)
        return thin_fail(err, -THIN_E_CATALOGUE, "record cut short at byte %u", *pos);
    body_bytes = load_le16(payload + *pos);
    if (body_bytes > len_bytes - *pos - RECORD_HEADER)
        return thin_fail(err, -THIN_E_CATALOGUE, "record cut short at byte %u", *pos);

    item.kind = payload[*pos + 2];
    item.encoded_bytes = RECORD_HEADER + body_bytes;
    if (item.kind == CATALOGUE_VOLUME) {
        item.record = catalogue_record_create(0, "");
        if (!item.record)
            return thin_fail_code(err, -ENOMEM, "decode a record");
        item.record->encoded_bytes = item.encoded_bytes;
    }
    r = decode_fields(payload + *pos + RECORD_HEADER, body_bytes, &item);
    if (r == 0 && item.record && !record_is_sound(item.record))
        r = -THIN_E_CATALOGUE;
    if (r < 0) {
        catalogue_record_destroy(item.record);
        return thin_fail_code(err, r, "decode the record at byte %u", *pos);
    }
    *pos += item.encoded_bytes;
    *ret = item;
    return 0;
}

/* ---- pages ------------------------------------------------------------------------------- */

enum {
    PAGE_MAGIC = 0,
    PAGE_VERSION = 8,
    PAGE_LENGTH = 12,
    PAGE_UUID = 16,
    PAGE_ADDRESS = 32,
    PAGE_SEQUENCE = 40,
    PAGE_PREVIOUS = 48,
    PAGE_CRC = 52,
};

static uint32_t
page_crc(const uint8_t *page)
{
    static const uint8_t zeros[4];
    uint32_t crc = crc32c_update(CRC32C_INIT, page, PAGE_CRC);

    crc = crc32c_update(crc, zeros, sizeof(zeros));
    crc = crc32c_update(crc, page + PAGE_CRC + 4, CATALOGUE_PAGE_BYTES - PAGE_CRC - 4);
    return ~crc;
}

uint32_t
catalogue_page_seal(uint8_t *page, const uint8_t uuid[16], uint64_t address,
                    uint64_t sequence, uint32_t previous_crc, uint32_t len_bytes)
{
    uint32_t crc;

    memset(page, 0, CATALOGUE_HEADER_BYTES);
    memset(page + CATALOGUE_HEADER_BYTES + len_bytes, 0,
           CATALOGUE_PAYLOAD_BYTES - len_bytes);
    store_le64(page + PAGE_MAGIC, CATALOGUE_PAGE_MAGIC);
    store_le32(page + PAGE_VERSION, CATALOGUE_VERSION);
    store_le32(page + PAGE_LENGTH, len_bytes);
    memcpy(page + PAGE_UUID, uuid, 16);
    store_le64(page + PAGE_ADDRESS, address);
    store_le64(page + PAGE_SEQUENCE, sequence);
    store_le32(page + PAGE_PREVIOUS, previous_crc);
    crc = page_crc(page);
    store_le32(page + PAGE_CRC, crc);
    return crc;
}

int
catalogue_page_judge(const uint8_t *page, const uint8_t uuid[16], uint64_t address,
                     uint64_t sequence, uint32_t previous_crc, uint32_t *ret_crc,
                     uint32_t *ret_len_bytes, struct thin_error *err)
{
    uint32_t crc = load_le32(page + PAGE_CRC);
    const char *wrong = NULL;

    if (load_le64(page + PAGE_MAGIC) != CATALOGUE_PAGE_MAGIC)
        wrong = "magic";
    else if (crc != page_crc(page))
        wrong = "checksum";
    else if (load_le32(page + PAGE_VERSION) != CATALOGUE_VERSION)
        wrong = "version";
    else if (memcmp(page + PAGE_UUID, uuid, 16) != 0)
        wrong = "pool";
    else if (load_le64(page + PAGE_ADDRESS) != address)
        wrong = "address";
    else if (load_le64(page + PAGE_SEQUENCE) != sequence)
        wrong = "sequence";
    else if (load_le32(page + PAGE_PREVIOUS) != previous_crc)
        wrong = "predecessor";
    else if (load_le32(page + PAGE_LENGTH) > CATALOGUE_PAYLOAD_BYTES)
        wrong = "length";
    if (wrong)
        return thin_fail(err, -THIN_E_CATALOGUE, "catalogue page %llu has a wrong %s",
                         (unsigned long long)address, wrong);
    *ret_crc = crc;
    *ret_len_bytes = load_le32(page + PAGE_LENGTH);
    return 0;
}

bool
catalogue_page_looks(const uint8_t *page, struct catalogue_page_header *ret)
{
    if (load_le64(page + PAGE_MAGIC) != CATALOGUE_PAGE_MAGIC ||
        load_le32(page + PAGE_CRC) != page_crc(page) ||
        load_le32(page + PAGE_VERSION) != CATALOGUE_VERSION)
        return false;
    memcpy(ret->uuid, page + PAGE_UUID, 16);
    ret->address = load_le64(page + PAGE_ADDRESS);
    ret->sequence = load_le64(page + PAGE_SEQUENCE);
    ret->previous_crc = load_le32(page + PAGE_PREVIOUS);
    ret->crc = load_le32(page + PAGE_CRC);
    return true;
}
