#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/offline/build.h"

int
block_out_init(struct block_out *out, struct meta_source *src, mblock_t nr_blocks,
               const struct counts *refs, struct thin_error *err)
{
    int r;

    memset(out, 0, sizeof(*out));
    out->src = src;
    out->nr_blocks = nr_blocks;
    out->next = SUPERBLOCK_LOCATION + 1;
    out->err = err;
    out->piece = aligned_alloc(METADATA_BLOCK_SIZE,
                               (size_t)BUILD_PIECE_BLOCKS * METADATA_BLOCK_SIZE);
    if (refs)
        r = counts_copy(&out->refs, refs);
    else
        r = counts_init(&out->refs, nr_blocks);
    if (r >= 0 && !refs)
        r = counts_inc(&out->refs, SUPERBLOCK_LOCATION);
    if (!out->piece || r < 0)
        return thin_fail_code(err, -ENOMEM, "build metadata");
    return 0;
}

void
block_out_fini(struct block_out *out)
{
    counts_fini(&out->refs);
    free(out->piece);
    memset(out, 0, sizeof(*out));
}

int
block_out_alloc(struct block_out *out, mblock_t *ret_block)
{
    while (out->next < out->nr_blocks && out->busy && counts_get(out->busy, out->next))
        out->next++;
    if (out->next >= out->nr_blocks)
        return thin_fail(out->err, -THIN_E_NO_METADATA_SPACE,
                         "the metadata device is too small: its %" PRIu64
                         " blocks are used up",
                         out->nr_blocks);
    if (counts_inc(&out->refs, out->next) < 0)
        return thin_fail_code(out->err, -ENOMEM, "build metadata");
    *ret_block = out->next++;
    return 0;
}

int
block_out_finish(struct block_out *out)
{
    int r = 0;

    if (out->piece_len && !out->rehearsal)
        r = source_write(out->src, out->piece_at, out->piece, out->piece_len, out->err);
    out->piece_len = 0;
    return r < 0 ? r
                 : source_tick(out->src,
                               out->rehearsal ? "metadata blocks planned"
                                              : "metadata blocks written",
                               out->next, 0);
}

int
block_out_place(struct block_out *out, mblock_t b, uint8_t **ret_bytes)
{
    int r;

    if (out->piece_len == BUILD_PIECE_BLOCKS ||
        (out->piece_len && b != out->piece_at + out->piece_len)) {
        r = block_out_finish(out);
        if (r < 0)
            return r;
    }
    if (!out->piece_len)
        out->piece_at = b;
    *ret_bytes = out->piece + (size_t)out->piece_len * METADATA_BLOCK_SIZE;
    memset(*ret_bytes, 0, METADATA_BLOCK_SIZE);
    out->piece_len++;
    return 0;
}
