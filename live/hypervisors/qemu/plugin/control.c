/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The reader's connection: one at a time; the end of the connection lets every vCPU go and frees everything.
 * Theory of operation: trap.c.
 */
#include "shared.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum reply { IN_FORCE = 0, FLUSHING = 1, BAD = 2, BAD_ADDRESS = 3, NO_MEMORY = 4, UNMADE = 5 };

static struct sockaddr_un address = {.sun_family = AF_UNIX};
static int listener = -1;
static size_t shared_size;

static _Atomic unsigned wanted_words;           /* bit 0: sys, 1: cr3, 2: code */
static bool unmade;                             /* there may be code from before we knew of all of `codes` */

void words_of_vcpu(unsigned v)
{
    unsigned words;
    do {
        words = wanted_words;
        struct score *s = score_of(v);
        bool attention = flush_wanted > flush_done;
        unsigned also = attention ? ATTENTION : 0;
        /* There may be a fence: whoever calls us finds out. */
        __atomic_store_n(&s->entry, reader, __ATOMIC_SEQ_CST);
        s->sys = (words & 1) | also;
        s->cr3 = (words >> 1 & 1) | also;
        s->ret = attention;
        s->code = words >> 2;
    } while (words != wanted_words);
}

static void words_of_vcpus(bool sys, bool cr3, bool code)
{
    wanted_words = sys | cr3 << 1 | code << 2;
    for (unsigned v = 0; v < n_vcpus; v++)
        if (vcpus[v].seen)
            words_of_vcpu(v);
}

static void discard(struct filter *f)
{
    if (f)
        free(f->words);
    free(f);
}

/* Replace the filter; returns when no vCPU uses the one before. */
static void install(struct filter *new)
{
    struct filter *old = atomic_exchange(&filter, new);
    for (unsigned v = 0; v < n_vcpus; v++)
        while (vcpus[v].deciding)
            sched_yield();
    discard(old);
}

/* Add what the filter wants at code addresses to what is instrumented there; UNMADE if some of it is new.
 * NO_MEMORY may not pass for success: the addresses would be trapped in no code at all. */
static enum reply instrument(const struct filter *f)
{
    struct codes *old = codes;
    size_t had = old ? old->n : 0, wanted = f->head.n_code + f->head.n_entries;
    struct codes *new = malloc(sizeof *new + (had + wanted) * sizeof(struct code));
    if (!new)
        return NO_MEMORY;
    if (old)
        memcpy(new->list, old->list, had * sizeof(struct code));
    new->n = had;
    bool more = false;
    for (size_t i = 0; i < wanted; i++) {
        const uint64_t *entry = &f->entries[2 * (i - f->head.n_code)];
        struct code c = i < f->head.n_code ? (struct code){f->code[i], 1} : (struct code){entry[0], 2u << entry[1] % 8};
        struct code *known = new->list, *end = known + new->n;
        while (known < end && known->at != c.at)
            known++;
        if (known == end)
            *known = (struct code){c.at, 0}, new->n++;
        more |= c.what & ~known->what;
        known->what |= c.what;
    }
    if (!more) {
        free(new);
        return IN_FORCE;
    }
    qsort(new->list, new->n, sizeof(struct code), compare);
    codes = new;                        /* the old one stays: a vCPU may be translating with it */
    return UNMADE;
}

static bool readable(uint64_t at, uint64_t size)
{
    uint64_t value;
    struct iovec to = {&value, size}, from = {(void *)at, size};
    return (size == 4 || size == 8) && at % size == 0
           && process_vm_readv(getpid(), &to, 1, &from, 1, 0) == (ssize_t)size;
}

static enum reply watch_words(struct filter *f, const uint64_t *pairs)
{
    struct filter *old = filter;
    f->words = calloc(f->head.n_words + 1, sizeof *f->words);
    if (!f->words)
        return NO_MEMORY;
    for (unsigned i = 0; i < f->head.n_words; i++) {
        struct word *w = &f->words[i];
        w->address = pairs[2 * i];
        w->size = pairs[2 * i + 1];
        if (!readable(w->address, w->size))
            return BAD_ADDRESS;
        w->last = w->size == 8 ? *(volatile uint64_t *)w->address : *(volatile uint32_t *)w->address;
        for (unsigned k = 0; old && k < old->head.n_words; k++)
            if (old->words[k].address == w->address)    /* what moved since it was last compared still counts */
                w->last = old->words[k].last;
    }
    return IN_FORCE;
}

