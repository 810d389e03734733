/* SPDX-License-Identifier: BSD-2-Clause
 *
 * What becomes of an event: a slot in the ring, and who waits until its reader has resumed it.
 *
 * Theory of operation
 * -------------------
 * RECORD: nobody waits.  HOLD: the vCPU waits here for its resume word, the time limit, or the end of the reader,
 * whichever is first.  FENCE: the guest runs on while the reader looks at its memory, but no vCPU gets past the
 * beginning of its next system call (the filter's entries), or its next code address that is trapped, before the
 * resume word is there: what the reader wants to read is changed by nothing else.  LOW_FENCE: the same, but the
 * system calls of a list pass.  Such a wait has the same limit.  Most fences cost nothing, because the reader is
 * quicker than the guest.  Without entries there are no fences, and what would have one is held.
 *
 * The limit is counted in time in which both sides could run.  A machine that stood still took the reader's time, too;
 * and a reader that is ready to run and gets no CPU, as on a host with more to do than it has CPUs for, does not hang.  Up
 * to `PATIENCE` limits of such time are not counted.
 *
 * A reader that let a wait run into its limit is late: nothing waits for it until it has read what is in the ring.
 *
 * A fence raises the word of every vCPU, so that its next system call calls us.  Each vCPU takes its own down
 * first and looks for fences then: one that is put up meanwhile raises it again, or is seen.
 */
#include "shared.h"

#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE = 10 };

int wake_fd = -1;
int reader_stat = -1;                   /* its /proc/PID/stat, if we can see it; of its first thread */
size_t ring_offset;
uint64_t spin_ns;                       /* to sleep and be woken takes as long as most waits: look for a while first */
_Atomic uint64_t late;                  /* ring position up to which the reader is late; 0: it is in time */

static atomic_flag ring_lock = ATOMIC_FLAG_INIT;
static uint64_t sequence;

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

/* `low`: only the high ones stop it; those that it leaves behind are for the next one to look for. */
void pass_fences(unsigned v, bool low, unsigned limit_ms)
{
    struct shared *s = shared;
    if (!low)
        __atomic_fetch_and(&score_of(v)->entry, 0, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; s && i < n_vcpus; i++) {
        uint64_t seq = low ? vcpus[i].high : vcpus[i].fence;
        if (!late && s->vcpu[i].resumed < seq)
            await(s, i, seq, limit_ms, -1);     /* several may wait for it, and most times nobody does */
    }
}

static void put_up_fence(unsigned v, uint64_t seq, bool low)
{
    if (!low)
        vcpus[v].high = seq;
    vcpus[v].fence = seq;
    for (unsigned i = 0; i < n_vcpus; i++)
        if (vcpus[i].seen)
            __atomic_fetch_or(&score_of(i)->entry, 1, __ATOMIC_SEQ_CST);
}

void emit(struct event *e, enum action action, unsigned limit_ms)
{
    struct shared *s = shared;
    unsigned v = e->vcpu;
    static const uint8_t brief[] = {0, 2, 6, 7, 10};    /* rax rdx rsi rdi r10 */
    if (!s)
        return;
    if (late && s->tail >= late)
        late = 0;
    bool held = action >= HOLD && !late;
    if (action == HOLD)
        for (int i = 0; i < 18; i++)
            e->regs[i] = reg(v, i);
    else
        for (unsigned i = 0; i < sizeof brief; i++)
            e->regs[brief[i]] = reg(v, brief[i]);
    e->held = held ? action - RECORD : 0;
    e->cpu = sched_getcpu();
    e->time = now();
    while (atomic_flag_test_and_set_explicit(&ring_lock, memory_order_acquire))
        ;
    uint64_t head = s->head, used = head - s->tail;
    e->sequence = ++sequence;
    bool fits = used < (held ? SLOTS : SLOTS - 256);
    if (fits) {
        if (held && action >= FENCE)    /* before the reader can resume it */
            put_up_fence(v, e->sequence, action == LOW_FENCE);
        memcpy((char *)s + ring_offset + head % SLOTS * sizeof *e, e, sizeof *e);
        s->head = head + 1;
    } else {
        s->dropped++;
    }
    atomic_flag_clear_explicit(&ring_lock, memory_order_release);
    if ((held || used == SLOTS / 4) && s->asleep) {
        uint64_t one = 1;
        if (write(wake_fd, &one, sizeof one) < 0)
            return;
    }
    if (held && fits && action == HOLD)
        await(s, v, e->sequence, limit_ms, vcpus[v].fd);
}
