/* SPDX-License-Identifier: BSD-2-Clause
 *
 * See events.h.
 */
#define _GNU_SOURCE
#include "events.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE = 10 };
enum { SPIN_NS = 200000 };              /* sleeping and being woken takes as long as most waits: spin first */
enum { NAP_NS = 50000 };                /* between looks at a resume word that nobody is woken for */
enum { SLICE_NS = 20000000 };           /* between looks at whether the reader gets a CPU */
enum { FOR_HELD = 256 };                /* slots that recorded events leave free */

/* Of a vCPU: the eventfd that ends its hold, and the sequence of its last fence, and of the last not passable. */
struct waiter {
    _Alignas(64) _Atomic bool busy;
    int fd;
    _Atomic uint64_t fence, closed;
};

static struct waiter *waiters;
static uint64_t spin_ns;

static _Atomic(struct shared *) shared;
static size_t shared_size, ring_offset;
static _Atomic bool reader;             /* one is connected */
static _Atomic bool flushing;           /* `shared` is in use for that */
static int wake_fd = -1;
static int reader_stat = -1;            /* its /proc/PID/stat, if we can see it; of its first thread */
static _Atomic uint64_t late;           /* ring position up to which the reader is late; 0: it is in time */

/* Asids that a vCPU has left for one that is not settled: an exec frees its page tables, and the next one may use
 * them before the reader has handled the event. */
enum { LEFTS = 32 };
static struct left { _Atomic uint64_t asid, event; } lefts[LEFTS];
static _Atomic unsigned n_lefts;

static atomic_flag ring_lock = ATOMIC_FLAG_INIT;
static uint64_t sequence;

bool events_create(void)
{
    waiters = for_each_vcpu(sizeof *waiters);
    if (sysconf(_SC_NPROCESSORS_ONLN) > n_vcpus)        /* else the reader may need this very CPU */
        spin_ns = SPIN_NS;
    for (unsigned v = 0; waiters && v < n_vcpus; v++)
        waiters[v].fd = -1;
    return waiters;
}

/* --- a session, on the control thread ----------------------------------------------------------------------- */
static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Sealed: if the reader could make it shorter, QEMU would die of SIGBUS. */
static int sealed_memory(size_t size)
{
    int fd = memfd_create("pse-trap", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd >= 0 && (ftruncate(fd, size) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)))
        close_fd(&fd);
    return fd;
}

