/*
 * The catalogue: what dm-thin has no place for. Names, virtual sizes, parents, limits,
 * attachments and the state *deleting* are records; they live in memory, and as a log of
 * pages in a hidden thin device of the pool. Its root stands in the superblock's trailer
 * (core/ondisk/trailer.h), so a name and the metadata that it belongs to become durable by
 * the same sector.
 *
 * ---- page: 4096 bytes, little-endian ---------------------------------------------------
 *
 *     0  u64  magic           8  u32  version             12  u32  bytes of payload
 *    16  u8[16] pool UUID    32  u64  own address, in pages
 *    40  u64  sequence       48  u32  CRC of the page before (0 in the first)
 *    52  u32  CRC-32C of the page, this field as zeros    56  u64  zeros
 *    64  payload: records one after another, then zeros
 *
 * The pages of a root follow one another. Each holds the CRC of the one before and the
 * root holds the last one's, so a root's CRC vouches for all of its pages. What stands
 * behind the last page, or in the other area, is dead room, whatever it holds. The high
 * half of a sequence counts the areas written (it rises with each checkpoint), the low
 * half the pages in one.
 *
 * ---- record ------------------------------------------------------------------------------
 *
 *   u16 bytes of body, u8 kind (enum catalogue_kind), body: fields.
 *   A field: u8 tag (catalogue_page.c's tables), u16 bytes, value. Numbers are little-endian and
 *   as short as they can be; zeros, empty strings and false are not written. Fields of an
 *   unknown tag are kept and written again; records of an unknown kind are passed over.
 *   A volume's record replaces the earlier one of the same device id whole.
 *
 * This header: codecs and the records in memory, which know no pool. What the pool calls
 * stands in pool_private.h (catalogue_open ...). One thread: the pool's.
 */
#ifndef THIN_CORE_POOL_CATALOGUE_H
#define THIN_CORE_POOL_CATALOGUE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/ondisk/trailer.h"
#include "core/pool/catalogue_order.h"
#include "core/pool/pool.h"

#define CATALOGUE_PAGE_BYTES    4096u
#define CATALOGUE_HEADER_BYTES  64u
#define CATALOGUE_PAYLOAD_BYTES (CATALOGUE_PAGE_BYTES - CATALOGUE_HEADER_BYTES)
#define CATALOGUE_PAGE_MAGIC    0x3147504c54414354ull /* "TCATLPG1" */
#define CATALOGUE_UNKNOWN_MAX   512u /* bytes of fields that we do not know, a record */
#define CATALOGUE_CHANGE_MAX    (POOL_GROUP_MAX + 2u) /* records in one change */

enum catalogue_kind {
    CATALOGUE_VOLUME = 1,
    CATALOGUE_TOMBSTONE = 2, /* of a device id */
    CATALOGUE_POOL = 3,
};

/* Record flags, as they stand on disk. */
enum catalogue_flags {
    RECORD_DELETING = 1, /* has no name any more; its blocks are being given back */
    RECORD_READ_ONLY = 2,
    RECORD_PROTECTED = 4,
    RECORD_SIZE_UNKNOWN = 8,
    RECORD_TRIMMING = 16, /* what is beyond its size is being given back */
    RECORD_SHARED = 32,   /* the attachment is a shared one */
};

struct catalogue_record {
    uint32_t dev_id;
    uint32_t flags;
    uint64_t uid;        /* of the volume, for its whole life, whatever its device id */
    uint64_t parent_uid; /* 0: none */
    uint64_t size;       /* bytes */
    uint64_t created;    /* Unix seconds; 0: not known */
    /* The details' fields; a record stands only while they agree. */
    uint64_t transaction_id;
    uint32_t creation_time;
    uint64_t reserve, quota; /* bytes */
    uint64_t epoch, session; /* of the attachment */
    char *name;              /* "" while deleting */
    uint64_t origin_size;    /* bytes of the volume that the origin stands behind */
    char *origin, *holder;   /* NULL: none */
    char *origin_identity;   /* what the origin was when the volume was made */
    uint8_t *unknown;        /* fields that we do not know, encoded */
    uint32_t unknown_bytes;

    /* In memory only. */
    uint64_t exclusive;     /* data blocks, as exclusive_count found last */
    uint32_t encoded_bytes; /* its share of the log's live bytes; 0: not in the log */
};

/* Strings are copied. NULL when out of memory. */
struct catalogue_record *catalogue_record_create(uint32_t dev_id, const char *name);
struct catalogue_record *catalogue_record_copy(const struct catalogue_record *record);
void catalogue_record_destroy(struct catalogue_record *record);
/* Replaces a string; NULL or empty: none. -ENOMEM. */
int catalogue_record_set(char **field, const char *value);

