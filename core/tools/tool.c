#include "core/tools/tool.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/checked.h"
#include "core/offline/build.h"
#include "core/offline/owner.h"

#define PROGRESS_EVERY_MS 200

/* A process has one terminal and one set of signals. */
static volatile sig_atomic_t interrupted;
static bool progress_shown, on_terminal;
static struct {
    const char *what; /* the last that was told, or NULL */
    uint64_t done, total;
    const struct meta_source *output; /* while it is open */
    bool has_written;
} work;
int tool_takeover;

const char *
tool_name(const struct tool *tool)
{
    static char name[64];

    if (tool->as_official && tool->official)
        return tool->official;
    snprintf(name, sizeof(name), "thinmeta %s", tool->verb);
    return name;
}

int
tool_fail(const struct tool *tool, int code, const struct thin_error *err)
{
    tool_progress_end();
    if (code != -THIN_E_CANCELLED) {
        fprintf(stderr, "%s: %s\n", tool_name(tool), thin_error_text(err, code));
        return 1;
    }
    fprintf(stderr, "%s: interrupted", tool_name(tool));
    if (work.what && work.total)
        fprintf(stderr, " after %" PRIu64 " of %" PRIu64 " %s", work.done, work.total,
                work.what);
    else if (work.what)
        fprintf(stderr, " after %" PRIu64 " %s", work.done, work.what);
    fprintf(stderr, "; %s\n",
            work.has_written && tool->half ? tool->half : "nothing was changed");
    return 1;
}

int
tool_misused(const struct tool *tool, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\nUsage: %s %s\n%s", tool_name(tool), tool->synopsis, tool->usage);
    return tool->as_official ? 1 : 2;
}

bool
tool_common_option(const struct tool *tool, int opt, int *ret_exit)
{
    switch (opt) {
    case 'h':
        printf("Usage: %s %s\n%s", tool_name(tool), tool->synopsis, tool->usage);
        *ret_exit = 0;
        return true;
    case 'V':
        /* The official tools print a bare number, which LVM compares with what it needs. */
        if (tool->as_official)
            printf("0.9.0\n");
        else
            printf("thinmeta %s\n", THIN_VERSION);
        *ret_exit = 0;
        return true;
    case '?':
        *ret_exit = tool_misused(tool, "%s", "wrong option");
        return true;
    default:
        return false;
    }
}

int
tool_argument(const struct tool *tool, int argc, char **argv, const char *missing,
              const char **ret)
{
    if (optind == argc)
        return tool_misused(tool, "%s", missing);
    if (optind < argc - 1)
        return tool_misused(tool, "unexpected argument '%s'", argv[optind + 1]);
    *ret = argv[optind];
    return 0;
}

bool
tool_number(const char *text, uint64_t *ret)
{
    char *end;
    unsigned long long v;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    v = strtoull(text, &end, 10);
    if (errno || *end)
        return false;
    *ret = v;
    return true;
}

bool
tool_size(const char *text, uint64_t *ret)
{
    static const char letters[] = "kmgtpe";
    char digits[24];
    size_t len = strspn(text, "0123456789");
    const char *unit;
    uint64_t v;

    if (len == 0 || len >= sizeof(digits) || strlen(text) > len + 1)
        return false;
    memcpy(digits, text, len);
    digits[len] = '\0';
    if (!tool_number(digits, &v))
        return false;
    if (text[len]) {
        unit = strchr(letters, tolower((unsigned char)text[len]));
        if (!unit || !checked_mul_u64(v, 1ull << 10 * (unit - letters + 1), &v))
            return false;
    }
    *ret = v;
    return v % SECTOR_SIZE == 0;
}

bool
tool_override(struct build_override *over, int which, const char *text)
{
    uint64_t v;

    if (!tool_number(text, &v))
        return false;
    switch (which) {
    case 0:
        over->have_trans_id = true;
        over->trans_id = v;
        break;
    case 1:
        over->have_data_block_size = true;
        over->data_block_size = v;
        break;
    default:
        over->have_nr_data_blocks = true;
        over->nr_data_blocks = v;
        break;
    }
    return true;
}

