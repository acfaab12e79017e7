#include "core/offline/trim.h"

#include "core/offline/check.h"

/* The check has found the map's counts equal to the walk's, so these are both. */
static int
tell_ranges(const struct check_result *res, trim_range_fn *range, void *arg)
{
    dblock_t begin = 0;

    for (dblock_t b = 0; b <= res->data.nr; b++) {
        int r;

        if (b < res->data.nr && counts_get(&res->data, b) == 0)
            continue;
        r = b > begin ? range(arg, &res->sb, begin, b) : 0;
        if (r)
            return r;
        begin = b + 1;
    }
    return 0;
}

int
trim_free_ranges(struct meta_source *src, trim_range_fn *range, void *arg,
                 struct thin_error *err)
{
    static const struct check_options opts;
    struct check_result res;
    struct report rep;
    int r;

    report_init(&rep);
    r = check_run(src, &opts, &rep, &res, err);
    if (r >= 0 && (rep.nr_class[REPORT_DAMAGE] || !res.trees_known || res.leaked_data))
        r = thin_fail(err, -THIN_E_NEEDS_CHECK,
                      "the metadata is not clean (thinmeta check tells more); nothing is "
                      "discarded");
    if (r >= 0 && res.needs_check)
        r = thin_fail(err, -THIN_E_NEEDS_CHECK,
                      "needs_check is set; nothing is discarded");
    if (r >= 0)
        r = tell_ranges(&res, range, arg);
    check_result_fini(&res);
    report_fini(&rep);
    return r;
}
