#include "proto/socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "proto/limits.h"

enum {
    KEEPALIVE_IDLE_S = 5, /* silence before the kernel probes; ours come sooner */
    KEEPALIVE_INTERVAL_S = 5,
    KEEPALIVE_COUNT = 2,
    GROUPS_MAX = 1024, /* of a peer; who is in more is judged by the first ones */
};

/* ---- descriptors ------------------------------------------------------------------- */

static int
set_int(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof(value)) < 0 ? -errno : 0;
}

/* Best effort: a kernel that lacks one of these still carries bytes. */
static void
tune_tcp(int fd)
{
    (void)set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    (void)set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    (void)set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
    (void)set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    (void)set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT);
    (void)set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)PROTO_KEEPALIVE_MS);
}

static int
family_of(int fd)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);

    if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0)
        return -errno;
    return addr.ss_family;
}

int
socket_prepare(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    int family = family_of(fd);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return -errno;
    if (family < 0)
        return family;
    if (family == AF_INET || family == AF_INET6)
        tune_tcp(fd);
    return 0;
}

/* ---- names to places --------------------------------------------------------------- */

static int
unix_target(const struct socket_address *address, struct socket_target *ret)
{
    struct sockaddr_un *un = (struct sockaddr_un *)(void *)&ret->addr;

    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, address->path, sizeof(un->sun_path));
    ret->addr_bytes = sizeof(*un);
    ret->family = AF_UNIX;
    return 0;
}

int
socket_resolve(const struct socket_address *address, bool passive,
               struct socket_targets *ret, struct thin_error *err)
{
    struct addrinfo hints = {
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : AI_ADDRCONFIG),
    };
    struct addrinfo *list = NULL;
    const char *host = *address->host ? address->host : NULL;
    char port[8];
    int r;

    memset(ret, 0, sizeof(*ret));
    if (address->kind == SOCKET_UNIX) {
        ret->count = 1;
        return unix_target(address, &ret->list[0]);
    }
    snprintf(port, sizeof(port), "%u", address->port);
    /* AI_ADDRCONFIG would hide ::1 and 127.0.0.1 on a machine without a network. */
    hints.ai_flags |= AI_NUMERICHOST;
    r = getaddrinfo(host, port, &hints, &list);
    if (r == EAI_NONAME) {
        hints.ai_flags &= ~(AI_NUMERICHOST | AI_ADDRCONFIG);
        r = getaddrinfo(host, port, &hints, &list);
    }
    if (r != 0)
        return thin_fail(err, -THIN_E_NOT_FOUND, "find the address of %s: %s",
                         host ? host : "*",
                         r == EAI_SYSTEM ? thin_strerror(-errno) : gai_strerror(r));
    for (struct addrinfo *a = list; a && ret->count < SOCKET_ADDRESSES_MAX;
         a = a->ai_next) {
        struct socket_target *target = &ret->list[ret->count];

        if (a->ai_addrlen > sizeof(target->addr))
            continue;
        memcpy(&target->addr, a->ai_addr, a->ai_addrlen);
        target->addr_bytes = a->ai_addrlen;
        target->family = a->ai_family;
        ret->count++;
    }
    freeaddrinfo(list);
    if (ret->count == 0)
        return thin_fail(err, -THIN_E_NOT_FOUND, "%s has no address",
                         host ? host : "this machine");
    return 0;
}

/* ---- connecting -------------------------------------------------------------------- */

int
socket_connect_start(const struct socket_target *target, int *ret_fd,
                     struct thin_error *err)
{
    AUTO_FD int fd = -1;

