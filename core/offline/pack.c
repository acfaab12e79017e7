#include "core/offline/pack.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "core/base/bytes.h"
#include "core/base/cleanup.h"
#include "core/base/crc32c.h"

#define PACK_VERSION  1u
#define PACK_LEVEL    6
#define PASS_BLOCKS   512u /* asked for at once: 2 MiB */
#define RECORD_BYTES  (12u + METADATA_BLOCK_SIZE)
#define END_OF_PACK   UINT64_MAX
#define STREAM_BUFFER (256u << 10)

static const char unfinished[] = "thinmeta: not unpacked to the end\n";
static const char magic[8] = {'t', 'h', 'i', 'n', 'm', 'e', 't', 'a'};

static void
fill_header(uint8_t *h, uint64_t nr_blocks, uint64_t nr_packed)
{
    memset(h, 0, PACK_HEADER_BYTES);
    memcpy(h, magic, sizeof(magic));
    store_le32(h + 8, PACK_VERSION);
    store_le32(h + 12, METADATA_BLOCK_SIZE);
    store_le64(h + 16, nr_blocks);
    store_le64(h + 24, nr_packed);
    store_le32(h + 60, crc32c(h, 60));
}

int
pack_judge_header(const uint8_t *h, uint64_t *ret_nr_blocks, struct thin_error *err)
{
    if (memcmp(h, magic, sizeof(magic)) != 0)
        return thin_fail(err, -THIN_E_INVALID, "this is no packed metadata");
    if (load_le32(h + 60) != crc32c(h, 60))
        return thin_fail(err, -THIN_E_CHECKSUM, "the pack's header is damaged");
    if (load_le32(h + 8) != PACK_VERSION || load_le32(h + 12) != METADATA_BLOCK_SIZE)
        return thin_fail(err, -THIN_E_VERSION,
                         "pack version %" PRIu32 ", only %u is known", load_le32(h + 8),
                         PACK_VERSION);
    *ret_nr_blocks = load_le64(h + 16);
    return 0;
}

/* ---- packing --------------------------------------------------------------------------- */

struct packer {
    ZSTD_CCtx *zstd;
    pack_write_fn *write;
    void *arg;
    uint8_t *out;
    mblock_t begin;  /* of the batch */
    uint8_t *chosen; /* a bit for each block, set by the first pass */
    bool choosing;   /* the first pass is under way */
    uint64_t nr_packed;
    uint32_t crc_of_crcs;
    struct thin_error *err;
};

static int
compress(struct packer *p, const void *bytes, size_t len, ZSTD_EndDirective how)
{
    ZSTD_inBuffer in = {bytes, len, 0};
    size_t left;

    do {
        ZSTD_outBuffer out = {p->out, STREAM_BUFFER, 0};
        int r;

        left = ZSTD_compressStream2(p->zstd, &out, &in, how);
        if (ZSTD_isError(left))
            return thin_fail(p->err, -EIO, "compress: %s", ZSTD_getErrorName(left));
        r = out.pos ? p->write(p->arg, p->out, out.pos) : 0;
        if (r < 0)
            return thin_fail_code(p->err, r, "write the pack");
    } while (how == ZSTD_e_end ? left != 0 : in.pos < in.size);
    return 0;
}

/* Whatever once was a block of metadata, and anything odd in block 0. */
static bool
is_worth_packing(mblock_t b, const uint8_t *data)
{
    enum block_kind kind;

    if (b == SUPERBLOCK_LOCATION)
        return true;
    /* Never used: all zeros at the beginning, without looking at the rest. */
    if (load_le64(data) == 0 && load_le64(data + 8) == 0)
        return false;
    return load_le64(data + 8) == b || block_guess_kind(data, &kind);
}

/*
 * The first pass decides, for a device may be in use: blocks outside the state that is
 * looked at change between the passes, and the header has told how many will come.
 */
static int
pack_seen(void *arg, size_t index, const uint8_t *data, int code)
{
    static const uint8_t unreadable_now[METADATA_BLOCK_SIZE];
    struct packer *p = arg;
    mblock_t b = p->begin + index;
    uint8_t head[12];
    int r;

    (void)code;
    if (p->choosing) {
        if (data && is_worth_packing(b, data)) {
            p->chosen[b / 8] |= (uint8_t)(1u << b % 8);
            p->nr_packed++;
        }
        return 0;
    }
    if (!(p->chosen[b / 8] & 1u << b % 8))
        return 0;
    if (!data)
        data = unreadable_now;
    store_le64(head, b);
    store_le32(head + 8, crc32c(data, METADATA_BLOCK_SIZE));
    p->crc_of_crcs = crc32c_update(p->crc_of_crcs, head + 8, 4);
    r = compress(p, head, sizeof(head), ZSTD_e_continue);
    return r < 0 ? r : compress(p, data, METADATA_BLOCK_SIZE, ZSTD_e_continue);
}

