/*
 * A small streaming JSON writer. Strings are bytes: what is not UTF-8 is replaced by
 * U+FFFD, so that the document is always valid. Commas, indentation and nesting are the
 * writer's; that keys stand in objects only is asserted. Errors of the stream stay in
 * the stream (ferror).
 */
#ifndef THIN_CLIENT_CLI_JSON_H
#define THIN_CLIENT_CLI_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define JSON_DEPTH_MAX 16u

struct json {
    FILE *f;
    bool compact; /* all in one line */
    unsigned depth;
    char kinds[JSON_DEPTH_MAX]; /* '{' or '[' */
    bool begun[JSON_DEPTH_MAX]; /* something stands in it */
};

void json_init(struct json *json, FILE *f, bool compact);
/* Ends the line; everything must be closed. */
void json_finish(struct json *json);

/* `key` NULL in arrays and at the top. */
void json_open_object(struct json *json, const char *key);
void json_open_array(struct json *json, const char *key);
void json_close(struct json *json);

void json_string(struct json *json, const char *key, const char *text);
void json_bytes(struct json *json, const char *key, const void *bytes, size_t len_bytes);
void json_u64(struct json *json, const char *key, uint64_t value);
void json_i64(struct json *json, const char *key, int64_t value);
void json_bool(struct json *json, const char *key, bool value);
void json_null(struct json *json, const char *key);
/* null for NULL and for an empty string. */
void json_string_or_null(struct json *json, const char *key, const char *text);

#endif
