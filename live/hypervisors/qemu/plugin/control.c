/* SPDX-License-Identifier: BSD-2-Clause
 *
 * See control.h.  What the two say to each other: wire.h.
 */
#define _GNU_SOURCE
#include "control.h"
#include "events.h"
#include "filter.h"
#include "tb.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { LONGEST = sizeof(struct arm) + sizeof(uint64_t) * (QUADS_PER_WORD * MAX_WORDS + MAX_CODE
                                      + QUADS_PER_FENCE * MAX_FENCES + QUADS_PER_ENTRY * MAX_ENTRIES
                                      + QUADS_PER_FLAGS * MAX_FLAGS) };

static struct sockaddr_un address = {.sun_family = AF_UNIX};
static int listener = -1;

static enum reply arm(const struct arm *a)
{
    enum reply reply;
    struct filter *f = filter_make(a, &reply);
    if (!f)
        return reply;
    /* Without memory nothing may be armed: the addresses would be trapped in no code at all. */
    tb_list(a->syscalls, a->compat_syscalls);
    if ((f->syscalls || f->asids || f->codes)
        && !tb_instrument(f->code, f->head.n_code, f->entries, f->head.n_entries)) {
        filter_free(f);
        return NO_MEMORY;
    }
    /* A trap that is held by code made anew would keep other vCPUs in code from before, where nothing is trapped:
     * what happens there would be lost.  So the first request comes into force for all code at once. */
    if (filter_idle() && tb_begin_flush()) {
        filter_free(f);
        return PREPARING;
    }
    filter_install(f);
    return tb_begin_flush() ? FLUSHING : IN_FORCE;
}

static bool receive(int fd, void *to, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = recv(fd, (char *)to + done, n - done, MSG_WAITALL);
        if (got <= 0 && !(got < 0 && errno == EINTR))
            return false;
        done += got > 0 ? got : 0;
    }
    return true;
}

static bool send_with(int to, const void *message, size_t size, const int *fds, unsigned n)
{
    union { char bytes[CMSG_SPACE(SESSION_DESCRIPTORS * sizeof(int))]; struct cmsghdr align; } control = {0};
    struct iovec data = {(void *)message, size};
    struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
                       .msg_controllen = CMSG_SPACE(n * sizeof(int))};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(n * sizeof(int));
    memcpy(CMSG_DATA(c), fds, n * sizeof(int));
    return sendmsg(to, &m, MSG_NOSIGNAL) == (ssize_t)size;
}

static bool greet(int fd, pid_t reader)
{
    struct hello hello = {MAGIC, PROTOCOL, n_vcpus, SLOTS};
    int fds[SESSION_DESCRIPTORS];
    unsigned n = events_open(reader, tb_flush_done(), fds);
    if (!n)
        return false;
    bool sent = send_with(fd, &hello, sizeof hello, fds, n);
    close(fds[0]);
    return sent;
}

static void serve(int fd)
{
    static union { struct arm head; char bytes[LONGEST]; } m;
    while (receive(fd, &m, sizeof m.head) && m.head.length >= sizeof m.head && m.head.length <= sizeof m
           && receive(fd, m.bytes + sizeof m.head, m.head.length - sizeof m.head)) {
        struct answer answer = {.reply = arm(&m.head)};
        answer.flush = tb_flush_wanted();
        if (send(fd, &answer, sizeof answer, MSG_NOSIGNAL) != sizeof answer)
            break;
    }
}

static bool permitted(int fd, struct ucred *peer)
{
    socklen_t size = sizeof *peer;
    return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, peer, &size) && (!peer->uid || peer->uid == geteuid());
}

static void *run(void *unused)
{
    (void)unused;
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        struct ucred peer;
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
                usleep(100000);
                continue;
            }
            return NULL;
        }
        if (permitted(fd, &peer)) {
            if (greet(fd, peer.pid))
                serve(fd);
            filter_install(NULL);
            events_close();
        }
        close(fd);
    }
}

int control_listen(const char *path)
{
    struct stat found;
    if (strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "pse-trap: the socket's path is too long\n");
        return -1;
    }
    strcpy(address.sun_path, path);
    if (!lstat(path, &found) && S_ISSOCK(found.st_mode))
        unlink(path);                   /* of a QEMU that was killed */
    mode_t mask = umask(0177);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int failed = listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1);
    umask(mask);
    if (failed)
        perror("pse-trap: socket");
    return failed ? -1 : 0;
}

void control_start(void)
{
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (!pthread_create(&thread, NULL, run, NULL))
        pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void control_end(void)
{
    unlink(address.sun_path);
}
