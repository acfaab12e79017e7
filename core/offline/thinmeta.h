/*
 * libthinmeta: reading, checking, building and mending dm-thin metadata, offline.
 *
 * No globals, no printing, no exit, no signal is touched. A handle belongs to one
 * thread at a time; different handles are independent. What can fail returns 0 or a
 * negative code: -1 to -999 is -errno, from -1001 on the codes are THINMETA_E_*; words
 * stand in the struct thinmeta_error that the caller hands in (or NULL).
 *
 * ABI: the library's soname (libthinmeta.so.0) changes when this header breaks. Structs
 * that may grow begin with `size`, which the caller sets to sizeof; those that callbacks
 * get may grow at their end; functions never disappear, numbers never change. Every
 * function carries a version of its own (libthinmeta.map), THINMETA_0 for the first.
 *
 * Threads: a handle on a path has a few of its own that read ahead; they call nothing,
 * take no signals, and end with thinmeta_close. Other handles have none.
 *
 * Memory: in a check 5 bytes for each metadata block, 56 for each distinct node and one
 * for each data block in bitmaps that anything maps; reading and writing alike take a few
 * MiB, however many mappings there are.
 *
 * Callbacks return 0 to go on. Another value ends the call, which returns it if it is
 * negative and THINMETA_E_CANCELLED if it is positive. They must not use the handle.
 */
#ifndef THINMETA_H
#define THINMETA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define THINMETA_API __attribute__((visibility("default")))

/* "0.1.0"; what the library is, not the header. */
THINMETA_API const char *thinmeta_version(void);

/* ---- errors ------------------------------------------------------------------------ */

/* The codes of this library that a caller may want to tell apart (negative). */
enum {
    THINMETA_E_CHECKSUM = -1002,          /* a block's checksum is wrong */
    THINMETA_E_BAD_BLOCK = -1003,         /* a block's contents are damaged */
    THINMETA_E_NOT_THIN = -1004,          /* no thin metadata here */
    THINMETA_E_VERSION = -1005,           /* metadata version not supported */
    THINMETA_E_NO_METADATA_SPACE = -1009, /* the metadata device is too small */
    THINMETA_E_READ_ONLY = -1010,         /* opened for reading */
    THINMETA_E_NOT_FOUND = -1013,         /* no such device, no snapshot held */
    THINMETA_E_BUSY = -1015,              /* the pool is in use */
    THINMETA_E_INVALID = -1016,           /* wrong argument or contents */
    THINMETA_E_UNSUPPORTED = -1022,       /* unknown features */
    THINMETA_E_CANCELLED = -1025,         /* a callback said so */
};

struct thinmeta_error {
    int code;
    char text[512];
};

/* The meaning of a code in words; static, never NULL. */
THINMETA_API const char *thinmeta_strerror(int code);

/* ---- handles ------------------------------------------------------------------------ */

struct thinmeta;

enum {
    THINMETA_WRITE = 1,    /* for format, restore, repair's output, mending */
    THINMETA_SHARED = 2,   /* no lock: only sound for the held snapshot of a live pool */
    THINMETA_TAKEOVER = 4, /* with WRITE: also if another machine served the pool last */
};

/* A regular file or block device, with the pool's lock unless SHARED. */
THINMETA_API int thinmeta_open(const char *path, unsigned flags, struct thinmeta **ret,
                               struct thinmeta_error *err);

/*
 * Anything else. Offsets and lengths are multiples of 4096; each function returns 0 or
 * a negative errno. A caller that has pinned a state hands out its superblock for
 * offset 0. `io` is copied, `arg` borrowed until thinmeta_close.
 */
struct thinmeta_io {
    size_t size;
    void *arg;
    uint64_t device_bytes;
    int (*read)(void *arg, uint64_t offset, void *buf, size_t len);
    int (*write)(void *arg, uint64_t offset, const void *buf, size_t len); /* or NULL */
    int (*flush)(void *arg);                                               /* or NULL */
};
THINMETA_API int thinmeta_open_io(const struct thinmeta_io *io, struct thinmeta **ret,
                                  struct thinmeta_error *err);

THINMETA_API void thinmeta_close(struct thinmeta *tm); /* NULL is fine */

