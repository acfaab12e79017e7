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
