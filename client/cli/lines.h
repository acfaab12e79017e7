/*
 * Answers that are lines of text, as JSON: an array of objects, numbers as numbers, sizes
 * in bytes. One function for each kind of line; a line that is not understood is left out.
 */
#ifndef THIN_CLI_LINES_H
#define THIN_CLI_LINES_H

#include "client/cli/cli.h"

struct json;

/* What the lines before have told. */
struct lines_state {
    uint64_t block_bytes;
};

typedef void (*lines_fn)(struct lines_state *state, struct json *json, char *line);

void lines_map(struct lines_state *state, struct json *json, char *line);
void lines_delta(struct lines_state *state, struct json *json, char *line);
void lines_stats(struct lines_state *state, struct json *json, char *line);

/* Makes the call and shows its text: as it is, or with --json its lines under `key`. */
int lines_call(struct cli *cli, const Thin__Request *request, const char *key,
               lines_fn each);

#endif