/*
 * Called now and then during long calls, a few times for each MiB read at most. `what`
 * may be NULL, `total` 0 when not known. Not 0 cancels: THINMETA_E_CANCELLED.
 */
typedef int thinmeta_progress_fn(void *arg, const char *what, uint64_t done,
                                 uint64_t total);
THINMETA_API void thinmeta_set_progress(struct thinmeta *tm, thinmeta_progress_fn *fn,
                                        void *arg);

/* ---- reading -------------------------------------------------------------------------- */

/* Where to read: SNAP takes the held snapshot instead of the live trees. */
enum { THINMETA_LIVE = 0, THINMETA_SNAP = 1 };

struct thinmeta_info {
    size_t size;
    uint64_t transaction_id, time;
    uint64_t data_block_bytes, nr_data_blocks, nr_data_allocated;
    uint64_t nr_metadata_blocks, nr_metadata_allocated;
    uint64_t held_root; /* 0: none */
    int needs_check;
};
THINMETA_API int thinmeta_get_info(struct thinmeta *tm, unsigned where,
                                   struct thinmeta_info *ret, struct thinmeta_error *err);

struct thinmeta_device {
    size_t size; /* of this struct in the library */
    uint64_t dev_id, mapped_blocks, exclusive_blocks;
    uint64_t transaction_id, creation_time, snapshotted_time;
    int any_mapped;
    uint64_t highest_block; /* if any_mapped */
};
/* In order of ids. */
typedef int thinmeta_device_fn(void *arg, const struct thinmeta_device *dev);
THINMETA_API int thinmeta_list(struct thinmeta *tm, unsigned where,
                               thinmeta_device_fn *fn, void *arg,
                               struct thinmeta_error *err);

struct thinmeta_run {
    uint64_t virtual_block, data_block, length;
    uint32_t time;
};
/* Mappings of one device in virtual order, joined to runs. THINMETA_E_NOT_FOUND. */
typedef int thinmeta_run_fn(void *arg, const struct thinmeta_run *run);
THINMETA_API int thinmeta_map(struct thinmeta *tm, unsigned where, uint64_t dev_id,
                              thinmeta_run_fn *fn, void *arg, struct thinmeta_error *err);

enum {
    THINMETA_SAME,
    THINMETA_LEFT_ONLY,
    THINMETA_RIGHT_ONLY,
    THINMETA_DIFFERENT,
};
struct thinmeta_delta_run {
    int kind;
    uint64_t virtual_block, length, left_data_block, right_data_block;
};
typedef int thinmeta_delta_fn(void *arg, const struct thinmeta_delta_run *run);
/* With `differences_only` the cost follows what differs, not what is mapped. */
THINMETA_API int thinmeta_delta(struct thinmeta *tm, unsigned where, uint64_t left,
                                uint64_t right, int differences_only,
                                thinmeta_delta_fn *fn, void *arg,
                                struct thinmeta_error *err);

/* Takes all of `len` bytes. */
typedef int thinmeta_write_fn(void *arg, const char *bytes, size_t len);
enum { THINMETA_XML, THINMETA_HUMAN, THINMETA_JSON };
struct thinmeta_dump_options {
    size_t size;
    int format;
    unsigned where;
    int skip_mappings;
    int lenient; /* leave out what is damaged */
    int only_dev;
    uint64_t dev_id; /* with only_dev */
};
/* NULL options: the live state as XML. */
THINMETA_API int thinmeta_dump(struct thinmeta *tm,
                               const struct thinmeta_dump_options *opts,
                               thinmeta_write_fn *fn, void *arg,
                               struct thinmeta_error *err);

/* ---- checking --------------------------------------------------------------------------- */

enum { THINMETA_DAMAGE, THINMETA_LEAK, THINMETA_NOTE };
struct thinmeta_finding {
    int kind;
    const char *place; /* "mapping tree" */
    uint64_t block;
    const char *text;
};
/* `arg` of both is that of thinmeta_check. Strings live during the call. */
typedef int thinmeta_finding_fn(void *arg, const struct thinmeta_finding *finding);
struct thinmeta_affected {
    uint64_t dev_id, begin, last; /* virtual blocks; last UINT64_MAX: to the end */
    int held;
    uint64_t metadata_block;
};
typedef int thinmeta_affected_fn(void *arg, const struct thinmeta_affected *affected);