    fd = socket(target->family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return thin_fail_code(err, -errno, "make a socket");
    if (target->family != AF_UNIX)
        tune_tcp(fd);
    if (connect(fd, (const struct sockaddr *)&target->addr, target->addr_bytes) == 0) {
        *ret_fd = take_fd(&fd);
        return 0;
    }
    /* EAGAIN: a unix socket whose backlog is full; it must be tried anew. */
    if (errno != EINPROGRESS)
        return thin_fail_code(err, errno == EAGAIN ? -ECONNREFUSED : -errno, "connect");
    *ret_fd = take_fd(&fd);
    return -EINPROGRESS;
}

int
socket_connect_finish(int fd, struct thin_error *err)
{
    struct pollfd pfd = {.fd = fd, .events = POLLOUT};
    int error = 0;
    socklen_t len = sizeof(error);

    if (poll(&pfd, 1, 0) == 0)
        return -EINPROGRESS;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
        error = errno;
    if (error)
        return thin_fail_code(err, -error, "connect");
    return 0;
}

static int64_t
now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static int
connect_one_wait(const struct socket_target *target, int64_t until_ms, int *ret_fd,
                 struct thin_error *err)
{
    AUTO_FD int fd = -1;
    int r = socket_connect_start(target, &fd, err);

    while (r == -EINPROGRESS) {
        struct pollfd pfd = {.fd = fd, .events = POLLOUT};
        int64_t left = until_ms - now_ms();

        if (left <= 0)
            return thin_fail(err, -THIN_E_TIMED_OUT, "connect: no answer");
        if (poll(&pfd, 1, (int)left) < 0 && errno != EINTR)
            return thin_fail_code(err, -errno, "wait for the connection");
        r = socket_connect_finish(fd, err);
    }
    if (r == 0)
        *ret_fd = take_fd(&fd);
    return r;
}

int
socket_connect_wait(const struct socket_address *address, int timeout_ms, int *ret_fd,
                    struct thin_error *err)
{
    char text[SOCKET_TEXT_MAX];
    struct socket_targets targets;
    int64_t until_ms = now_ms() + timeout_ms;
    int r = socket_resolve(address, false, &targets, err);

    for (unsigned i = 0; r == 0 && i < targets.count; i++) {
        r = connect_one_wait(&targets.list[i], until_ms, ret_fd, err);
        if (r == 0)
            return 0;
        if (i + 1 < targets.count)
            r = 0;
    }
    return thin_wrap(err, r, "%s", socket_address_text(address, text, sizeof(text)));
}

/* ---- listening --------------------------------------------------------------------- */

/* Opens and locks the folder of a socket's path, so that two starters take turns. */
static int
lock_folder(const char *path, int *ret_fd, struct thin_error *err)
{
    char folder[sizeof(((struct socket_address *)NULL)->path)];
    const char *slash = strrchr(path, '/');
    AUTO_FD int fd = -1;

    if (!slash)
        snprintf(folder, sizeof(folder), ".");
    else if (slash == path)
        snprintf(folder, sizeof(folder), "/");
    else
        snprintf(folder, sizeof(folder), "%.*s", (int)(slash - path), path);
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return thin_fail_code(err, -errno, "%s", folder);
    while (flock(fd, LOCK_EX) < 0)
        if (errno != EINTR)
            return thin_fail_code(err, -errno, "lock %s", folder);
    *ret_fd = take_fd(&fd);
    return 0;
}

/* Makes room at the path: 0 when nothing is there any more. */
static int
clear_stale(const char *path, const struct socket_target *target, struct thin_error *err)
{
    AUTO_FD int probe = -1;
    struct stat st;

    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : thin_fail_code(err, -errno, "%s", path);
    if (!S_ISSOCK(st.st_mode))
        return thin_fail(err, -THIN_E_EXISTS,
                         "%s exists and is not a socket: move it away or name another "
                         "path",
                         path);
    probe = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (probe < 0)
        return thin_fail_code(err, -errno, "make a socket");
    if (connect(probe, (const struct sockaddr *)&target->addr, target->addr_bytes) == 0 ||
        errno == EAGAIN)
        return thin_fail(err, -THIN_E_BUSY, "%s: another process listens there", path);
    if (errno != ECONNREFUSED)
        return thin_fail_code(err, -errno, "%s", path);
    if (unlink(path) < 0 && errno != ENOENT)
        return thin_fail_code(err, -errno, "remove the stale %s", path);
    return 0;
}

static int
listen_unix(const struct socket_address *address, const struct socket_target *target,
            const struct socket_listen_params *params, int *ret_fd,
            struct thin_error *err)
{
    AUTO_FD int folder = -1;
    AUTO_FD int fd = -1;
    mode_t mode = params->mode ? params->mode : 0600;
    int r;

