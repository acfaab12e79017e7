/*
 * Sockets by name: addresses as users write them, listening, connecting, and who is at
 * the other end. Knows no event loop. All descriptors come out non-blocking and
 * close-on-exec; TCP ones with TCP_NODELAY, keepalive and a user timeout, so that a
 * dead peer is noticed within PROTO_KEEPALIVE_MS. Any thread. Writing to a socket
 * whose peer is gone raises no signal if done through proto/channel.h.
 */
#ifndef THIN_PROTO_SOCKET_H
#define THIN_PROTO_SOCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "core/base/error.h"

#define SOCKET_HOST_MAX      255u
#define SOCKET_TEXT_MAX      320u /* an address as text, with its NUL */
#define SOCKET_ADDRESSES_MAX 8u   /* that one name may stand for; more are ignored */

enum socket_kind { SOCKET_UNIX, SOCKET_TCP };

struct socket_address {
    enum socket_kind kind;
    bool tls;                       /* written as tls:// */
    char path[108];                 /* unix */
    char host[SOCKET_HOST_MAX + 1]; /* tcp: name or number, without brackets */
    uint16_t port;
};

/*
 * "unix:PATH", "tls://HOST[:PORT]", "tcp:HOST[:PORT]" (also "tcp://"); an IPv6 address
 * stands in brackets. `default_port` (0: none) where no port is written.
 * -THIN_E_INVALID with words that say how to write it.
 */
int socket_address_parse(const char *text, uint16_t default_port,
                         struct socket_address *ret, struct thin_error *err);

/*
 * "HOST:PORT", "[::1]:PORT", ":PORT" or "*:PORT" (every address of this machine), as
 * configuration has it. `default_port` as above. -THIN_E_INVALID.
 */
int socket_address_parse_host(const char *text, uint16_t default_port,
                              struct socket_address *ret, struct thin_error *err);

/* As socket_address_parse reads it. Returns `buf` (SOCKET_TEXT_MAX bytes fit all). */
const char *socket_address_text(const struct socket_address *address, char *buf,
                                size_t buf_bytes);

/* One place to connect to or to bind. */
struct socket_target {
    struct sockaddr_storage addr;
    socklen_t addr_bytes;
    int family;
};
struct socket_targets {
    struct socket_target list[SOCKET_ADDRESSES_MAX];
    unsigned count; /* at least 1 */
};

/*
 * From an address to targets. Numbers and unix paths are answered at once; a host name
 * asks the resolver and waits for it: never on a loop. `passive`: for listening.
 * -THIN_E_NOT_FOUND with the resolver's words.
 */
int socket_resolve(const struct socket_address *address, bool passive,
                   struct socket_targets *ret, struct thin_error *err);

/*
 * Begins to connect. 0: connected. -EINPROGRESS: *ret_fd becomes writable when it is
 * known, then socket_connect_finish tells. Others: failed, no descriptor.
 */
int socket_connect_start(const struct socket_target *target, int *ret_fd,
                         struct thin_error *err);
/* 0: connected. -EINPROGRESS: not yet. Others: why not; the caller closes the
   descriptor. */
int socket_connect_finish(int fd, struct thin_error *err);

/* Waits, at most `timeout_ms`, trying one target after another. For tools and tests. */
int socket_connect_wait(const struct socket_address *address, int timeout_ms, int *ret_fd,
                        struct thin_error *err);

struct socket_listen_params {
    int backlog;    /* 0: SOMAXCONN */
    mode_t mode;    /* of a unix socket's file; 0: 0600 */
    bool set_group; /* give the file to `group` */
    gid_t group;
};

/*
 * Opens listening sockets on all targets of the address (with port 0 on the first one
 * only). A unix socket's file that nobody listens on is replaced; where somebody does,
 * -THIN_E_BUSY; anything but a socket in its place is left alone, -THIN_E_EXISTS. Two
 * starters at the same time do not rob each other: the folder is locked meanwhile.
 * *ret_nr descriptors in ret_fds, the caller closes them. All or none.
 */
int socket_listen(const struct socket_address *address,
                  const struct socket_listen_params *params,
                  int ret_fds[SOCKET_ADDRESSES_MAX], unsigned *ret_nr,
                  struct thin_error *err);

/*
 * One connection. 0; -EAGAIN: none waits (or it has gone again); -EMFILE, -ENFILE,
 * -ENOBUFS, -ENOMEM: pause accepting; others: the listener is broken.
 */
int socket_accept(int listen_fd, int *ret_fd);

/* Sets what this file promises on a descriptor from elsewhere (socket activation). */
int socket_prepare(int fd);

/* The own or the other end's address: "unix:PATH", "tcp:127.0.0.1:80",
   "unix:pid=7,uid=0". */
const char *socket_local_text(int fd, char *buf, size_t buf_bytes);
const char *socket_peer_text(int fd, char *buf, size_t buf_bytes);
/* The bound TCP port, or 0. */
uint16_t socket_local_port(int fd);

/* Who connected to a unix socket, as of its connect(2). -errno; -THIN_E_INVALID on TCP.
    */
struct socket_credentials {
    pid_t pid;
    uid_t uid;
    gid_t gid;
};
int socket_peer_credentials(int fd, struct socket_credentials *ret);
/* True if `group` is the peer's group or one of its further groups. */
bool socket_peer_in_group(int fd, gid_t group);

#endif