static int
pass(struct packer *p, struct meta_source *src, bool choosing)
{
    mblock_t blocks[PASS_BLOCKS];
    int r = 0;

    p->choosing = choosing;
    for (mblock_t b = 0; b < src->nr_blocks && r >= 0; b += PASS_BLOCKS) {
        size_t n = 0;

        while (n < PASS_BLOCKS && b + n < src->nr_blocks) {
            blocks[n] = b + n;
            n++;
        }
        p->begin = b;
        r = source_tick(src, "metadata blocks", b, src->nr_blocks);
        if (r >= 0)
            r = source_read_many(src, blocks, n, BLOCK_KINDS, pack_seen, p);
    }
    return r;
}

static int
pack_all(struct packer *p, struct meta_source *src)
{
    uint8_t header[PACK_HEADER_BYTES], tail[12];
    int r = pass(p, src, true);

    if (r < 0)
        return r;
    fill_header(header, src->nr_blocks, p->nr_packed);
    r = p->write(p->arg, header, sizeof(header));
    if (r < 0)
        return thin_fail_code(p->err, r, "write the pack");
    r = pass(p, src, false);
    if (r < 0)
        return r;
    store_le64(tail, END_OF_PACK);
    store_le32(tail + 8, p->crc_of_crcs);
    return compress(p, tail, sizeof(tail), ZSTD_e_end);
}

int
pack_device(struct meta_source *src, pack_write_fn *write, void *arg,
            uint64_t *ret_packed, struct thin_error *err)
{
    AUTO_FREE uint8_t *out = malloc(STREAM_BUFFER);
    AUTO_FREE uint8_t *chosen = calloc(src->nr_blocks / 8 + 1, 1);
    struct packer p = {.zstd = ZSTD_createCCtx(),
                       .write = write,
                       .arg = arg,
                       .out = out,
                       .chosen = chosen,
                       .crc_of_crcs = CRC32C_INIT,
                       .err = err};
    int r;

    if (!out || !chosen || !p.zstd ||
        ZSTD_isError(ZSTD_CCtx_setParameter(p.zstd, ZSTD_c_compressionLevel, PACK_LEVEL)))
        r = thin_fail_code(err, -ENOMEM, "pack");
    else
        r = pack_all(&p, src);
    ZSTD_freeCCtx(p.zstd);
    *ret_packed = p.nr_packed;
    return r;
}

/* ---- unpacking ---------------------------------------------------------------------------- */

struct unpacker {
    ZSTD_DCtx *zstd;
    pack_read_fn *read;
    void *arg;
    uint8_t *in_bytes;
    ZSTD_inBuffer in;
    struct thin_error *err;
};

static int
read_exactly(struct unpacker *u, uint8_t *buf, size_t len)
{
    for (size_t done = 0; done < len;) {
        long n = u->read(u->arg, buf + done, len - done);

        if (n < 0)
            return thin_fail_code(u->err, (int)n, "read the pack");
        if (n == 0)
            return thin_fail(u->err, -THIN_E_INVALID, "the pack ends in its header");
        done += (size_t)n;
    }
    return 0;
}

static int
decompress(struct unpacker *u, uint8_t *buf, size_t len)
{
    ZSTD_outBuffer out = {buf, len, 0};

    while (out.pos < out.size) {
        size_t before = out.pos, r;

        if (u->in.pos == u->in.size) {
            long n = u->read(u->arg, u->in_bytes, STREAM_BUFFER);

            if (n < 0)
                return thin_fail_code(u->err, (int)n, "read the pack");
            u->in = (ZSTD_inBuffer){u->in_bytes, (size_t)n, 0};
        }
        r = ZSTD_decompressStream(u->zstd, &out, &u->in);
        if (ZSTD_isError(r))
            return thin_fail(u->err, -THIN_E_CHECKSUM, "the pack is damaged: %s",
                             ZSTD_getErrorName(r));
        if (out.pos == before && u->in.size == 0)
            return thin_fail(u->err, -THIN_E_INVALID, "the pack ends too early");
    }
    return 0;
}

/* Writes zeros from *at up to `end`, in pieces. */
static int
fill_gap(struct meta_source *dst, mblock_t *at, mblock_t end, const uint8_t *zeros,
         struct thin_error *err)
{
    while (*at < end) {
        size_t n =
            end - *at < SOURCE_PIECE_BLOCKS ? (size_t)(end - *at) : SOURCE_PIECE_BLOCKS;
        int r = source_write(dst, *at, zeros, n, err);

        if (r < 0)
            return r;
        *at += n;
        r = source_tick(dst, "metadata blocks", *at, dst->nr_blocks);
        if (r < 0)
            return r;
    }
    return 0;
}

