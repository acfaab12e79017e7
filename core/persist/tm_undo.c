/* What the open operation can take back: node images, logged changes, saved words. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/persist/bm_private.h"
#include "core/persist/tm_private.h"

#define LOG_FIRST 256u

int
tm_log(struct transaction_manager *tm, const struct tm_undo *undo, struct thin_error *err)
{
    THIN_ASSERT(tm->op_open);
    if (tm->nr_log == tm->cap_log) {
        uint32_t cap = tm->cap_log ? tm->cap_log * 2 : LOG_FIRST;
        struct tm_undo *log;

        if (cap > TM_OP_LOG_MAX)
            return thin_fail(err, -THIN_E_LIMIT,
                             "one operation changes more than %u counts", TM_OP_LOG_MAX);
        log = realloc(tm->log, cap * sizeof(*log));
        if (!log)
            return thin_fail_code(err, -ENOMEM, "log of an operation");
        tm->log = log;
        tm->cap_log = cap;
    }
    tm->log[tm->nr_log++] = *undo;
    return 0;
}

int
tm_op_on_undo(struct transaction_manager *tm,
              void (*undo)(void *arg, uint64_t a, uint64_t b), void *arg, uint64_t a,
              uint64_t b)
{
    struct tm_undo u = {.kind = UNDO_CALL, .a = a, .b = b, .call = undo, .arg = arg};

    return tm_log(tm, &u, NULL);
}

void
tm_op_save(struct transaction_manager *tm, void *words, size_t bytes)
{
    struct tm_save *save;

    THIN_ASSERT(tm->op_open);
    THIN_ASSERT(bytes <= TM_OP_SAVE_BYTES);
    for (uint32_t i = 0; i < tm->nr_saves; i++)
        if (tm->saves[i].words == words && tm->saves[i].nr_bytes == bytes)
            return;
    THIN_ASSERT(tm->nr_saves < TM_OP_SAVES_MAX);
    save = &tm->saves[tm->nr_saves++];
    save->words = words;
    save->nr_bytes = bytes;
    memcpy(save->bytes, words, bytes);
}

int
tm_save_image(struct transaction_manager *tm, struct bm_block *block,
              struct thin_error *err)
{
    struct tm_image *image;

    THIN_ASSERT(tm->op_open);
    if (block->op == tm->op)
        return 0;
    if (tm->nr_images == TM_OP_NODES_MAX)
        return thin_fail(err, -THIN_E_LIMIT, "one operation changes more than %u nodes",
                         TM_OP_NODES_MAX);
    image = &tm->images[tm->nr_images];
    if (!image->bytes)
        image->bytes = malloc(METADATA_BLOCK_SIZE);
    if (!image->bytes)
        return thin_fail_code(err, -ENOMEM, "image of metadata block %" PRIu64,
                              block->number);
    image->block = block->number;
    memcpy(image->bytes, block->data, METADATA_BLOCK_SIZE);
    tm->nr_images++;
    if (tm->nr_images > tm->images_high_water)
        tm->images_high_water = tm->nr_images;
    block->op = tm->op;
    return 0;
}

uint32_t
tm_op_nr_nodes(const struct transaction_manager *tm)
{
    return tm->nr_images;
}

static void
undo_one(struct transaction_manager *tm, const struct tm_undo *undo)
{
    switch (undo->kind) {
    case UNDO_COUNT:
        tm_undo_count(tm, undo->a, undo->b);
        break;
    case UNDO_PLACE:
        tm_undo_place(tm, undo->a, undo->b);
        break;
    case UNDO_CALL:
        undo->call(undo->arg, undo->a, undo->b);
        break;
    }
}

void
tm_undo_all(struct transaction_manager *tm)
{
    while (tm->nr_images) {
        struct tm_image *image = &tm->images[--tm->nr_images];
        struct bm_block *f = bm_find(tm->bm, image->block);

        /* Dirty frames never leave the cache. */
        THIN_ASSERT(f && frame_is_open(f) && !f->write_locked && !f->readers);
        memcpy(f->data, image->bytes, METADATA_BLOCK_SIZE);
        f->op = 0;
    }
    while (tm->nr_log)
        undo_one(tm, &tm->log[--tm->nr_log]);
    while (tm->nr_saves) {
        struct tm_save *save = &tm->saves[--tm->nr_saves];

        memcpy(save->words, save->bytes, save->nr_bytes);
    }
}

void
tm_undo_fini(struct transaction_manager *tm)
{
    for (uint32_t i = 0; i < TM_OP_NODES_MAX; i++)
        free(tm->images[i].bytes);
    free(tm->log);
    free(tm->op_freed);
}