    r = lock_folder(address->path, &folder, err);
    if (r < 0)
        return r;
    r = clear_stale(address->path, target, err);
    if (r < 0)
        return r;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return thin_fail_code(err, -errno, "make a socket");
    /* The file takes its mode from the socket: closed to others from its first moment,
       without touching the process's umask. Opened as wished when it is complete. */
    if (fchmod(fd, 0600) < 0 ||
        bind(fd, (const struct sockaddr *)&target->addr, target->addr_bytes) < 0)
        return thin_fail_code(err, -errno, "bind %s", address->path);
    if ((params->set_group && chown(address->path, (uid_t)-1, params->group) < 0) ||
        chmod(address->path, mode) < 0) {
        r = thin_fail_code(err, -errno, "give %s its group and mode", address->path);
        (void)unlink(address->path);
        return r;
    }
    if (listen(fd, params->backlog ? params->backlog : SOMAXCONN) < 0) {
        r = thin_fail_code(err, -errno, "listen on %s", address->path);
        (void)unlink(address->path);
        return r;
    }
    *ret_fd = take_fd(&fd);
    return 0;
}

static int
listen_tcp(const struct socket_target *target, const struct socket_listen_params *params,
           int *ret_fd, struct thin_error *err)
{
    AUTO_FD int fd = -1;

    fd = socket(target->family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return thin_fail_code(err, -errno, "make a socket");
    (void)set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    /* So that 0.0.0.0 and :: may both be listened on, each by its own socket. */
    if (target->family == AF_INET6)
        (void)set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    if (bind(fd, (const struct sockaddr *)&target->addr, target->addr_bytes) < 0)
        return thin_fail_code(err, -errno, "bind");
    if (listen(fd, params->backlog ? params->backlog : SOMAXCONN) < 0)
        return thin_fail_code(err, -errno, "listen");
    *ret_fd = take_fd(&fd);
    return 0;
}

int
socket_listen(const struct socket_address *address,
              const struct socket_listen_params *params,
              int ret_fds[SOCKET_ADDRESSES_MAX], unsigned *ret_nr, struct thin_error *err)
{
    char text[SOCKET_TEXT_MAX];
    struct socket_targets targets;
    int fds[SOCKET_ADDRESSES_MAX];
    unsigned nr = 0;
    int r = socket_resolve(address, true, &targets, err);

    if (r == 0 && address->kind == SOCKET_TCP && address->port == 0)
        targets.count = 1;
    for (unsigned i = 0; r == 0 && i < targets.count; i++) {
        if (address->kind == SOCKET_UNIX)
            r = listen_unix(address, &targets.list[i], params, &fds[nr], err);
        else
            r = listen_tcp(&targets.list[i], params, &fds[nr], err);
        if (r == 0) {
            nr++;
        } else if (targets.count > 1 && (r == -EAFNOSUPPORT || r == -EADDRNOTAVAIL)) {
            /* "*" or "localhost" on a machine without IPv6. */
            r = i + 1 == targets.count && nr == 0 ? r : 0;
        }
    }
    if (r < 0) {
        while (nr > 0)
            close(fds[--nr]);
        return thin_wrap(err, r, "listen on %s",
                         socket_address_text(address, text, sizeof(text)));
    }
    memcpy(ret_fds, fds, nr * sizeof(fds[0]));
    *ret_nr = nr;
    return 0;
}

int
socket_accept(int listen_fd, int *ret_fd)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);
    int fd =
        accept4(listen_fd, (struct sockaddr *)&addr, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd < 0) {
        switch (errno) {
        case EINTR:
        case ECONNABORTED:
        case EPROTO:
        case ENETDOWN: /* errors of the new connection, as accept(2) warns */
        case ENOPROTOOPT:
        case EHOSTDOWN:
        case ENONET:
        case EHOSTUNREACH:
        case EOPNOTSUPP:
        case ENETUNREACH:
        case ETIMEDOUT:
            return -EAGAIN;
        default:
            return -errno;
        }
    }
    if (addr.ss_family != AF_UNIX)
        tune_tcp(fd);
    *ret_fd = fd;
    return 0;
}

