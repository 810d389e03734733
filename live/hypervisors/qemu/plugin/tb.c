/* SPDX-License-Identifier: BSD-2-Clause
 *
 * See tb.h.
 */
#include "tb.h"
#include "events.h"

#include <stdlib.h>
#include <string.h>

struct places { size_t n; struct place list[]; };

static const enum word flush_words[] = {ON_SYSCALL, ON_CALL, ON_CR3, ON_IRET};
enum { FLUSH_WORDS = sizeof flush_words / sizeof *flush_words };

static uint64_t plugin;
static void (*subscribe_others)(uint64_t);
static void (*on_translation)(uint64_t, void *);
static _Atomic bool told;                       /* of translations; all TBs are from then on, or a flush is wanted */
static struct places *_Atomic places;           /* all ever wanted, sorted; grows only */
static _Atomic uint64_t calls[2][BITMAP];       /* system calls ever listed, by ABI */
static _Atomic uint64_t flush_wanted, flush_begun, flush_done;

static void subscribe(void)
{
    subscribe_others(plugin);
    if (told)
        qemu_plugin_register_vcpu_tb_trans_cb(plugin, on_translation);
}

void tb_start(uint64_t id, bool at_once, void (*others)(uint64_t), void (*translated)(uint64_t, void *))
{
    plugin = id;
    subscribe_others = others;
    on_translation = translated;
    told = at_once;
    subscribe();
}

/* --- what is instrumented ----------------------------------------------------------------------------------- */
static int by_address(const void *a, const void *b)
{
    uint64_t x = ((const struct place *)a)->at, y = ((const struct place *)b)->at;
    return x < y ? -1 : x > y;
}

/* Whether it adds anything to `known`, which has room for it. */
static bool add(struct places *known, uint64_t at, unsigned what)
{
    struct place *p = known->list, *end = known->list + known->n;
    while (p < end && p->at != at)
        p++;
    if (p == end)
        *p = (struct place){at, 0}, known->n++;
    bool more = what & ~p->what;
    p->what |= what;
    return more;
}

bool tb_lists(enum abi abi, uint32_t number)
{
    return number < SYSCALL_NUMBERS && calls[abi][number / 64] >> number % 64 & 1;
}

void tb_list(const uint64_t *native, const uint64_t *compat)
{
    bool more = false;
    for (unsigned i = 0; i < BITMAP; i++) {
        more |= (native[i] & ~calls[NATIVE][i]) || (compat[i] & ~calls[COMPAT][i]);
        calls[NATIVE][i] |= native[i];
        calls[COMPAT][i] |= compat[i];
    }
    flush_wanted += more && told;       /* else the first request asks for one */
}

bool tb_instrument(const uint64_t *code, size_t n_code, const uint64_t *entries, size_t n_entries)
{
    const struct places *old = places;
    size_t had = old ? old->n : 0;
    bool more = false;
    if (n_code + n_entries) {
        struct places *new = malloc(sizeof *new + (had + n_code + n_entries) * sizeof(struct place));
        if (!new)
            return false;
        new->n = had;
        if (old)
            memcpy(new->list, old->list, had * sizeof(struct place));
        for (size_t i = 0; i < n_code; i++)
            more |= add(new, code[i], TRAPPED);
        for (size_t i = 0; i < n_entries; i++)
            more |= add(new, entries[QUADS_PER_ENTRY * i], ENTRY << (entries[QUADS_PER_ENTRY * i + 1] != NATIVE));
        if (more) {
            qsort(new->list, new->n, sizeof(struct place), by_address);
            places = new;               /* the old list stays: a vCPU may be translating with it */
        } else {
            free(new);
        }
    }
    if (!told) {
        told = more = true;
        qemu_plugin_register_vcpu_tb_trans_cb(plugin, on_translation);  /* the next translation can begin a flush */
    }
    flush_wanted += more;
    return true;
}

const struct place *tb_place(uint64_t vaddr)
{
    const struct places *p = places;
    if (!p || vaddr < p->list[0].at || vaddr > p->list[p->n - 1].at)
        return NULL;
    struct place wanted = {.at = vaddr};
    return bsearch(&wanted, p->list, p->n, sizeof wanted, by_address);
}

/* --- flushes ------------------------------------------------------------------------------------------------ */
static void on_idle(uint64_t id, unsigned v)
{
    (void)id, (void)v;
}

static bool pending(void)
{
    return flush_wanted > flush_done;
}

static void raise_words(unsigned v)
{
    for (unsigned i = 0; i < FLUSH_WORDS; i++)
        raise_word(v, flush_words[i], BY_FLUSH);
}

bool tb_begin_flush(void)
{
    if (!pending())
        return false;
    for (unsigned v = 0; v < n_vcpus; v++)
        if (vcpu_seen(v))
            raise_words(v);
    qemu_plugin_register_vcpu_idle_cb(plugin, on_idle);
    return true;
}

uint64_t tb_flush_wanted(void)
{
    return flush_wanted;
}

uint64_t tb_flush_done(void)
{
    return flush_done;
}

void tb_add_vcpu(unsigned v)
{
    if (pending())
        raise_words(v);
}

static void flushed(uint64_t id)        /* every vCPU is out of generated code */
{
    (void)id;
    subscribe();
    flush_done = flush_begun;
    events_flushed(flush_done);
}

void tb_flush_if_wanted(void)
{
    uint64_t begun = flush_begun, wanted = flush_wanted;
    if (wanted > begun && atomic_compare_exchange_strong(&flush_begun, &begun, wanted))
        qemu_plugin_reset(plugin, flushed);
}

void tb_rest(unsigned v)
{
    if (pending())
        return;
    for (unsigned i = 0; i < FLUSH_WORDS; i++)
        lower_word(v, flush_words[i], BY_FLUSH);
    if (pending())                      /* wanted since we looked: what raised them may have been undone */
        raise_words(v);
}