struct thinmeta_check_options {
    size_t size;
    unsigned where;
    int super_block_only, skip_mappings, ignore_non_fatal;
    int clear_needs_check; /* if there is no damage (left) */
    int auto_repair;       /* make counts anew if that mends what is wrong */
    thinmeta_finding_fn *finding;
    thinmeta_affected_fn *affected;
    void *arg;
};
struct thinmeta_check_result {
    size_t size; /* set by the caller */
    uint64_t nr_damage, nr_notes, leaked_metadata_blocks, leaked_data_blocks;
    uint64_t nr_devices, nr_mappings;
    uint64_t metadata_blocks, metadata_used, data_blocks, data_used;
    int needs_check;
    int mended; /* auto_repair has written */
};
/* 0 when the check was done, whatever it found. NULL options: everything, read only. */
THINMETA_API int thinmeta_check(struct thinmeta *tm,
                                const struct thinmeta_check_options *opts,
                                struct thinmeta_check_result *ret,
                                struct thinmeta_error *err);

/* ---- making ------------------------------------------------------------------------------- */

/* An empty pool over whatever `tm` holds. Sizes in bytes. */
THINMETA_API int thinmeta_format(struct thinmeta *tm, uint64_t data_block_bytes,
                                 uint64_t data_bytes, struct thinmeta_error *err);

/* Bytes of XML into `buf`: how many, 0 at the end, or negative. */
typedef long thinmeta_read_fn(void *arg, char *buf, size_t room);
THINMETA_API int thinmeta_restore(struct thinmeta *tm, thinmeta_read_fn *fn, void *arg,
                                  struct thinmeta_error *err);

/*
 * Rebuilds onto `dst` what is left in `src`, which is only read. With dst NULL nothing is
 * built: the callbacks tell what would be kept and lost. The three numbers are needed
 * when the superblock is lost; 0 leaves what is recorded.
 */
struct thinmeta_repaired {
    uint64_t dev_id, kept_mappings, recorded_mappings;
    int found_elsewhere; /* the way to it was lost; it was found by searching */
    int record_lost;     /* its details were made up: all blocks count as shared */
};
typedef int thinmeta_repaired_fn(void *arg, const struct thinmeta_repaired *dev);
struct thinmeta_repair_options {
    size_t size;
    uint64_t transaction_id, data_block_bytes, nr_data_blocks;
    int have_transaction_id;
    thinmeta_repaired_fn *device;
    thinmeta_affected_fn *lost;
    void *arg;
};
THINMETA_API int thinmeta_repair(struct thinmeta *src, struct thinmeta *dst,
                                 const struct thinmeta_repair_options *opts,
                                 struct thinmeta_error *err);

/* A small file with all metadata and no user data; and the way back. */
THINMETA_API int thinmeta_pack(struct thinmeta *tm, thinmeta_write_fn *fn, void *arg,
                               struct thinmeta_error *err);
THINMETA_API int thinmeta_unpack(struct thinmeta *tm, thinmeta_read_fn *fn, void *arg,
                                 struct thinmeta_error *err);

/* Who maps data blocks [begin, end): each leaf once, for the first device that reaches
   it. Ascending by data block. */
struct thinmeta_rmap_run {
    uint64_t data_block, dev_id, virtual_block, length;
};
typedef int thinmeta_rmap_fn(void *arg, const struct thinmeta_rmap_run *run);
THINMETA_API int thinmeta_rmap(struct thinmeta *tm, uint64_t begin, uint64_t end,
                               thinmeta_rmap_fn *fn, void *arg,
                               struct thinmeta_error *err);

/* Data blocks [begin, end) that are free, in bytes of the data device; only after a full
   check without fault, else THINMETA_E_INVALID or a code of the check. */
typedef int thinmeta_free_fn(void *arg, uint64_t begin_byte, uint64_t end_byte);
THINMETA_API int thinmeta_free_space(struct thinmeta *tm, thinmeta_free_fn *fn, void *arg,
                                     struct thinmeta_error *err);

/* Bytes that a metadata device should have. 0 for a block size that is none. */
THINMETA_API uint64_t thinmeta_size(uint64_t data_block_bytes, uint64_t pool_bytes,
                                    uint64_t max_devices);

#ifdef __cplusplus
}
#endif

#endif
