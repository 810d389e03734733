/* SPDX-License-Identifier: BSD-2-Clause
 *
 * See filter.h.
 */
#define _GNU_SOURCE
#include "filter.h"
#include "events.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

struct decision { _Alignas(64) _Atomic bool under_way; };

static _Atomic(struct filter *) installed;
static _Atomic unsigned wanted;                 /* words that the filter wants raised: bit 1 << enum word */
static _Atomic uint64_t lists[2][BITMAP];       /* the numbers that it lists, by ABI */
static struct decision *decisions;              /* by vCPU */

bool filter_create(void)
{
    decisions = for_each_vcpu(sizeof *decisions);
    return decisions;
}

/* --- on the control thread ---------------------------------------------------------------------------------- */
static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static bool any(const uint64_t *bits, unsigned n)
{
    while (n--)
        if (bits[n])
            return true;
    return false;
}

static bool readable(uint64_t at, uint64_t size)
{
    uint64_t value;
    struct iovec to = {&value, size}, from = {(void *)at, size};
    return (size == 4 || size == 8) && at % size == 0
           && process_vm_readv(getpid(), &to, 1, &from, 1, 0) == (ssize_t)size;
}

static uint64_t value_of(const struct watched *w)
{
    return w->size == 8 ? *(volatile uint64_t *)w->address : *(volatile uint32_t *)w->address;
}

static enum reply watch_words(struct filter *f, const uint64_t *pairs)
{
    const struct filter *old = installed;
    unsigned k = 0, n_old = old ? old->head.n_words : 0;
    f->words = calloc(f->head.n_words + 1, sizeof *f->words);
    if (!f->words)
        return NO_MEMORY;
    for (unsigned i = 0; i < f->head.n_words; i++) {
        struct watched *w = &f->words[i];
        w->address = pairs[QUADS_PER_WORD * i];
        w->size = pairs[QUADS_PER_WORD * i + 1];
        while (k < n_old && old->words[k].address < w->address)
            k++;
        if (k < n_old && old->words[k].address == w->address && old->words[k].size == w->size) {
            w->last = old->words[k].last;       /* what moved since it was last compared still counts */
            continue;
        }
        if (!readable(w->address, w->size))
            return BAD_ADDRESS;
        w->last = value_of(w);
    }
    return IN_FORCE;
}

static void classify(struct filter *f)
{
    const struct arm *a = &f->head;
    f->listed = a->syscall && (any(a->syscalls, BITMAP) || any(a->compat_syscalls, BITMAP));
    f->everywhere = a->every;
    f->syscalls = f->listed || a->every || a->unsettled_syscall;
    f->asids = a->asid || a->unsettled_asid || a->n_words || a->unsettled_syscall;
    f->codes = a->code && a->n_code;
}

struct filter *filter_make(const struct arm *a, enum reply *reply)
{
    const uint64_t *tail = (const uint64_t *)(a + 1);
    *reply = BAD;
    if (a->n_words > MAX_WORDS || a->n_code > MAX_CODE || a->n_fences > MAX_FENCES
        || a->n_entries > MAX_ENTRIES || a->n_flags > MAX_FLAGS)
        return NULL;
    size_t words = (size_t)QUADS_PER_WORD * a->n_words;
    size_t others = (size_t)a->n_code + QUADS_PER_FENCE * a->n_fences + QUADS_PER_ENTRY * a->n_entries
                    + QUADS_PER_FLAGS * a->n_flags;
    if (a->length != sizeof *a + (words + others) * sizeof *tail)
        return NULL;
    *reply = NO_MEMORY;
    struct filter *f = calloc(1, sizeof *f + others * sizeof *tail);
    if (!f)
        return NULL;
    f->head = *a;
    f->code = (uint64_t *)(f + 1);
    f->fences = f->code + a->n_code;
    f->entries = f->fences + QUADS_PER_FENCE * a->n_fences;
    f->flags = f->entries + QUADS_PER_ENTRY * a->n_entries;
    memcpy(f->code, tail + words, others * sizeof *tail);
    qsort(f->code, a->n_code, sizeof *tail, compare);
    classify(f);
    *reply = watch_words(f, tail);
    if (*reply == IN_FORCE)
        return f;
    filter_free(f);
    return NULL;
}

void filter_free(struct filter *f)
{
    if (f)
        free(f->words);
    free(f);
}

static void update_words(unsigned v)
{
    unsigned words;
    do {
        words = wanted;
        for (enum word w = 0; w < WORDS; w++)
            (words >> w & 1 ? raise_word : lower_word)(v, w, BY_FILTER);
        (words >> ON_SYSCALL & 1 ? raise_word : lower_word)(v, ON_CALL, BY_ASID);
    } while (words != wanted);
}

void filter_install(struct filter *new)
{
    for (unsigned i = 0; i < BITMAP; i++) {
        lists[NATIVE][i] = new && new->listed ? new->head.syscalls[i] : 0;
        lists[COMPAT][i] = new && new->listed ? new->head.compat_syscalls[i] : 0;
    }
    struct filter *old = atomic_exchange(&installed, new);
    for (unsigned v = 0; v < n_vcpus; v++)
        while (decisions[v].under_way)
            sched_yield();
    filter_free(old);
    bool all = new && (new->everywhere || new->head.unsettled_syscall);
    wanted = new ? all << ON_SYSCALL | new->listed << ON_CALL | new->asids << ON_CR3 | new->codes << ON_CODE : 0;
    for (unsigned v = 0; v < n_vcpus; v++)
        if (vcpu_seen(v))
            update_words(v);
}