/* ---- codecs: pure ------------------------------------------------------------------------ */

/* Bytes written to `ret`, which has room for a page's payload; -THIN_E_LIMIT if the
   record does not fit. */
int catalogue_encode_record(const struct catalogue_record *record, uint8_t *ret,
                            struct thin_error *err);
uint32_t catalogue_encode_tombstone(uint32_t dev_id, uint8_t *ret);

/* What the log says of the pool itself. */
struct catalogue_pool_record {
    uint64_t created; /* Unix seconds */
    bool imported;    /* new volumes take ids from the top downwards */
};
uint32_t catalogue_encode_pool(const struct catalogue_pool_record *record, uint8_t *ret);

/* One decoded record. */
struct catalogue_item {
    uint8_t kind; /* enum catalogue_kind, or one that we do not know */
    uint32_t encoded_bytes;
    struct catalogue_record *record; /* VOLUME: new, the caller's */
    uint32_t dev_id;                 /* TOMBSTONE */
    struct catalogue_pool_record pool;
};
/* The record at payload[*pos]; *pos moves behind it. -THIN_E_CATALOGUE, -ENOMEM. */
int catalogue_decode(const uint8_t *payload, uint32_t len_bytes, uint32_t *pos,
                     struct catalogue_item *ret, struct thin_error *err);

/* Fills header and checksum of a page whose payload is in place; the rest of the payload
   is zeroed. Returns the page's CRC. */
uint32_t catalogue_page_seal(uint8_t *page, const uint8_t uuid[16], uint64_t address,
                             uint64_t sequence, uint32_t previous_crc,
                             uint32_t len_bytes);
/* -THIN_E_CATALOGUE with the reason. *ret_crc: for the next page. */
int catalogue_page_judge(const uint8_t *page, const uint8_t uuid[16], uint64_t address,
                         uint64_t sequence, uint32_t previous_crc, uint32_t *ret_crc,
                         uint32_t *ret_len_bytes, struct thin_error *err);

/* A page that is whole, whoever it belongs to: for finding a lost root. */
struct catalogue_page_header {
    uint8_t uuid[16];
    uint64_t address, sequence;
    uint32_t previous_crc, crc;
};
bool catalogue_page_looks(const uint8_t *page, struct catalogue_page_header *ret);

/* ---- the records in memory ---------------------------------------------------------------- */

/*
 * Records by name, device id and uid. A record keeps its address until it is removed,
 * also over catalogue_records_put of the same device id.
 */
struct catalogue_records {
    struct order by_name; /* not those that are deleting */
    struct order by_id;
    struct order by_uid;    /* not those that are deleting */
    struct order pending;   /* deleting or trimming, by device id */
    uint64_t live_bytes;    /* in the log, of records that stand */
    uint64_t virtual_bytes; /* sum of the sizes of what has a name */
    /*
     * While a log is read only ids are ordered: a checkpoint holds records of different
     * moments, so names may seem to stand twice until its end.
     */
    bool loading;
};
void catalogue_records_init(struct catalogue_records *records);
void catalogue_records_fini(struct catalogue_records *records); /* frees the records */

/* From here on `n` puts cannot fail. -ENOMEM. */
int catalogue_records_reserve(struct catalogue_records *records, uint32_t n);
/*
 * Takes `record`: adds it, or moves its contents to the one of the same device id. A name
 * or uid that stands for another device already must have been refused before (asserted).
 */
void catalogue_records_put(struct catalogue_records *records,
                           struct catalogue_record *record);
/* Removes and frees it, if it is there. */
void catalogue_records_remove(struct catalogue_records *records, uint32_t dev_id);

/* After loading, for each record in turn (`loading` is false, one was reserved). False:
   its name or uid stands for another device already. */
bool catalogue_records_index(struct catalogue_records *records, uint32_t dev_id);

struct catalogue_record *catalogue_by_name(const struct catalogue_records *records,
                                           const char *name);
struct catalogue_record *catalogue_by_id(const struct catalogue_records *records,
                                         uint32_t dev_id);
struct catalogue_record *catalogue_by_uid(const struct catalogue_records *records,
                                          uint64_t uid);
/* In order of names, first above `after` (NULL: the first). */
struct catalogue_record *catalogue_next_name(const struct catalogue_records *records,
                                             const char *after);
/* In order of ids, the first at or above that is deleting or trimming. */
struct catalogue_record *catalogue_next_pending(const struct catalogue_records *records,
                                                uint32_t dev_id);
/* In order of ids, first at or above. */
struct catalogue_record *catalogue_next_id(const struct catalogue_records *records,
                                           uint32_t dev_id);

#endif