unsigned events_open(pid_t pid, uint64_t flushes, int fds[SESSION_DESCRIPTORS])
{
    char path[32];
    unsigned n = 0;
    ring_offset = (sizeof(struct shared) + n_vcpus * sizeof shared->vcpu[0] + 4095) / 4096 * 4096;
    shared_size = ring_offset + SLOTS * sizeof(struct event);
    int memory = sealed_memory(shared_size);
    struct shared *s = mmap(NULL, shared_size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (s == MAP_FAILED) {
        close_fd(&memory);
        return 0;
    }
    fds[n++] = memory;
    fds[n++] = wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (unsigned v = 0; v < n_vcpus; v++) {
        fds[n++] = waiters[v].fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        waiters[v].fence = waiters[v].closed = 0;
    }
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    reader_stat = open(path, O_RDONLY | O_CLOEXEC);
    s->ring_offset = ring_offset;
    s->flushes = flushes;
    late = 0;
    shared = s;
    reader = true;
    return n;
}

void events_close(void)
{
    reader = false;
    for (unsigned v = 0; v < n_vcpus; v++)
        while (waiters[v].busy) {       /* held: let go */
            eventfd_write(waiters[v].fd, 1);
            sched_yield();
        }
    while (flushing)
        sched_yield();
    struct shared *s = atomic_exchange(&shared, NULL);
    if (s)
        munmap(s, shared_size);
    for (unsigned v = 0; v < n_vcpus; v++)
        close_fd(&waiters[v].fd);
    close_fd(&wake_fd);
    close_fd(&reader_stat);
}

void events_flushed(uint64_t number)
{
    flushing = true;
    if (reader)
        shared->flushes = number;
    flushing = false;
}

/* --- waiting, on the vCPU's thread -------------------------------------------------------------------------- */
void events_add_vcpu(unsigned v)
{
    raise_word(v, ON_ENTRY, BY_FENCE);  /* there may be one */
}

void events_enter(unsigned v)
{
    waiters[v].busy = true;
}

void asid_left(uint64_t asid, uint64_t event)
{
    struct left *l = &lefts[atomic_fetch_add(&n_lefts, 1) % LEFTS];
    l->event = 0;                       /* not of this asid */
    l->asid = asid;
    l->event = event;
}

static bool is_left(uint64_t asid)
{
    uint64_t handled = shared->handled;
    for (unsigned i = 0; i < LEFTS; i++)
        if (lefts[i].asid == asid && lefts[i].event > handled)
            return true;
    return false;
}

bool asid_settled(uint64_t asid)
{
    if (reader && is_left(asid))
        return false;
    uint64_t at = SETTLED_FIRST(asid);
    for (unsigned probe = 0; reader && probe < SETTLED_PROBES; probe++) {
        uint64_t slot = atomic_load_explicit(&shared->settled[at++ % SETTLED_SLOTS], memory_order_relaxed);
        if (slot == (asid | SETTLED_MARK))
            return true;
        if (slot == SETTLED_EMPTY)
            return false;
    }
    return !reader;
}

void events_leave(unsigned v)
{
    waiters[v].busy = false;
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void sleep_at_most(uint64_t ns, int fd)
{
    uint64_t drain;
    struct timespec rest = {ns / 1000000000, ns % 1000000000};
    struct pollfd p = {fd, POLLIN, 0};
    if (ppoll(&p, 1, &rest, NULL) > 0 && read(fd, &drain, sizeof drain) < 0)
        sched_yield();
}

/* Whether the reader is ready to run, or waits for a disk, and has not run since `ran` was set. */
static bool starves(unsigned long *ran)
{
    char text[1024], state, *rest;
    unsigned long before = *ran, user, kernel;
    ssize_t size = reader_stat < 0 ? -1 : pread(reader_stat, text, sizeof text - 1, 0);
    text[size < 0 ? 0 : size] = 0;
    rest = strrchr(text, ')');          /* behind its name, which may be anything */
    if (!rest || sscanf(rest, ") %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &state, &user, &kernel) != 3)
        return false;
    *ran = user + kernel;
    return (state == 'R' || state == 'D') && *ran == before;
}

/* Wait until event `seq`, of vCPU `of`, is resumed.  `fd` is written then; without one (-1), look now and then. */
static void await(struct shared *s, unsigned of, uint64_t seq, unsigned limit_ms, int fd)
{
    uint64_t begin = now(), left = limit_ms * 1000000ull, starved = PATIENCE * left, slice = 0, t;
    uint64_t nap = fd < 0 ? NAP_NS : SLICE_NS;
    unsigned long ran = 0;
    while (reader && s->vcpu[of].resumed < seq) {
        if ((t = now()) - begin < spin_ns)
            continue;
        if (!left) {
            s->timeouts++;
            late = s->head;
            break;
        }
        sleep_at_most(left < nap ? left : nap, fd);
        uint64_t slept = now() - t;
        slice += slept < SLICE_NS ? slept : SLICE_NS;
        if (slice >= SLICE_NS || slice >= left) {
            uint64_t *from = starves(&ran) && starved ? &starved : &left;
            *from -= *from < slice ? *from : slice;
            slice = 0;
        }
    }
    s->waited_ns += now() - begin;
}

bool fences_up(void)
{
    const struct shared *s = reader ? shared : NULL;
    for (unsigned i = 0; s && i < n_vcpus; i++)
        if (s->vcpu[i].resumed < waiters[i].fence)
            return true;
    return false;
}

void pass_fences(unsigned v, bool passing, unsigned limit_ms)
{
    struct shared *s = reader ? shared : NULL;
    if (!passing)                       /* else the next system call has to look for those that this one passes */
        lower_word(v, ON_ENTRY, BY_FENCE);
    for (unsigned i = 0; s && i < n_vcpus; i++) {
        uint64_t seq = passing ? waiters[i].closed : waiters[i].fence;
        if (!late && s->vcpu[i].resumed < seq)
            await(s, i, seq, limit_ms, -1);     /* no eventfd: several may wait for it */
    }
}

static void put_up_fence(unsigned v, uint64_t seq, bool passable)
{
    if (!passable)
        waiters[v].closed = seq;
    waiters[v].fence = seq;
    for (unsigned i = 0; i < n_vcpus; i++)
        if (vcpu_seen(i))
            raise_word(i, ON_ENTRY, BY_FENCE);
}

/* --- the ring, on the vCPU's thread ------------------------------------------------------------------------- */
static void read_registers(struct event *e, bool all)
{
    static const uint8_t brief[] = {BRIEF_REGISTERS};
    if (all)
        for (unsigned i = 0; i < EVENT_REGISTERS; i++)
            e->registers[i] = reg(e->vcpu, i);
    else
        for (unsigned i = 0; i < sizeof brief; i++)
            e->registers[brief[i]] = reg(e->vcpu, brief[i]);
}

void emit(struct event *e, enum action action, unsigned limit_ms)
{
    struct shared *s = reader ? shared : NULL;
    if (!s || action == OFF)
        return;
    if (late && s->tail >= late)
        late = 0;
    if (late)
        action = RECORD;
    read_registers(e, action == HOLD);
    e->action = action;
    e->time_ns = now();
    while (atomic_flag_test_and_set_explicit(&ring_lock, memory_order_acquire))
        ;
    uint64_t head = s->head, used = head - s->tail;
    e->sequence = ++sequence;
    bool fits = used < (action == RECORD ? SLOTS - FOR_HELD : SLOTS);
    if (fits) {
        if (action >= FENCE)            /* before the reader can resume it */
            put_up_fence(e->vcpu, e->sequence, action == PASSABLE_FENCE);
        memcpy((char *)s + ring_offset + head % SLOTS * sizeof *e, e, sizeof *e);
        s->head = head + 1;
    } else {
        s->dropped++;
    }
    atomic_flag_clear_explicit(&ring_lock, memory_order_release);
    if ((action >= HOLD || used == SLOTS / 4) && s->asleep)
        eventfd_write(wake_fd, 1);
    if (fits && action == HOLD)
        await(s, e->vcpu, e->sequence, limit_ms, waiters[e->vcpu].fd);
}