static bool any(const uint64_t *bits, unsigned n)
{
    while (n--)
        if (bits[n])
            return true;
    return false;
}

static struct filter *filter_of(const struct arm *a)
{
    size_t tail = ((size_t)a->n_pending + 2ul * a->n_words + a->n_code + 3ul * a->n_fences + 2ul * a->n_entries)
                  * sizeof(uint64_t);
    if (a->n_pending > MAX_PENDING || a->n_words > MAX_WORDS || a->n_code > MAX_CODE || a->n_fences > MAX_FENCES
        || a->n_entries > MAX_ENTRIES || a->length != sizeof *a + tail)
        return NULL;
    struct filter *f = calloc(1, sizeof *f + sizeof *a + tail);
    if (!f)
        return NULL;
    f->head = *a;
    f->pending = (uint64_t *)(f + 1);
    f->code = f->pending + a->n_pending;
    f->fences = f->code + a->n_code;
    f->entries = f->fences + 3 * a->n_fences;
    memcpy(f->pending, a->tail, a->n_pending * sizeof(uint64_t));
    memcpy(f->code, a->tail + a->n_pending + 2 * a->n_words,
           (a->n_code + 3ul * a->n_fences + 2ul * a->n_entries) * sizeof(uint64_t));
    qsort(f->pending, a->n_pending, sizeof(uint64_t), compare);
    qsort(f->code, a->n_code, sizeof(uint64_t), compare);
    return f;
}

/* From now on what the filter wants at code addresses is in all code that is made; UNMADE if other code may be there. */
static enum reply prepare(const struct filter *f)
{
    enum reply made = f->head.n_code + f->head.n_entries ? instrument(f) : IN_FORCE;
    if (made != NO_MEMORY && !instrumenting) {
        instrumenting = true;
        made = UNMADE;
        tell_us_of_translations();      /* from now on the next translation is enough to begin a flush */
    }
    return made;
}

static void flush_everything(void)
{
    unmade = false;
    everywhere = true;
    flush_wanted++;
}

static enum reply arm(const struct arm *a)
{
    struct filter *f = filter_of(a);
    if (!f)
        return BAD;
    if (a->stage == PREPARE) {
        enum reply made = prepare(f);
        discard(f);
        unmade |= made == UNMADE;
        return made == NO_MEMORY ? made : unmade ? UNMADE : IN_FORCE;
    }
    enum reply reply = watch_words(f, a->tail + a->n_pending);
    if (reply != IN_FORCE) {
        discard(f);
        return reply;
    }
    bool listed = a->every || (a->syscall && any(a->bitmap[0], 32));
    f->only_pending = a->n_pending && !listed;
    f->cr3 = a->asid || a->n_words || f->only_pending;
    f->sys = listed || a->n_pending;
    bool sys = f->sys, cr3 = f->cr3, code = a->code && a->n_code;
    if (sys || cr3 || code) {
        enum reply made = prepare(f);
        if (made == NO_MEMORY) {
            discard(f);
            return made;
        }
        if (made == UNMADE)
            unmade = true;
        else if (a->stage == MADE)
            unmade = false;
        if (unmade || ((sys || cr3) && !everywhere))
            flush_everything();
    }
    install(f);
    words_of_vcpus(sys, cr3, code);
    if (flush_wanted == flush_done)
        return IN_FORCE;
    wake_all();
    return FLUSHING;
}

static bool transfer(int fd, void *to, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = recv(fd, (char *)to + done, n - done, MSG_WAITALL);
        if (got <= 0 && !(got < 0 && errno == EINTR))
            return false;
        done += got > 0 ? got : 0;
    }
    return true;
}

