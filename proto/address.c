/* Addresses as users write them; the calls are in socket.h. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "proto/socket.h"

static int
bad_address(const char *text, const char *why, struct thin_error *err)
{
    char quoted[SOCKET_TEXT_MAX];

    return thin_fail(err, -THIN_E_INVALID, "bad address %s: %s",
                     thin_log_quote(quoted, sizeof(quoted), text, strlen(text)), why);
}

/* Digits only, 0 to 65535: port 0 lets the kernel choose, for listening. */
static bool
parse_port(const char *text, uint16_t *ret)
{
    unsigned v = 0;

    if (!*text || strlen(text) > 5)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        v = v * 10 + (unsigned)(*text - '0');
    }
    if (v > 65535)
        return false;
    *ret = (uint16_t)v;
    return true;
}

/* What DNS and inet_pton may hold; keeps blanks, slashes and control bytes out of logs.
    */
static bool
host_is_sane(const char *host)
{
    for (const char *p = host; *p; p++) {
        bool ok = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
                  (*p >= '0' && *p <= '9') || strchr(".-_:%*", *p);

        if (!ok)
            return false;
    }
    return true;
}

int
socket_address_parse_host(const char *text, uint16_t default_port,
                          struct socket_address *ret, struct thin_error *err)
{
    struct socket_address address = {.kind = SOCKET_TCP, .port = default_port};
    const char *host = text, *host_end, *port = NULL;

    if (*text == '[') {
        host = text + 1;
        host_end = strchr(host, ']');
        if (!host_end)
            return bad_address(text, "\"]\" is missing", err);
        if (host_end[1] == ':')
            port = host_end + 2;
        else if (host_end[1])
            return bad_address(text, "write it as [ADDRESS]:PORT", err);
    } else {
        host_end = strchr(text, ':');
        if (host_end && strchr(host_end + 1, ':'))
            return bad_address(text, "write an IPv6 address in brackets: [::1]:PORT",
                               err);
        if (host_end)
            port = host_end + 1;
        else
            host_end = text + strlen(text);
    }
    if ((size_t)(host_end - host) > SOCKET_HOST_MAX)
        return bad_address(text, "the host's name is too long", err);
    memcpy(address.host, host, (size_t)(host_end - host));
    if (*text == '[') {
        struct in6_addr in6;
        char plain[SOCKET_HOST_MAX + 1];

        snprintf(plain, sizeof(plain), "%s", address.host);
        plain[strcspn(plain, "%")] = '\0'; /* a zone: fe80::1%eth0 */
        if (inet_pton(AF_INET6, plain, &in6) != 1)
            return bad_address(text, "what is in brackets is no IPv6 address", err);
    }
    if (!host_is_sane(address.host))
        return bad_address(text, "a host is a name or an address", err);
    if (strcmp(address.host, "*") == 0)
        address.host[0] = '\0';
    if (port && !parse_port(port, &address.port))
        return bad_address(text, "the port is a number from 0 to 65535", err);
    if (!port && default_port == 0)
        return bad_address(text, "write it as HOST:PORT", err);
    *ret = address;
    return 0;
}

static int
parse_unix(const char *text, const char *path, struct socket_address *ret,
           struct thin_error *err)
{
    struct socket_address address = {.kind = SOCKET_UNIX};
    size_t len = strlen(path);

    if (len == 0)
        return bad_address(text, "write it as unix:PATH", err);
    if (len >= sizeof(address.path))
        return thin_fail(err, -THIN_E_INVALID,
                         "bad address: a unix socket's path of %zu bytes, at most %zu "
                         "are possible",
                         len, sizeof(address.path) - 1);
    memcpy(address.path, path, len);
    *ret = address;
    return 0;
}

int
socket_address_parse(const char *text, uint16_t default_port, struct socket_address *ret,
                     struct thin_error *err)
{
    static const struct {
        const char *word;
        bool tls;
    } schemes[] = {{"tls://", true}, {"tls:", true}, {"tcp://", false}, {"tcp:", false}};
    struct socket_address address;

    if (strncmp(text, "unix:", 5) == 0)
        return parse_unix(text, text + 5, ret, err);
    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
        size_t len = strlen(schemes[i].word);
        int r;

        if (strncmp(text, schemes[i].word, len) != 0)
            continue;
        r = socket_address_parse_host(text + len, default_port, &address, err);
        if (r < 0)
            return r;
        address.tls = schemes[i].tls;
        *ret = address;
        return 0;
    }
    return bad_address(text, "write it as unix:PATH, tls://HOST:PORT or tcp:HOST:PORT",
                       err);
}

const char *
socket_address_text(const struct socket_address *address, char *buf, size_t buf_bytes)
{
    const char *scheme = address->tls ? "tls://" : "tcp:";

    if (address->kind == SOCKET_UNIX)
        snprintf(buf, buf_bytes, "unix:%s", address->path);
    else if (strchr(address->host, ':'))
        snprintf(buf, buf_bytes, "%s[%s]:%u", scheme, address->host, address->port);
    else
        snprintf(buf, buf_bytes, "%s%s:%u", scheme, *address->host ? address->host : "*",
                 address->port);
    return buf;
}
