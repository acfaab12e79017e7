#include "server/backing.h"

#include <string.h>

static const char *const schemes[] = {"nbd://",       "nbds://",      "nbd+unix://",
                                      "nbds+unix://", "nbd+vsock://", "nbds+vsock://"};

bool
backing_is_uri(const char *text)
{
    const char *mark = strstr(text, "://");

    return mark && mark > text && memchr(text, '/', (size_t)(mark - text)) == NULL;
}

int
backing_check(const char *text, struct thin_error *err)
{
    if (text[0] == '/')
        return 0;
    for (unsigned i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++)
        if (strncmp(text, schemes[i], strlen(schemes[i])) == 0)
            return 0;
    return thin_fail(err, -THIN_E_INVALID,
                     "%s: neither an absolute path nor an NBD URI (nbd://, nbds://, "
                     "nbd+unix://)",
                     text);
}

/* True if `path` is below `dir`, as it is written: neither "." nor ".." in it. */
static bool
is_below(const char *dir, const char *path)
{
    size_t len = strlen(dir);

    while (len > 1 && dir[len - 1] == '/')
        len--;
    if (strncmp(dir, path, len) != 0 || path[len] != '/')
        return false;
    for (const char *p = path + len; p; p = strchr(p, '/')) {
        size_t part;

        p++;
        part = strcspn(p, "/");
        if (part == 0 || (part == 1 && p[0] == '.') ||
            (part == 2 && p[0] == '.' && p[1] == '.'))
            return false;
    }
    return true;
}

/* "nbd://host" allows "nbd://host/x", not "nbd://host.example/x". */
static bool
goes_on(const char *allowed, const char *uri)
{
    size_t len = strlen(allowed);

    if (len == 0 || strncmp(allowed, uri, len) != 0)
        return false;
    if (uri[len] == '\0')
        return true;
    return (uri[len] == '/' || allowed[len - 1] == '/') && !strchr(uri + len, '?');
}

int
backing_check_remote(const struct server_config *config, const char *text,
                     struct thin_error *err)
{
    if (backing_is_uri(text)) {
        for (unsigned i = 0; i < config->nr_origin_uris; i++)
            if (goes_on(config->origin_uris[i], text))
                return 0;
        return thin_fail(err, -THIN_E_DENIED,
                         "over the network only URIs of [server] origin_uris: %.200s",
                         text);
    }
    for (unsigned i = 0; i < config->nr_device_dirs; i++)
        if (is_below(config->device_dirs[i], text))
            return 0;
    return thin_fail(err, -THIN_E_DENIED,
                     "over the network only devices below [server] device_dirs: %.200s",
                     text);
}