bool filter_idle(void)
{
    const struct filter *f = installed;     /* the control thread alone replaces it */
    return !f || !(f->syscalls || f->asids || f->codes);
}

/* --- on the vCPU's thread ----------------------------------------------------------------------------------- */
void filter_add_vcpu(unsigned v)
{
    update_words(v);
}

const struct filter *filter_enter(unsigned v)
{
    decisions[v].under_way = true;
    return installed;
}

void filter_leave(unsigned v)
{
    decisions[v].under_way = false;
}

/* Without PCID, the bit of page-table isolation, and the no-flush bit: see live/arch/x86_64.py. */
static uint64_t asid_of(const struct filter *f, uint64_t cr3)
{
    return cr3 & ~((f->head.split ? 0x1fffull : 0xfffull) | 1ull << 63);
}

uint64_t filter_asid(const struct filter *f, uint64_t cr3)
{
    return asid_of(f, cr3);
}

static bool has(const uint64_t *set, size_t n, uint64_t x)
{
    return n && bsearch(&x, set, n, sizeof x, compare);
}

bool filter_lists(enum abi abi, uint64_t number)
{
    return number < SYSCALL_NUMBERS
           && atomic_load_explicit(&lists[abi][number / 64], memory_order_relaxed) >> number % 64 & 1;
}

/* Whether every system call of a vCPU calls us. */
static void look_at_calls(unsigned v, bool all)
{
    (all ? raise_word : lower_word)(v, ON_SYSCALL, BY_FILTER);
    (all ? raise_word : lower_word)(v, ON_CALL, BY_ASID);
}

static bool listed(const uint64_t *bitmap, uint64_t number)
{
    return number < SYSCALL_NUMBERS && bitmap[number / 64] >> number % 64 & 1;
}

/* Whether a listed call is one of those that are wanted. */
static bool flagged(const struct filter *f, const struct event *e)
{
    for (unsigned i = 0; i < f->head.n_flags; i++) {
        const uint64_t *flags = &f->flags[QUADS_PER_FLAGS * i];
        if (flags[0] == e->number && flags[1] == e->abi)
            return flags[2] & reg(e->vcpu, e->abi == NATIVE ? RDI : RBX);
    }
    return true;
}

enum action filter_syscall(const struct filter *f, struct event *e)
{
    if (!f || !f->syscalls)
        return OFF;
    enum action action = f->head.every;
    const uint64_t *bitmap = e->abi == NATIVE ? f->head.syscalls : f->head.compat_syscalls;
    e->number = (uint32_t)reg(e->vcpu, RAX);
    if (f->head.syscall > action && listed(bitmap, e->number) && flagged(f, e))
        action = f->head.syscall;
    if (f->head.unsettled_syscall > action) {
        e->cr3 = reg(e->vcpu, CR3);
        if (!asid_settled(asid_of(f, e->cr3)))
            return f->head.unsettled_syscall;
        if (!f->everywhere)             /* until the vCPU comes to such an asid */
            look_at_calls(e->vcpu, false);
    }
    if (action != OFF)
        e->cr3 = reg(e->vcpu, CR3);
    return action;
}

static bool moved(struct watched *w)
{
    uint64_t value = value_of(w);
    return value != atomic_load_explicit(&w->last, memory_order_relaxed) && atomic_exchange(&w->last, value) != value;
}

enum action filter_cr3(const struct filter *f, struct event *e, unsigned source)
{
    if (!f || !f->asids)
        return OFF;
    e->cr3 = reg(e->vcpu, CR3);
    e->new_cr3 = reg(e->vcpu, source);
    if (asid_of(f, e->cr3) == asid_of(f, e->new_cr3))
        return OFF;
    enum action action = f->head.asid;
    if (f->head.unsettled_asid > action || f->head.unsettled_syscall) {
        bool settled = asid_settled(asid_of(f, e->new_cr3));
        if (f->head.unsettled_syscall && !f->everywhere)
            look_at_calls(e->vcpu, !settled);
        if (!settled && f->head.unsettled_asid > action)
            action = f->head.unsettled_asid;
    }
    for (unsigned i = 0; i < f->head.n_words; i++)
        if (moved(&f->words[i])) {
            if (e->moved < EVENT_WORDS)
                e->words[e->moved] = f->words[i].address;
            e->moved += e->moved < UINT8_MAX;
        }
    if (e->moved)
        return f->head.moved_fence && f->head.n_entries ? PASSABLE_FENCE : HOLD;
    return action;
}

/* The fence at this address; HOLD if there is none, or nothing where the function's first argument leads. */
static enum action fence_at(const struct filter *f, unsigned v, uint64_t pc)
{
    for (unsigned i = 0; f->head.n_entries && i < f->head.n_fences; i++) {
        const uint64_t *fence = &f->fences[QUADS_PER_FENCE * i];
        if (fence[0] == pc)
            return !quadword(v, reg(v, RDI) + fence[1]) ? HOLD : fence[2] ? PASSABLE_FENCE : FENCE;
    }
    return HOLD;
}

enum action filter_code(const struct filter *f, struct event *e)
{
    if (!f || !has(f->code, f->head.n_code, e->pc))
        return OFF;
    e->cr3 = reg(e->vcpu, CR3);
    return f->head.code == HOLD ? fence_at(f, e->vcpu, e->pc) : f->head.code;
}

bool filter_passes(const struct filter *f, unsigned v, enum abi abi)
{
    return f && abi == NATIVE && listed(f->head.passing, (uint32_t)reg(v, RAX));
}