static bool send_descriptors(int to, int memory)
{
    struct shared *s = shared;
    int fds[2 + 250];
    unsigned n = 0;
    fds[n++] = memory;
    fds[n++] = wake_fd;
    for (unsigned v = 0; v < n_vcpus && n < 252; v++)
        fds[n++] = vcpus[v].fd;
    union { char bytes[CMSG_SPACE(sizeof fds)]; struct cmsghdr align; } control = {0};
    struct iovec hello = {s, 16};
    struct msghdr m = {.msg_iov = &hello, .msg_iovlen = 1, .msg_control = &control,
                       .msg_controllen = CMSG_SPACE(n * sizeof(int))};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(n * sizeof(int));
    memcpy(CMSG_DATA(c), fds, n * sizeof(int));
    return sendmsg(to, &m, MSG_NOSIGNAL) == 16;
}

static bool open_session(int fd)
{
    size_t offset = (sizeof(struct shared) + n_vcpus * 64 + 4095) / 4096 * 4096;
    shared_size = offset + SLOTS * sizeof(struct event);
    int memory = memfd_create("pse-trap", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    /* Sealed: if the reader could make it shorter, that would be the end of QEMU. */
    if (memory < 0 || ftruncate(memory, shared_size) < 0
        || fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        if (memory >= 0)
            close(memory);
        return false;
    }
    struct shared *s = mmap(NULL, shared_size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (unsigned v = 0; v < n_vcpus; v++) {
        vcpus[v].fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        vcpus[v].fence = vcpus[v].high = 0;
    }
    bool good = s != MAP_FAILED;
    if (good) {
        s->magic = MAGIC;
        s->protocol = PROTOCOL;
        s->vcpus = n_vcpus;
        s->slots = SLOTS;
        s->ring_offset = ring_offset = offset;
        s->flushes = flush_done;
        late = 0;
        shared = s;
        reader = true;
        good = send_descriptors(fd, memory);
    }
    close(memory);
    return good;
}

static void close_session(void)
{
    reader = false;
    install(NULL);
    if (unmade)                         /* it went before it had that done; whoever comes next does not know of it */
        flush_everything();
    words_of_vcpus(false, false, false);
    for (unsigned v = 0; v < n_vcpus; v++) {
        uint64_t one = 1;
        while (vcpus[v].busy) {         /* held: let go */
            if (write(vcpus[v].fd, &one, sizeof one) < 0 && errno != EAGAIN)
                break;
            sched_yield();
        }
    }
    while (flushing)
        sched_yield();
    struct shared *s = atomic_exchange(&shared, NULL);
    if (s)
        munmap(s, shared_size);
    for (unsigned v = 0; v < n_vcpus; v++) {
        close(vcpus[v].fd);
        vcpus[v].fd = -1;
    }
    close(wake_fd);
    wake_fd = -1;
}

static void serve(int fd)
{
    static union { struct arm head; char bytes[sizeof(struct arm) + 8 * (MAX_PENDING + 2 * MAX_WORDS + MAX_CODE + 3 * MAX_FENCES
                                                                     + 2 * MAX_ENTRIES)]; } m;
    while (transfer(fd, &m, sizeof m.head) && m.head.length >= sizeof m.head && m.head.length <= sizeof m
           && transfer(fd, m.bytes + sizeof m.head, m.head.length - sizeof m.head)) {
        uint64_t answer[2] = {arm(&m.head), flush_wanted};
        if (send(fd, answer, sizeof answer, MSG_NOSIGNAL) != sizeof answer)
            break;
    }
}

static void *run(void *unused)
{
    (void)unused;
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        struct ucred peer;
        socklen_t size = sizeof peer;
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
                usleep(100000);
                continue;
            }
            return NULL;
        }
        if (!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) && (!peer.uid || peer.uid == geteuid())) {
            char path[32];
            snprintf(path, sizeof path, "/proc/%d/stat", peer.pid);
            reader_stat = open(path, O_RDONLY | O_CLOEXEC);
            if (open_session(fd))
                serve(fd);
            close_session();
            if (reader_stat >= 0)
                close(reader_stat);
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