static int
unpack_records(struct unpacker *u, struct meta_source *dst, uint64_t nr_blocks,
               uint64_t nr_packed, uint8_t *record, uint8_t *first, const uint8_t *zeros)
{
    uint32_t crc_of_crcs = CRC32C_INIT;
    mblock_t at = dst ? 1 : 0; /* block 0 is kept for the end */
    uint64_t nr = 0;

    for (;;) {
        mblock_t b;
        int r = decompress(u, record, 12);

        if (r < 0)
            return r;
        b = load_le64(record);
        if (b == END_OF_PACK)
            break;
        r = decompress(u, record + 12, METADATA_BLOCK_SIZE);
        if (r < 0)
            return r;
        if (b >= nr_blocks || (nr > 0 && b < at) || nr >= nr_packed ||
            load_le32(record + 8) != crc32c(record + 12, METADATA_BLOCK_SIZE))
            return thin_fail(u->err, -THIN_E_CHECKSUM,
                             "the pack is damaged at its record %" PRIu64, nr);
        crc_of_crcs = crc32c_update(crc_of_crcs, record + 8, 4);
        nr++;
        if (!dst) {
            at = b + 1;
            continue;
        }
        if (b == SUPERBLOCK_LOCATION) {
            memcpy(first, record + 12, METADATA_BLOCK_SIZE);
            continue;
        }
        r = fill_gap(dst, &at, b, zeros, u->err);
        if (r >= 0)
            r = source_write(dst, b, record + 12, 1, u->err);
        if (r < 0)
            return r;
        at = b + 1;
    }
    if (nr != nr_packed || load_le32(record + 8) != crc_of_crcs)
        return thin_fail(u->err, -THIN_E_CHECKSUM,
                         "the pack is damaged: %" PRIu64 " blocks of %" PRIu64, nr,
                         nr_packed);
    return dst ? fill_gap(dst, &at, nr_blocks, zeros, u->err) : 0;
}

static int
unpack_all(struct unpacker *u, struct meta_source *dst)
{
    uint8_t header[PACK_HEADER_BYTES];
    AUTO_FREE uint8_t *record = malloc(RECORD_BYTES);
    AUTO_FREE uint8_t *first = calloc(1, METADATA_BLOCK_SIZE);
    AUTO_FREE uint8_t *zeros = aligned_alloc(
        METADATA_BLOCK_SIZE, (size_t)SOURCE_PIECE_BLOCKS * METADATA_BLOCK_SIZE);
    uint64_t nr_blocks = 0;
    int r;

    if (!record || !first || !zeros)
        return thin_fail_code(u->err, -ENOMEM, "unpack");
    memset(zeros, 0, (size_t)SOURCE_PIECE_BLOCKS * METADATA_BLOCK_SIZE);
    r = read_exactly(u, header, sizeof(header));
    if (r >= 0)
        r = pack_judge_header(header, &nr_blocks, u->err);
    if (r < 0)
        return r;
    if (!dst)
        return unpack_records(u, NULL, nr_blocks, load_le64(header + 24), record, first,
                              zeros);
    if (nr_blocks > dst->nr_blocks)
        return thin_fail(u->err, -THIN_E_NO_METADATA_SPACE,
                         "the pack is of %" PRIu64
                         " metadata blocks, the device has %" PRIu64,
                         nr_blocks, dst->nr_blocks);
    /* Not zeros: the kernel would format them. */
    memcpy(first, unfinished, sizeof(unfinished));
    r = source_write(dst, SUPERBLOCK_LOCATION, first, 1, u->err);
    memset(first, 0, METADATA_BLOCK_SIZE);
    if (r >= 0)
        r = unpack_records(u, dst, nr_blocks, load_le64(header + 24), record, first,
                           zeros);
    if (r >= 0)
        r = source_flush(dst, u->err);
    if (r >= 0)
        r = source_write(dst, SUPERBLOCK_LOCATION, first, 1, u->err);
    return r < 0 ? r : source_flush(dst, u->err);
}

int
unpack_device(pack_read_fn *read, void *arg, struct meta_source *dst,
              struct thin_error *err)
{
    AUTO_FREE uint8_t *in = malloc(STREAM_BUFFER);
    struct unpacker u = {
        .zstd = ZSTD_createDCtx(), .read = read, .arg = arg, .in_bytes = in, .err = err};
    int r = in && u.zstd ? unpack_all(&u, dst) : thin_fail_code(err, -ENOMEM, "unpack");

    ZSTD_freeDCtx(u.zstd);
    return r;
}
