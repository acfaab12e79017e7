/* Check, dump and delta of a pool that is being served: offline's code over a pinned view. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/offline/check.h"
#include "core/offline/delta.h"
#include "core/offline/live.h"
#include "core/offline/owner.h"
#include "core/offline/text_write.h"
#include "server/dispatch.h"
#include "server/online.h"
#include "server/pools.h"

/* ---- check: the text of `thinmeta check` ------------------------------------------------ */

static int
print_affected(struct online_job *job, const struct report *rep)
{
    int r = 0;

    for (size_t i = 0; i < rep->nr_affected && r == 0; i++) {
        const struct affected *a = &rep->affected[i];
        const char *held = a->held ? "held " : "";

        if (a->last == UINT64_MAX)
            r = online_print(job,
                             "affected: %sdevice %" PRIu64
                             ", virtual blocks from %" PRIu64
                             " on (metadata block %" PRIu64 ")\n",
                             held, a->dev_id, a->begin, a->block);
        else
            r = online_print(job,
                             "affected: %sdevice %" PRIu64 ", virtual blocks %" PRIu64
                             " to %" PRIu64 " (metadata block %" PRIu64 ")\n",
                             held, a->dev_id, a->begin, a->last, a->block);
    }
    if (r == 0 && rep->nr_affected_all > rep->nr_affected)
        r = online_print(job, "affected: and more\n");
    return r;
}

static int
print_report(struct online_job *job, const struct report *rep,
             const struct check_result *res)
{
    enum report_place at = REPORT_NR_PLACES;
    int r = 0;

    for (size_t i = 0; i < rep->nr && r == 0; i++) {
        const struct finding *f = &rep->findings[i];

        if (f->place != at)
            r = online_print(job, "%s\n", report_place_name(f->place));
        at = f->place;
        if (r == 0)
            r = online_print(job, "  %s: %s\n", report_class_name(f->class), f->text);
    }
    if (r == 0 && rep->nr == REPORT_FINDINGS_MAX)
        r = online_print(job, "further findings are not listed\n");
    if (r == 0)
        r = print_affected(job, rep);
    if (r == 0 && (res->unreached_metadata || res->unreached_data))
        r = online_print(job,
                         "not reached: %" PRIu64 " metadata and %" PRIu64
                         " data blocks are counted more often than seen; they may belong "
                         "to what is damaged\n",
                         res->unreached_metadata, res->unreached_data);
    if (r == 0 && res->needs_check)
        r = online_print(job, "needs_check is set\n");
    return r;
}

static int
print_summary(struct online_job *job, const struct report *rep,
              const struct check_result *res)
{
    uint32_t catalogue;
    int r = online_print(job, "TRANSACTION_ID=%" PRIu64 "\n", res->sb.trans_id);

    if (r == 0 && owner_catalogue_device(&res->sb, &catalogue))
        r = online_print(job, "CATALOGUE_DEVICE=%" PRIu32 "\n", catalogue);
    if (r == 0)
        r = online_print(job, "METADATA_FREE_BLOCKS=%" PRIu64 "\n",
                         res->metadata_blocks - res->metadata_used);
    if (r == 0 && (rep->nr_class[REPORT_DAMAGE] || rep->nr_class[REPORT_LEAK]))
        r = online_print(job,
                         "%" PRIu64 " faults, %" PRIu64
                         " leaked metadata blocks, %" PRIu64 " leaked data blocks\n",
                         rep->nr_class[REPORT_DAMAGE], res->leaked_metadata,
                         res->leaked_data);
    return r;
}

static int
run_check(const struct online_work *work, struct meta_source *src, struct online_job *job,
          struct thin_error *err)
{
    const struct check_options opts = {0};
    struct report rep;
    struct check_result res;
    int r;

    (void)work;
    report_init(&rep);
    r = check_run(src, &opts, &rep, &res, err);
    if (r >= 0)
        r = print_report(job, &rep, &res);
    if (r >= 0 && res.sb_good)
        r = print_summary(job, &rep, &res);
    if (r >= 0 && rep.nr_class[REPORT_DAMAGE])
        r = thin_fail(err, -THIN_E_BAD_BLOCK, "the metadata has %" PRIu64 " fault%s",
                      rep.nr_class[REPORT_DAMAGE],
                      rep.nr_class[REPORT_DAMAGE] == 1 ? "" : "s");
    check_result_fini(&res);
    report_fini(&rep);
    return r;
}

void
ops_pool_check(struct request *rq, const struct op_object *object)
{
    const struct online_work work = {.run = run_check};
    struct pool *pool = ops_find_pool(rq, object->pool);

    if (pool)
        online_start(rq, pool, object->pool, &work);
}

