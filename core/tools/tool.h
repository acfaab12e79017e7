/*
 * What the verbs of thinmeta share: the table in main.c, options, output, exit codes.
 *
 * Exit codes are those of thin-provisioning-tools: 0 done, 1 refused, failed or damage
 * found. A wrong command line is 2, or 1 under one of the official tools' names.
 */
#ifndef THIN_CORE_TOOLS_TOOL_H
#define THIN_CORE_TOOLS_TOOL_H

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "core/base/error.h"
#include "core/offline/source.h"
#include "core/offline/textbuf.h"

struct tool {
    const char *verb;     /* "check" */
    const char *official; /* "thin_check", or NULL where there is none */
    int (*run)(const struct tool *tool, int argc, char **argv);
    const char *usage;    /* the lines of options */
    const char *synopsis; /* what follows the name */
    const char *summary;
    const char *half; /* what is left when it is interrupted after it began to write */
    bool as_official; /* called by the official name */
};

extern const struct tool tools[];

int tool_check(const struct tool *tool, int argc, char **argv);
int tool_dump(const struct tool *tool, int argc, char **argv);
int tool_pack(const struct tool *tool, int argc, char **argv);
int tool_unpack(const struct tool *tool, int argc, char **argv);
int tool_repair(const struct tool *tool, int argc, char **argv);
int tool_trim(const struct tool *tool, int argc, char **argv);
int tool_delta(const struct tool *tool, int argc, char **argv);
int tool_ls(const struct tool *tool, int argc, char **argv);
int tool_rmap(const struct tool *tool, int argc, char **argv);
int tool_format(const struct tool *tool, int argc, char **argv);
int tool_restore(const struct tool *tool, int argc, char **argv);
int tool_size_verb(const struct tool *tool, int argc, char **argv);

/* "thinmeta check" or "thin_check". Lives as long as the process. */
const char *tool_name(const struct tool *tool);

/* Prints one line "NAME: words" on stderr; returns the exit code 1. Of interrupted work:
   how far it had come, and what is left of it. */
int tool_fail(const struct tool *tool, int code, const struct thin_error *err);

/* Prints words and usage on stderr; returns the exit code of a wrong command line. */
int tool_misused(const struct tool *tool, const char *fmt, ...) PRINTF_LIKE(2, 3);

/*
 * Options that every verb knows: -h, --help, -V, --version. True if `opt` was one; then
 * *ret_exit is what to return. '?' (unknown) is one of them.
 */
bool tool_common_option(const struct tool *tool, int opt, int *ret_exit);

#define TOOL_LONG_COMMON                                                   \
    {"help", no_argument, NULL, 'h'}, {"version", no_argument, NULL, 'V'}, \
    {                                                                      \
        0                                                                  \
    }

/*
 * Of verbs that write, in their table of options: tool_open then passes over the mark of
 * another machine. getopt_long sets it and returns 0: the verb goes on to the next.
 */
extern int tool_takeover;
#define TOOL_LONG_TAKEOVER                                  \
    {                                                       \
        "force-takeover", no_argument, &tool_takeover, true \
    }
#define TOOL_USAGE_TAKEOVER \
    "      --force-takeover           also if another machine served the pool last\n"

/* The one argument that is left. 0, or the exit code: `missing` or what is too much has
   been said. */
int tool_argument(const struct tool *tool, int argc, char **argv, const char *missing,
                  const char **ret);

/* A number in decimal, all of the text. */
bool tool_number(const char *text, uint64_t *ret);

/* Bytes: "512", "64k", "10G", "1T" by powers of 1024; a multiple of 512. */
bool tool_size(const char *text, uint64_t *ret);

/* The three numbers that restore and repair take in place of the recorded ones: 0 the
   transaction id, 1 the data block size, 2 the number of data blocks. */
struct build_override;
bool tool_override(struct build_override *over, int which, const char *text);

/* Opens a source with progress on a terminal. For writing: heeds the owner mark. */
int tool_open(const char *path, enum source_mode mode, struct meta_source **ret_src,
              struct thin_error *err);
/* What tool_open has opened; NULL is fine. */
void tool_close(struct meta_source *src);

/* A file or a pipe that is read as a stream: bytes, 0 at its end, or a negative code;
   -THIN_E_CANCELLED once the work is interrupted. */
long tool_input_read(int fd, char *buf, size_t room);

/* -THIN_E_CANCELLED once the work is interrupted, for steps that read nothing. */
int tool_go_on(void);

/* Ends the progress line if there is one. */
void tool_progress_end(void);

/* A file to write text to: stdout or `path`. */
struct tool_output {
    int fd;
    const char *path; /* NULL: stdout */
    int code;         /* of the write that failed, or 0 */
};
int tool_output_open(struct tool_output *out, const char *path, struct thin_error *err);
/* A sink for textbuf; `arg` is the struct tool_output. */
int tool_output_write(void *arg, const char *bytes, size_t len);
/* The code of a work that ended with `r`; where it ended since the output could not be
   written, the words say so, whatever they were. */
int tool_output_told(const struct tool_output *out, int r, struct thin_error *err);
/* Reads the result of the last writes. */
int tool_output_close(struct tool_output *out, struct thin_error *err);

#endif
