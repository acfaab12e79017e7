#include "core/offline/text_write.h"

static int
human_superblock(void *arg, const struct ir_superblock *sb)
{
    struct textbuf *t = ((struct text_writer *)arg)->text;

    textbuf_str(t, "begin superblock: \"");
    textbuf_text(t, sb->uuid);
    textbuf_str(t, "\", ");
    textbuf_u64(t, sb->time);
    textbuf_str(t, ", ");
    textbuf_u64(t, sb->trans_id);
    textbuf_str(t, ", ");
    textbuf_u64(t, sb->flags);
    textbuf_str(t, ", ");
    textbuf_u64(t, sb->version);
    textbuf_str(t, ", ");
    textbuf_u64(t, sb->data_block_size);
    textbuf_str(t, ", ");
    textbuf_u64(t, sb->nr_data_blocks);
    textbuf_str(t, "\n");
    return textbuf_line(t);
}

static int
human_device_begin(void *arg, const struct ir_device *dev)
{
    struct textbuf *t = ((struct text_writer *)arg)->text;

    textbuf_str(t, "device: ");
    textbuf_u64(t, dev->dev_id);
    textbuf_str(t, "\nmapped_blocks: ");
    textbuf_u64(t, dev->mapped_blocks);
    textbuf_str(t, "\ntransaction: ");
    textbuf_u64(t, dev->trans_id);
    textbuf_str(t, "\ncreation time: ");
    textbuf_u64(t, dev->creation_time);
    textbuf_str(t, "\nsnap time: ");
    textbuf_u64(t, dev->snap_time);
    textbuf_str(t, "\n");
    return textbuf_line(t);
}

static int
human_run(void *arg, const struct ir_run *run)
{
    struct textbuf *t = ((struct text_writer *)arg)->text;

    if (run->len == 1) {
        textbuf_str(t, "    ");
        textbuf_u64(t, run->virt);
        textbuf_str(t, " -> ");
        textbuf_u64(t, run->data);
    } else {
        textbuf_str(t, "    (");
        textbuf_u64(t, run->virt);
        textbuf_str(t, "..");
        textbuf_u64(t, run->virt + run->len - 1);
        textbuf_str(t, ") -> (");
        textbuf_u64(t, run->data);
        textbuf_str(t, "..");
        textbuf_u64(t, run->data + run->len - 1);
        textbuf_str(t, ")");
    }
    textbuf_str(t, ", ");
    textbuf_u64(t, run->time);
    textbuf_str(t, "\n");
    return textbuf_line(t);
}

static int
human_device_end(void *arg)
{
    struct textbuf *t = ((struct text_writer *)arg)->text;

    textbuf_str(t, "\n");
    return textbuf_line(t);
}

static int
human_end(void *arg)
{
    struct textbuf *t = ((struct text_writer *)arg)->text;

    textbuf_str(t, "end superblock\n");
    return textbuf_flush(t);
}

const struct ir_visitor human_writer = {
    .superblock = human_superblock,
    .device_begin = human_device_begin,
    .run = human_run,
    .device_end = human_device_end,
    .end = human_end,
};