/* ---- progress --------------------------------------------------------------------------- */

static void
on_signal(int sig)
{
    (void)sig;
    interrupted = 1;
}

static uint64_t
now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static int
tick(void *arg, const char *what, uint64_t done, uint64_t total)
{
    static uint64_t last;
    uint64_t now;

    (void)arg;

    if (work.output && work.output->nr_written)
        work.has_written = true;
    if (what) {
        work.what = what;
        work.done = done;
        work.total = total;
    }
    if (interrupted)
        return 1;
    if (!on_terminal || !work.what)
        return 0;
    now = now_ms();
    if (!last)
        last = now;
    if (now - last < PROGRESS_EVERY_MS)
        return 0;
    last = now;
    progress_shown = true;
    if (work.total)
        fprintf(stderr, "\r%s: %" PRIu64 " of %" PRIu64 " \033[K", work.what, work.done,
                work.total);
    else
        fprintf(stderr, "\r%s: %" PRIu64 " \033[K", work.what, work.done);
    return 0;
}

void
tool_progress_end(void)
{
    if (progress_shown)
        fprintf(stderr, "\r\033[K");
    progress_shown = false;
}

int
tool_open(const char *path, enum source_mode mode, struct meta_source **ret_src,
          struct thin_error *err)
{
    /* Interrupted work ends at its next step and says so; a second signal kills. */
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    int r = source_open_path(path, mode, ret_src, err);

    if (r == 0 && mode == SOURCE_WRITE) {
        r = owner_judge(*ret_src, tool_takeover, err);
        if (r < 0) {
            source_close(*ret_src);
            *ret_src = NULL;
            thin_wrap(err, r, "%s", path);
        }
    }
    if (r < 0)
        return r;
    on_terminal = isatty(STDERR_FILENO);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    (*ret_src)->progress.tick = tick;
    (*ret_src)->progress.arg = *ret_src;
    if (mode == SOURCE_WRITE)
        work.output = *ret_src;
    return 0;
}

void
tool_close(struct meta_source *src)
{
    if (src && src == work.output) {
        work.has_written |= src->nr_written > 0;
        work.output = NULL;
    }
    source_close(src);
}

int
tool_go_on(void)
{
    return interrupted ? -THIN_E_CANCELLED : 0;
}

long
tool_input_read(int fd, char *buf, size_t room)
{
    ssize_t n;

    do {
        if (interrupted)
            return -THIN_E_CANCELLED;
        n = read(fd, buf, room);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : (long)n;
}

/* ---- output ----------------------------------------------------------------------------- */

int
tool_output_open(struct tool_output *out, const char *path, struct thin_error *err)
{
    out->path = path;
    out->code = 0;
    out->fd = STDOUT_FILENO;
    if (!path)
        return 0;
    out->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    return out->fd < 0 ? thin_fail_code(err, -errno, "open %s", path) : 0;
}

int
tool_output_write(void *arg, const char *bytes, size_t len)
{
    struct tool_output *out = arg;

    while (len) {
        ssize_t n;

        /* A reader that has stopped reading must not hold up who wants to stop: the
           signal ends a write in part, or with EINTR. */
        if (interrupted)
            return -THIN_E_CANCELLED;
        n = write(out->fd, bytes, len);
        work.has_written |= n > 0;

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return out->code = -errno;
        bytes += n;
        len -= (size_t)n;
    }
    return 0;
}

int
tool_output_told(const struct tool_output *out, int r, struct thin_error *err)
{
    if (r >= 0 || !out->code)
        return r;
    thin_error_init(err);
    return thin_fail_code(err, out->code, "write %s",
                          out->path ? out->path : "the output");
}

int
tool_output_close(struct tool_output *out, struct thin_error *err)
{
    int fd = out->fd;

    out->fd = -1;
    if (out->path && fd >= 0 && close(fd) < 0)
        return thin_fail_code(err, -errno, "close %s", out->path);
    return 0;
}