/* ---- who is there ------------------------------------------------------------------ */

int
socket_peer_credentials(int fd, struct socket_credentials *ret)
{
    struct ucred cred = {0};
    socklen_t len = sizeof(cred);
    int family = family_of(fd);

    if (family < 0)
        return family;
    if (family != AF_UNIX)
        return -THIN_E_INVALID;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
        return -errno;
    *ret = (struct socket_credentials){.pid = cred.pid, .uid = cred.uid, .gid = cred.gid};
    return 0;
}

bool
socket_peer_in_group(int fd, gid_t group)
{
    struct socket_credentials cred = {-1, (uid_t)-1, (gid_t)-1};
    gid_t groups[GROUPS_MAX];
    socklen_t len = sizeof(groups);

    if (socket_peer_credentials(fd, &cred) < 0)
        return false;
    if (cred.gid == group)
        return true;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &len) < 0)
        return false;
    for (size_t i = 0; i < len / sizeof(groups[0]); i++)
        if (groups[i] == group)
            return true;
    return false;
}

uint16_t
socket_local_port(int fd)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);

    if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0)
        return 0;
    if (addr.ss_family == AF_INET)
        return ntohs(((struct sockaddr_in *)(void *)&addr)->sin_port);
    if (addr.ss_family == AF_INET6)
        return ntohs(((struct sockaddr_in6 *)(void *)&addr)->sin6_port);
    return 0;
}

static const char *
sockaddr_text(const struct sockaddr_storage *addr, socklen_t len, char *buf,
              size_t buf_bytes)
{
    char host[INET6_ADDRSTRLEN] = "?";

    if (addr->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)addr;

        inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
        snprintf(buf, buf_bytes, "tcp:%s:%u", host, ntohs(in->sin_port));
    } else if (addr->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)addr;

        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
        snprintf(buf, buf_bytes, "tcp:[%s]:%u", host, ntohs(in6->sin6_port));
    } else if (addr->ss_family == AF_UNIX) {
        const struct sockaddr_un *un = (const struct sockaddr_un *)(const void *)addr;
        size_t path_at = offsetof(struct sockaddr_un, sun_path);
        int path_bytes = len > path_at ? (int)(len - path_at) : 0;

        snprintf(buf, buf_bytes, "unix:%.*s", path_bytes, un->sun_path);
    } else {
        snprintf(buf, buf_bytes, "unknown");
    }
    return buf;
}

const char *
socket_local_text(int fd, char *buf, size_t buf_bytes)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);

    if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0)
        addr.ss_family = AF_UNSPEC;
    return sockaddr_text(&addr, len, buf, buf_bytes);
}

const char *
socket_peer_text(int fd, char *buf, size_t buf_bytes)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);
    struct socket_credentials cred = {-1, (uid_t)-1, (gid_t)-1};

    if (socket_peer_credentials(fd, &cred) == 0) {
        snprintf(buf, buf_bytes, "unix:pid=%d,uid=%u", (int)cred.pid, cred.uid);
        return buf;
    }
    if (getpeername(fd, (struct sockaddr *)&addr, &len) < 0)
        addr.ss_family = AF_UNSPEC;
    return sockaddr_text(&addr, len, buf, buf_bytes);
}
