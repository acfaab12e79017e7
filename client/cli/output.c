#include "client/cli/output.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static int
column_flags(enum output_column_kind kind)
{
    switch (kind) {
    case OUTPUT_RIGHT:
        return SCOLS_FL_RIGHT;
    case OUTPUT_TREE:
        return SCOLS_FL_TREE;
    case OUTPUT_WRAP:
        return SCOLS_FL_WRAP;
    default:
        return 0;
    }
}

int
output_begin(struct output *output, const struct output_column *columns)
{
    *output = (struct output){.table = scols_new_table()};
    if (!output->table)
        return -ENOMEM;
    for (const struct output_column *c = columns; c->name; c++)
        if (!scols_table_new_column(output->table, c->name, 0, column_flags(c->kind))) {
            scols_unref_table(output->table);
            output->table = NULL;
            return -ENOMEM;
        }
    return 0;
}

struct libscols_line *
output_row(struct output *output, struct libscols_line *parent)
{
    output->line = scols_table_new_line(output->table, parent);
    output->column = 0;
    if (!output->line)
        output->failed = true;
    return output->line;
}

void
output_cell(struct output *output, const char *text)
{
    if (!output->line || scols_line_set_data(output->line, output->column++, text) < 0)
        output->failed = true;
}

void
output_cell_size(struct output *output, uint64_t bytes)
{
    char buf[OUTPUT_WORD];

    output_cell(output, output_size(buf, bytes));
}

void
output_cell_u64(struct output *output, uint64_t number)
{
    char buf[OUTPUT_WORD];

    snprintf(buf, sizeof(buf), "%" PRIu64, number);
    output_cell(output, buf);
}

int
output_end(struct output *output, struct thin_error *err)
{
    int r = output->failed ? -ENOMEM : 0;

    if (r == 0 && scols_print_table(output->table) < 0)
        r = -EIO;
    scols_unref_table(output->table);
    output->table = NULL;
    return r < 0 ? thin_fail_code(err, r, "print a table") : 0;
}

const char *
output_size(char buf[OUTPUT_WORD], uint64_t bytes)
{
    static const char units[] = "BKMGTPE";
    unsigned unit = 0, shift;
    uint64_t whole, tenths;

    while (unit < sizeof(units) - 2 && bytes >> (10 * (unit + 1)) > 0)
        unit++;
    shift = 10 * unit;
    if (unit == 0) {
        snprintf(buf, OUTPUT_WORD, "%" PRIu64 "B", bytes);
        return buf;
    }
    whole = bytes >> shift;
    /* Rounded to the nearest tenth; the unit's rest has at most 60 bits. */
    tenths = ((((bytes - (whole << shift)) >> (shift - 10)) * 10) + 512) >> 10;
    if (tenths == 10) {
        whole++;
        tenths = 0;
    }
    if (whole == 1024 && unit < sizeof(units) - 2) {
        whole = 1;
        unit++;
    }
    if (tenths == 0)
        snprintf(buf, OUTPUT_WORD, "%" PRIu64 "%c", whole, units[unit]);
    else
        snprintf(buf, OUTPUT_WORD, "%" PRIu64 ".%" PRIu64 "%c", whole, tenths,
                 units[unit]);
    return buf;
}

const char *
output_time(char buf[OUTPUT_WORD], uint64_t unix_seconds)
{
    time_t t = (time_t)unix_seconds;
    struct tm tm;

    if (unix_seconds == 0 || !localtime_r(&t, &tm) ||
        strftime(buf, OUTPUT_WORD, "%Y-%m-%d %H:%M:%S", &tm) == 0)
        snprintf(buf, OUTPUT_WORD, "-");
    return buf;
}

const char *
output_percent(char buf[OUTPUT_WORD], uint64_t part, uint64_t whole)
{
    if (whole == 0)
        snprintf(buf, OUTPUT_WORD, "-");
    else
        snprintf(buf, OUTPUT_WORD, "%.1f%%", 100.0 * (double)part / (double)whole);
    return buf;
}

void
output_field(const char *name, const char *value)
{
    printf("%-20s %s\n", name, value && *value ? value : "-");
}
