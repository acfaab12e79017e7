#include "core/offline/delta_text.h"

static int
write_joined(struct delta_text *w)
{
    struct textbuf *t = w->text;

    if (!w->open.len)
        return 0;
    textbuf_str(t, "    <");
    textbuf_text(t, delta_kind_name(w->open.kind));
    textbuf_str(t, " begin=\"");
    textbuf_u64(t, w->open.begin);
    textbuf_str(t, "\" length=\"");
    textbuf_u64(t, w->open.len);
    textbuf_str(t, "\"/>\n");
    w->open.len = 0;
    return textbuf_line(t);
}

static int
end_kind(struct delta_text *w)
{
    struct textbuf *t = w->text;

    if (!w->in_kind)
        return 0;
    w->in_kind = false;
    textbuf_str(t, "    </");
    textbuf_text(t, delta_kind_name(w->kind));
    textbuf_str(t, ">\n");
    return textbuf_line(t);
}

static int
write_verbose(struct delta_text *w, const struct delta_run *run)
{
    struct textbuf *t = w->text;
    int r = 0;

    if (w->in_kind && w->kind != run->kind)
        r = end_kind(w);
    if (!w->in_kind) {
        w->in_kind = true;
        w->kind = run->kind;
        textbuf_str(t, "    <");
        textbuf_text(t, delta_kind_name(run->kind));
        textbuf_str(t, ">\n");
    }
    textbuf_str(t, "      <range begin=\"");
    textbuf_u64(t, run->begin);
    if (run->kind == DELTA_DIFFERENT) {
        textbuf_str(t, "\" left_data_begin=\"");
        textbuf_u64(t, run->left);
        textbuf_str(t, "\" right_data_begin=\"");
        textbuf_u64(t, run->right);
    } else {
        textbuf_str(t, "\" data_begin=\"");
        textbuf_u64(t, run->kind == DELTA_RIGHT_ONLY ? run->right : run->left);
    }
    textbuf_str(t, "\" length=\"");
    textbuf_u64(t, run->len);
    textbuf_str(t, "\"/>\n");
    return r < 0 ? r : textbuf_line(t);
}

int
delta_text_run(void *arg, const struct delta_run *run)
{
    struct delta_text *w = arg;
    int r;

    if (w->verbose)
        return write_verbose(w, run);
    if (w->open.len && w->open.kind == run->kind &&
        run->begin == w->open.begin + w->open.len) {
        w->open.len += run->len;
        return 0;
    }
    r = write_joined(w);
    w->open = *run;
    return r;
}

void
delta_text_begin(struct delta_text *w, const struct superblock *sb, uint64_t left,
                 uint64_t right)
{
    struct textbuf *t = w->text;

    textbuf_str(t, "<superblock uuid=\"\" time=\"");
    textbuf_u64(t, sb->time);
    textbuf_str(t, "\" transaction=\"");
    textbuf_u64(t, sb->trans_id);
    textbuf_str(t, "\" data_block_size=\"");
    textbuf_u64(t, sb->data_block_size);
    textbuf_str(t, "\" nr_data_blocks=\"");
    textbuf_u64(t, sb->data_sm.nr_blocks);
    if (sb->held_root) {
        textbuf_str(t, "\" metadata_snap=\"");
        textbuf_u64(t, sb->held_root);
    }
    textbuf_str(t, "\">\n  <diff left=\"");
    textbuf_u64(t, left);
    textbuf_str(t, "\" right=\"");
    textbuf_u64(t, right);
    textbuf_str(t, "\">\n");
}

int
delta_text_end(struct delta_text *w)
{
    int r = w->verbose ? end_kind(w) : write_joined(w);

    if (r < 0)
        return r;
    textbuf_str(w->text, "  </diff>\n</superblock>\n");
    return textbuf_flush(w->text);
}
