#include "core/offline/text_write.h"

/* Mappings are arrays [virtual, data, length, time]: they are many. */
static int
json_superblock(void *arg, const struct ir_superblock *sb)
{
    struct text_writer *w = arg;
    struct textbuf *t = w->text;

    textbuf_str(t, "{\"superblock\": {\"time\": ");
    textbuf_u64(t, sb->time);
    textbuf_str(t, ", \"transaction\": ");
    textbuf_u64(t, sb->trans_id);
    textbuf_str(t, ", \"flags\": ");
    textbuf_u64(t, sb->flags);
    textbuf_str(t, ", \"version\": ");
    textbuf_u64(t, sb->version);
    textbuf_str(t, ", \"data_block_size\": ");
    textbuf_u64(t, sb->data_block_size);
    textbuf_str(t, ", \"nr_data_blocks\": ");
    textbuf_u64(t, sb->nr_data_blocks);
    if (sb->has_catalogue) {
        textbuf_str(t, ", \"catalogue\": ");
        textbuf_u64(t, sb->catalogue);
    }
    textbuf_str(t, "},\n \"devices\": [");
    w->first_device = true;
    return textbuf_line(t);
}

static int
json_device_begin(void *arg, const struct ir_device *dev)
{
    struct text_writer *w = arg;
    struct textbuf *t = w->text;

    if (!w->first_device)
        textbuf_str(t, ",");
    w->first_device = false;
    w->first_run = true;
    textbuf_str(t, "\n  {\"dev_id\": ");
    textbuf_u64(t, dev->dev_id);
    textbuf_str(t, ", \"mapped_blocks\": ");
    textbuf_u64(t, dev->mapped_blocks);
    textbuf_str(t, ", \"transaction\": ");
    textbuf_u64(t, dev->trans_id);
    textbuf_str(t, ", \"creation_time\": ");
    textbuf_u64(t, dev->creation_time);
    textbuf_str(t, ", \"snap_time\": ");
    textbuf_u64(t, dev->snap_time);
    textbuf_str(t, ",\n   \"mappings\": [");
    return textbuf_line(t);
}

static int
json_run(void *arg, const struct ir_run *run)
{
    struct text_writer *w = arg;
    struct textbuf *t = w->text;

    if (!w->first_run)
        textbuf_str(t, ",");
    w->first_run = false;
    textbuf_str(t, "\n    [");
    textbuf_u64(t, run->virt);
    textbuf_str(t, ", ");
    textbuf_u64(t, run->data);
    textbuf_str(t, ", ");
    textbuf_u64(t, run->len);
    textbuf_str(t, ", ");
    textbuf_u64(t, run->time);
    textbuf_str(t, "]");
    return textbuf_line(t);
}

static int
json_device_end(void *arg)
{
    struct textbuf *t = ((struct text_writer *)arg)->text;

    textbuf_str(t, "]}");
    return textbuf_line(t);
}

static int
json_end(void *arg)
{
    struct textbuf *t = ((struct text_writer *)arg)->text;

    textbuf_str(t, "\n ]}\n");
    return textbuf_flush(t);
}

const struct ir_visitor json_writer = {
    .superblock = json_superblock,
    .device_begin = json_device_begin,
    .run = json_run,
    .device_end = json_device_end,
    .end = json_end,
};
