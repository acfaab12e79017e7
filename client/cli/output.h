/*
 * What people read: tables and trees by libsmartcols, sizes and times in short. One
 * table is filled row by row and printed once.
 */
#ifndef THIN_CLIENT_CLI_OUTPUT_H
#define THIN_CLIENT_CLI_OUTPUT_H

#include <stdbool.h>
#include <stdint.h>

#include <libsmartcols.h>

#include "core/base/error.h"

#define OUTPUT_WORD 64u /* bytes of a size, a time or the like */

enum output_column_kind {
    OUTPUT_LEFT,
    OUTPUT_RIGHT,
    OUTPUT_TREE,
    OUTPUT_WRAP, /* long words: cut into lines on a terminal */
};
struct output_column {
    const char *name;
    enum output_column_kind kind;
};

struct output {
    struct libscols_table *table;
    struct libscols_line *line; /* being filled */
    unsigned column;
    bool failed; /* no memory */
};

/* `columns` ends with one without a name. -ENOMEM. */
int output_begin(struct output *output, const struct output_column *columns);
/* A new row, below `parent` in trees (NULL: none). */
struct libscols_line *output_row(struct output *output, struct libscols_line *parent);
/* The row's next cell. Control bytes are the library's to make harmless. */
void output_cell(struct output *output, const char *text);
void output_cell_size(struct output *output, uint64_t bytes);
void output_cell_u64(struct output *output, uint64_t number);
/* Prints if nothing failed, and frees. */
int output_end(struct output *output, struct thin_error *err);

/* "12.5G": one decimal where it says something; bytes below 1024 as they are. */
const char *output_size(char buf[OUTPUT_WORD], uint64_t bytes);
/* "2024-05-01 12:00:00" in local time, "-" for 0. */
const char *output_time(char buf[OUTPUT_WORD], uint64_t unix_seconds);
/* "37%", of nothing "-". */
const char *output_percent(char buf[OUTPUT_WORD], uint64_t part, uint64_t whole);
/* "name:   value" lines, as `show` prints them. */
void output_field(const char *name, const char *value);

#endif
