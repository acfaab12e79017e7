#include "core/offline/check_text.h"

#include <inttypes.h>

#include "core/base/checked.h"
#include "core/offline/owner.h"

static void
write_affected(struct textbuf *t, const struct report *rep)
{
    for (size_t i = 0; i < rep->nr_affected; i++) {
        const struct affected *a = &rep->affected[i];
        const char *held = a->held ? "held " : "";

        if (a->last == UINT64_MAX)
            textbuf_printf(t,
                           "affected: %sdevice %" PRIu64 ", virtual blocks from %" PRIu64
                           " on (metadata block %" PRIu64 ")\n",
                           held, a->dev_id, a->begin, a->block);
        else
            textbuf_printf(t,
                           "affected: %sdevice %" PRIu64 ", virtual blocks %" PRIu64
                           " to %" PRIu64 " (metadata block %" PRIu64 ")\n",
                           held, a->dev_id, a->begin, a->last, a->block);
    }
    if (rep->nr_affected_all > rep->nr_affected)
        textbuf_printf(t, "affected: and more\n");
}

static void
write_findings(struct textbuf *t, const struct report *rep)
{
    enum report_place at = REPORT_NR_PLACES;

    for (size_t i = 0; i < rep->nr; i++) {
        const struct finding *f = &rep->findings[i];

        if (f->place != at)
            textbuf_printf(t, "%s\n", report_place_name(f->place));
        at = f->place;
        textbuf_printf(t, "  %s: %s\n", report_class_name(f->class), f->text);
    }
    if (rep->nr == REPORT_FINDINGS_MAX)
        textbuf_printf(t, "further findings are not listed\n");
}

static void
write_summary(struct textbuf *t, const struct check_text *form, const struct report *rep,
              const struct check_result *res)
{
    const struct space_map_root *sm = &res->sb.metadata_sm;
    uint32_t catalogue;

    textbuf_printf(t, "TRANSACTION_ID=%" PRIu64 "\n", res->trans_id);
    if (form->catalogue && owner_catalogue_device(&res->sb, &catalogue))
        textbuf_printf(t, "CATALOGUE_DEVICE=%" PRIu32 "\n", catalogue);
    /* The held snapshot has no space maps that could tell. */
    if (form->super_block_only)
        textbuf_printf(t, "METADATA_FREE_BLOCKS=%" PRIu64 "\n",
                       sm->nr_blocks - min_u64(sm->nr_allocated, sm->nr_blocks));
    else if (!form->metadata_snap)
        textbuf_printf(t, "METADATA_FREE_BLOCKS=%" PRIu64 "\n",
                       res->metadata_blocks - res->metadata_used);
    if (rep->nr_class[REPORT_DAMAGE] || rep->nr_class[REPORT_LEAK])
        textbuf_printf(t,
                       "%" PRIu64 " faults, %" PRIu64 " leaked metadata blocks, %" PRIu64
                       " leaked data blocks\n",
                       rep->nr_class[REPORT_DAMAGE], res->leaked_metadata,
                       res->leaked_data);
}

int
check_text_write(struct textbuf *t, const struct check_text *form,
                 const struct report *rep, const struct check_result *res)
{
    write_findings(t, rep);
    write_affected(t, rep);
    if (res->unreached_metadata || res->unreached_data)
        textbuf_printf(t,
                       "not reached: %" PRIu64 " metadata and %" PRIu64
                       " data blocks are counted more often than seen; they may belong "
                       "to what is damaged\n",
                       res->unreached_metadata, res->unreached_data);
    if (res->needs_check)
        textbuf_printf(t, "needs_check is set\n");
    if (res->sb_good)
        write_summary(t, form, rep, res);
    return textbuf_flush(t);
}

/* ---- for programs ----------------------------------------------------------------------- */

static void
write_string(struct textbuf *t, const char *s)
{
    textbuf_printf(t, "\"");
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            textbuf_printf(t, "\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            textbuf_printf(t, "\\u%04x", (unsigned char)*s);
        else
            textbuf_printf(t, "%c", *s);
    }
    textbuf_printf(t, "\"");
}

int
check_json_write(struct textbuf *t, const struct report *rep,
                 const struct check_result *res, bool good)
{
    uint32_t catalogue;

    textbuf_printf(t,
                   "{\"good\": %s, \"damage\": %" PRIu64 ", \"leaks\": %" PRIu64
                   ", \"notes\": %" PRIu64 ",\n",
                   good ? "true" : "false", rep->nr_class[REPORT_DAMAGE],
                   res->leaked_metadata + res->leaked_data, rep->nr_class[REPORT_NOTE]);
    textbuf_printf(t,
                   " \"needs_check\": %s, \"transaction_id\": %" PRIu64
                   ", \"devices\": %" PRIu64 ", \"mappings\": %" PRIu64 ",\n",
                   res->needs_check ? "true" : "false", res->trans_id, res->nr_devices,
                   res->nr_mappings);
    textbuf_printf(t,
                   " \"metadata_blocks\": %" PRIu64 ", \"metadata_used\": %" PRIu64
                   ", \"data_blocks\": %" PRIu64 ", \"data_used\": %" PRIu64 ",\n",
                   res->metadata_blocks, res->metadata_used, res->data_blocks,
                   res->data_used);
    textbuf_printf(t,
                   " \"leaked_metadata\": %" PRIu64 ", \"leaked_data\": %" PRIu64
                   ", \"unreached_metadata\": %" PRIu64 ", \"unreached_data\": %" PRIu64
                   ",\n",
                   res->leaked_metadata, res->leaked_data, res->unreached_metadata,
                   res->unreached_data);
    if (owner_catalogue_device(&res->sb, &catalogue))
        textbuf_printf(t, " \"catalogue_device\": %" PRIu32 ",\n", catalogue);
    else
        textbuf_printf(t, " \"catalogue_device\": null,\n");
    textbuf_printf(t, " \"findings\": [");
    for (size_t i = 0; i < rep->nr; i++) {
        const struct finding *f = &rep->findings[i];

        textbuf_printf(t,
                       "%s\n  {\"class\": \"%s\", \"place\": \"%s\", \"block\": %" PRIu64
                       ", \"text\": ",
                       i ? "," : "", report_class_name(f->class),
                       report_place_name(f->place), f->block);
        write_string(t, f->text);
        textbuf_printf(t, "}");
    }
    textbuf_printf(t, "],\n \"affected\": [");
    for (size_t i = 0; i < rep->nr_affected; i++) {
        const struct affected *a = &rep->affected[i];

        textbuf_printf(t,
                       "%s\n  {\"dev_id\": %" PRIu64 ", \"held\": %s, \"begin\": %" PRIu64
                       ", \"last\": %" PRIu64 ", \"block\": %" PRIu64 "}",
                       i ? "," : "", a->dev_id, a->held ? "true" : "false", a->begin,
                       a->last, a->block);
    }
    textbuf_printf(t, "]}\n");
    return textbuf_flush(t);
}
