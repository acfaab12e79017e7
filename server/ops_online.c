/* Check, dump and delta of a pool that is being served: offline's code over a pinned view. */
#include <inttypes.h>
#include <string.h>

#include "core/offline/check_text.h"
#include "core/offline/delta_text.h"
#include "core/offline/live.h"
#include "core/offline/text_write.h"
#include "server/dispatch.h"
#include "server/online.h"
#include "server/pools.h"

/* ---- check: what `thinmeta check` prints, with --json or not ----------------------------- */

enum { FORMAT_TEXT, FORMAT_JSON };

static int
run_check(const struct online_work *work, struct meta_source *src, struct online_job *job,
          struct thin_error *err)
{
    static const struct check_text form = {.catalogue = true};
    const struct check_options opts = {0};
    struct textbuf text;
    struct report rep;
    struct check_result res;
    int r = textbuf_init(&text, online_write, job);

    if (r < 0)
        return thin_fail_code(err, r, "check");
    report_init(&rep);
    r = check_run(src, &opts, &rep, &res, err);
    if (r >= 0)
        r = work->format == FORMAT_JSON
                ? check_json_write(&text, &rep, &res, !rep.nr_class[REPORT_DAMAGE])
                : check_text_write(&text, &form, &rep, &res);
    textbuf_fini(&text);
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
    const Thin__PoolCheck *m = ops_body(rq);
    struct online_work work = {.run = run_check};
    struct pool *pool;

    if (strcmp(m->format, "json") == 0) {
        work.format = FORMAT_JSON;
    } else if (m->format[0] && strcmp(m->format, "text") != 0) {
        ops_fail(rq, -THIN_E_INVALID, "a check is text or json, not %.32s", m->format);
        return;
    }
    pool = ops_find_pool(rq, object->pool);
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

static int
run_delta(const struct online_work *work, struct meta_source *src, struct online_job *job,
          struct thin_error *err)
{
    const struct live_options opts = {0};
    const struct live_device *left, *right;
    struct textbuf text;
    struct delta_text w = {.text = &text};
    struct live_pool pool;
    int r = live_open(src, &opts, &pool, err);

    if (r < 0)
        return r;
    left = live_find(&pool, work->left);
    right = live_find(&pool, work->right);
    if (!left || !right)
        r = thin_fail(err, -THIN_E_NOT_FOUND, "a volume was deleted meanwhile");
    if (r >= 0) {
        r = textbuf_init(&text, online_write, job);
        if (r < 0)
            thin_fail_code(err, r, "delta");
    }
    if (r >= 0) {
        delta_text_begin(&w, &pool.sb, work->left, work->right);
        r = delta_devices(&pool, left, right, false, delta_text_run, &w, err);
        if (r >= 0)
            r = delta_text_end(&w);
        textbuf_fini(&text);
    }
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
