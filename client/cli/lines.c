/* Lines of text that the server sends, as they are or as JSON. */
#include "client/cli/lines.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/json.h"

#define SECTOR_BYTES 512u
#define WORD_MAX     64 /* of a kind or a counter's name */

/* BEGIN LENGTH KIND */
void
lines_map(struct lines_state *state, struct json *json, char *line)
{
    uint64_t begin, length;
    char kind[WORD_MAX];

    (void)state;
    if (sscanf(line, "%" SCNu64 " %" SCNu64 " %63s", &begin, &length, kind) != 3)
        return;
    json_open_object(json, NULL);
    json_u64(json, "begin", begin);
    json_u64(json, "length", length);
    json_string(json, "kind", kind);
    json_close(json);
}

/* thin_delta's XML: blocks, and before them how large one is. */
void
lines_delta(struct lines_state *state, struct json *json, char *line)
{
    const char *size = strstr(line, "data_block_size=\"");
    uint64_t begin, length;
    char kind[WORD_MAX];

    if (size && sscanf(size, "data_block_size=\"%" SCNu64, &state->block_bytes) == 1)
        state->block_bytes *= SECTOR_BYTES;
    if (sscanf(line, " <%63[a-z_] begin=\"%" SCNu64 "\" length=\"%" SCNu64, kind, &begin,
               &length) != 3)
        return;
    json_open_object(json, NULL);
    json_u64(json, "begin", begin * state->block_bytes);
    json_u64(json, "length", length * state->block_bytes);
    json_string(json, "kind", kind);
    json_close(json);
}

/* POOL/VOLUME COUNTER=NUMBER... */
void
lines_stats(struct lines_state *state, struct json *json, char *line)
{
    char *save = NULL, *word = strtok_r(line, " ", &save);

    (void)state;
    if (!word)
        return;
    json_open_object(json, NULL);
    json_string(json, "name", word);
    while ((word = strtok_r(NULL, " ", &save))) {
        char name[WORD_MAX];
        uint64_t number;

        if (sscanf(word, "%63[^=]=%" SCNu64, name, &number) == 2)
            json_u64(json, name, number);
    }
    json_close(json);
}

int
lines_call(struct cli *cli, const Thin__Request *request, const char *key, lines_fn each)
{
    struct cli_text text = {0};
    struct lines_state state = {0};
    struct json json;
    char *line, *save = NULL;
    int r;

    if (!cli->json)
        return cli_call(cli, request, cli_print_text, NULL);
    r = cli_call(cli, request, cli_collect_text, &text);
    if (r == 0)
        r = cli_collect_text(&text, NULL, "", 1); /* the end of a string */
    if (r == 0) {
        json_init(&json, stdout, false);
        json_open_object(&json, NULL);
        json_open_array(&json, key);
        for (line = strtok_r(text.bytes, "\n", &save); line;
             line = strtok_r(NULL, "\n", &save))
            each(&state, &json, line);
        json_close(&json);
        json_close(&json);
        json_finish(&json);
    }
    free(text.bytes);
    return r;
}
