/* thinmeta rmap, thin_rmap: who maps these data blocks. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/offline/rmap.h"
#include "core/tools/tool.h"

#define REGIONS_MAX 256u

static int
write_run(void *arg, const struct rmap_run *run)
{
    struct textbuf *t = arg;

    textbuf_str(t, "data ");
    textbuf_u64(t, run->data);
    textbuf_str(t, "..");
    textbuf_u64(t, run->data + run->len);
    textbuf_str(t, " -> thin(");
    textbuf_u64(t, run->dev_id);
    textbuf_str(t, ") ");
    textbuf_u64(t, run->virt);
    textbuf_str(t, "..");
    textbuf_u64(t, run->virt + run->len);
    textbuf_str(t, "\n");
    return textbuf_line(t);
}

/* "5..45" */
static bool
parse_region(char *text, struct rmap_region *ret, const char **ret_why)
{
    char *dots = strstr(text, "..");

    *ret_why = "badly formed region (no dots)";
    if (!dots)
        return false;
    *dots = '\0';
    *ret_why = "badly formed region (not a number)";
    if (!tool_number(text, &ret->begin) || !tool_number(dots + 2, &ret->end))
        return false;
    *ret_why = "badly formed region (end <= begin)";
    return ret->end > ret->begin;
}

static int
run_rmap(const char *path, const struct rmap_region *regions, size_t nr,
         struct thin_error *err)
{
    static const struct live_options opts;
    struct meta_source *src = NULL;
    struct live_pool pool;
    struct tool_output out;
    struct textbuf text;
    int r = tool_output_open(&out, NULL, err);

    if (r >= 0)
        r = tool_open(path, SOURCE_READ, &src, err);
    if (r < 0)
        return r;
    r = live_open(src, &opts, &pool, err);
    if (r >= 0) {
        r = textbuf_init(&text, tool_output_write, &out);
        if (r >= 0) {
            r = rmap(&pool, regions, nr, write_run, &text, err);
            if (r >= 0)
                r = textbuf_flush(&text);
            textbuf_fini(&text);
        }
        live_close(&pool);
    }
    tool_close(src);
    tool_progress_end();
    return tool_output_told(&out, r, err);
}

int
tool_rmap(const struct tool *tool, int argc, char **argv)
{
    enum { REGION = 256 };
    static const struct option longopts[] = {
        {"region", required_argument, NULL, REGION},
        TOOL_LONG_COMMON,
    };
    struct rmap_region regions[REGIONS_MAX];
    size_t nr = 0;
    struct thin_error err;
    const char *path, *why;
    int opt, exit_code, r;

    while ((opt = getopt_long(argc, argv, "hV", longopts, NULL)) != -1) {
        if (tool_common_option(tool, opt, &exit_code))
            return exit_code;
        if (nr == REGIONS_MAX)
            return tool_misused(tool, "more than %u regions", REGIONS_MAX);
        if (!parse_region(optarg, &regions[nr], &why))
            return tool_misused(tool, "%s", why);
        nr++;
    }
    exit_code = tool_argument(tool, argc, argv, "No input device provided.", &path);
    if (exit_code)
        return exit_code;
    if (!nr)
        return tool_misused(tool, "No regions provided.");
    thin_error_init(&err);
    r = run_rmap(path, regions, nr, &err);
    return r < 0 ? tool_fail(tool, r, &err) : 0;
}
