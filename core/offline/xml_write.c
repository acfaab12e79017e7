#include "core/offline/text_write.h"

static int
xml_superblock(void *arg, const struct ir_superblock *sb)
{
    struct textbuf *t = ((struct text_writer *)arg)->text;

    textbuf_str(t, "<superblock uuid=\"");
    textbuf_text(t, sb->uuid);
    textbuf_str(t, "\" time=\"");
    textbuf_u64(t, sb->time);
    textbuf_str(t, "\" transaction=\"");
    textbuf_u64(t, sb->trans_id);
    textbuf_str(t, "\" flags=\"");
    textbuf_u64(t, sb->flags);
    textbuf_str(t, "\" version=\"");
    textbuf_u64(t, sb->version);
    textbuf_str(t, "\" data_block_size=\"");
    textbuf_u64(t, sb->data_block_size);
    textbuf_str(t, "\" nr_data_blocks=\"");
    textbuf_u64(t, sb->nr_data_blocks);
    textbuf_str(t, "\">\n");
    return textbuf_line(t);
}

static int
xml_device_begin(void *arg, const struct ir_device *dev)
{
    struct textbuf *t = ((struct text_writer *)arg)->text;

    textbuf_str(t, "  <device dev_id=\"");
    textbuf_u64(t, dev->dev_id);
    textbuf_str(t, "\" mapped_blocks=\"");
    textbuf_u64(t, dev->mapped_blocks);
    textbuf_str(t, "\" transaction=\"");
    textbuf_u64(t, dev->trans_id);
    textbuf_str(t, "\" creation_time=\"");
    textbuf_u64(t, dev->creation_time);
    textbuf_str(t, "\" snap_time=\"");
    textbuf_u64(t, dev->snap_time);
    textbuf_str(t, "\">\n");
    return textbuf_line(t);
}

static int
xml_run(void *arg, const struct ir_run *run)
{
    struct textbuf *t = ((struct text_writer *)arg)->text;

    if (run->len == 1) {
        textbuf_str(t, "    <single_mapping origin_block=\"");
        textbuf_u64(t, run->virt);
        textbuf_str(t, "\" data_block=\"");
        textbuf_u64(t, run->data);
    } else {
        textbuf_str(t, "    <range_mapping origin_begin=\"");
        textbuf_u64(t, run->virt);
        textbuf_str(t, "\" data_begin=\"");
        textbuf_u64(t, run->data);
        textbuf_str(t, "\" length=\"");
        textbuf_u64(t, run->len);
    }
    textbuf_str(t, "\" time=\"");
    textbuf_u64(t, run->time);
    textbuf_str(t, "\"/>\n");
    return textbuf_line(t);
}

static int
xml_device_end(void *arg)
{
    struct textbuf *t = ((struct text_writer *)arg)->text;

    textbuf_str(t, "  </device>\n");
    return textbuf_line(t);
}

static int
xml_end(void *arg)
{
    struct textbuf *t = ((struct text_writer *)arg)->text;

    textbuf_str(t, "</superblock>\n");
    return textbuf_flush(t);
}

const struct ir_visitor xml_writer = {
    .superblock = xml_superblock,
    .device_begin = xml_device_begin,
    .run = xml_run,
    .device_end = xml_device_end,
    .end = xml_end,
};