/* ---- dump --------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    const struct ir_visitor *writer;
} formats[] = {{"xml", &xml_writer}, {"human", &human_writer}, {"json", &json_writer}};

static int
run_dump(const struct online_work *work, struct meta_source *src, struct online_job *job,
         struct thin_error *err)
{
    const struct live_options opts = {0};
    struct textbuf text;
    struct text_writer writer = {.text = &text};
    int r = textbuf_init(&text, online_write, job);

    if (r < 0)
        return thin_fail_code(err, r, "dump");
    r = live_read(src, &opts, formats[work->format].writer, &writer, err);
    textbuf_fini(&text);
    return r;
}

void
ops_pool_dump(struct request *rq, const struct op_object *object)
{
    const Thin__PoolDump *m = ops_body(rq);
    const int nr = sizeof(formats) / sizeof(formats[0]);
    struct online_work work = {.run = run_dump};
    struct pool *pool;

    if (m->format[0])
        while (work.format < nr && strcmp(m->format, formats[work.format].name) != 0)
            work.format++;
    if (work.format == nr) {
        ops_fail(rq, -THIN_E_INVALID, "a dump is xml, human or json, not %.32s",
                 m->format);
        return;
    }
    pool = ops_find_pool(rq, object->pool);
    if (pool)
        online_start(rq, pool, object->pool, &work);
}

/* ---- delta: the text of `thinmeta delta` ------------------------------------------------ */

struct delta_writer {
    struct online_job *job;
    struct delta_run open; /* joined by kind alone; len 0: none */
};

static int
write_joined(struct delta_writer *w)
{
    uint64_t len = w->open.len;

    w->open.len = 0;
    return len ? online_print(w->job,
                              "    <%s begin=\"%" PRIu64 "\" length=\"%" PRIu64 "\"/>\n",
                              delta_kind_name(w->open.kind), w->open.begin, len)
               : 0;
}

static int
on_run(void *arg, const struct delta_run *run)
{
    struct delta_writer *w = arg;
    int r;

    if (w->open.len && w->open.kind == run->kind &&
        run->begin == w->open.begin + w->open.len) {
        w->open.len += run->len;
        return 0;
    }
    r = write_joined(w);
    w->open = *run;
    return r;
}

static int
write_head(struct online_job *job, const struct live_pool *pool,
           const struct online_work *work)
{
    const struct superblock *sb = &pool->sb;
    char snap[64] = "";

    if (sb->held_root)
        snprintf(snap, sizeof(snap), " metadata_snap=\"%" PRIu64 "\"", sb->held_root);
    return online_print(job,
                        "<superblock uuid=\"\" time=\"%u\" transaction=\"%" PRIu64
                        "\" data_block_size=\"%u\" nr_data_blocks=\"%" PRIu64 "\"%s>\n"
                        "  <diff left=\"%u\" right=\"%u\">\n",
                        sb->time, sb->trans_id, sb->data_block_size,
                        sb->data_sm.nr_blocks, snap, work->left, work->right);
}

static int
run_delta(const struct online_work *work, struct meta_source *src, struct online_job *job,
          struct thin_error *err)
{
    const struct live_options opts = {0};
    const struct live_device *left, *right;
    struct delta_writer w = {.job = job};
    struct live_pool pool;
    int r = live_open(src, &opts, &pool, err);

    if (r < 0)
        return r;
    left = live_find(&pool, work->left);
    right = live_find(&pool, work->right);
    if (!left || !right)
        r = thin_fail(err, -THIN_E_NOT_FOUND, "a volume was deleted meanwhile");
    if (r >= 0)
        r = write_head(job, &pool, work);
    if (r >= 0)
        r = delta_devices(&pool, left, right, false, on_run, &w, err);
    if (r >= 0)
        r = write_joined(&w);
    if (r >= 0)
        r = online_print(job, "  </diff>\n</superblock>\n");
    live_close(&pool);
    return r;
}

/* One side's right and pool. */
static int
judge_side(const struct request *rq, const char *name, char pool[], char volume[],
           struct thin_error *err)
{
    int r = message_split_name(name, pool, volume, err);

    return r < 0 ? r : request_may(rq, name, AUTH_READ, err);
}

void
ops_volume_delta(struct request *rq, const struct op_object *object)
{
    const Thin__VolumeDelta *m = ops_body(rq);
    struct online_work work = {.run = run_delta};
    char pool_name[THIN_NAME_MAX + 1], other[THIN_NAME_MAX + 1];
    char left[THIN_NAME_MAX + 1], right[THIN_NAME_MAX + 1];
    struct volume_info info;
    struct thin_error err;
    struct pool *pool;
    int r = judge_side(rq, m->left, pool_name, left, &err);

    (void)object;
    if (r == 0)
        r = judge_side(rq, m->right, other, right, &err);
    if (r == 0 && strcmp(pool_name, other) != 0)
        r = thin_fail(&err, -THIN_E_INVALID, "both volumes must be of one pool");
    if (r < 0) {
        request_reply_code(rq, r, &err);
        return;
    }
    pool = ops_find_pool(rq, pool_name);
    if (!pool)
        return;
    for (unsigned i = 0; i < 2; i++) {
        if (!pool_volume_peek(pool, i ? right : left, &info)) {
            ops_fail(rq, -THIN_E_NOT_FOUND, "no such volume: %s", i ? m->right : m->left);
            return;
        }
        *(i ? &work.right : &work.left) = info.dev_id;
    }
    online_start(rq, pool, pool_name, &work);
}
