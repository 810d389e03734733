/* SPDX-License-Identifier: BSD-2-Clause
 *
 * QEMU TCG plugin: traps at system calls, CR3 writes and code addresses, filtered beside the vCPU.
 *
 * Theory of operation
 * -------------------
 * At translation, `syscall`, `sysenter`, `int 0x80`, `mov cr3` and (to get a vCPU's attention) `iretq` get a
 * *conditional* callback: generated code compares one word per vCPU, and calls us only while it is non-zero.
 * Code addresses get one too, when they are known: those that are trapped, and those at which the guest's kernel
 * begins a system call (*entries*), for the fences.
 *
 * Code that QEMU makes while anybody is told of translations is a few percent slower, whether or not it has a
 * callback (`python -m tests.bench.floor`).  So we ask to be told when the first reader comes, and not before; and
 * what there is by then had better stay.  For code addresses it can: the reader says what it will trap (PREPARE),
 * makes QEMU give up the code that has those addresses in it, by writing over them what is there while the guest
 * stands (remake.py), and arms (MADE).  All code that is made from the first step on has our callbacks.
 *
 * Instructions may be anywhere.  For them, and for a reader that cannot write, the translation cache is flushed,
 * once, by qemu_plugin_reset(), which must be called on a vCPU's thread: the words are set, and the first vCPU that
 * calls us does it, at an instruction, a trap, a translation, or when it wakes up.  One that sleeps is woken by
 * subscribing to one more event: QEMU queues work for every vCPU then, and reports its wake-up (seen in QEMU 10.0;
 * no other call does it).  One that does none of these is made to stand for a moment by the reader.
 *
 * QEMU reports no wake-ups where one thread runs all vCPUs; there we ask to be told at once.  And we never cease to
 * ask: a translation that was broken off leaves QEMU with a state (`tcg_ctx->plugin_insn`) in which to go on
 * translating without plugins is its end (seen in QEMU 10.0, within minutes).
 *
 * A reader connects to our socket and gets a memfd (ring of events, counters, resume words) and eventfds.  It
 * sends filters (struct arm); the words of the vCPUs follow from them.  What becomes of an event: events.c.
 *
 * Rules: `filter` is read only between enter() and leave(), so that one that was replaced can be freed when no
 * vCPU is between them; `shared` memory is used only while `busy` is set.
 *
 * Words of guest memory are compared through QEMU's own mapping of guest RAM; the reader has the address from the
 * monitor (gpa2hva), and it is tried with process_vm_readv before use.
 *
 * The ABI of QEMU (plugin API 4) and of GLib is declared here as far as it is used; no header of theirs is needed.
 */
#include "shared.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

EXPORT int qemu_plugin_version = 4;

unsigned n_vcpus;
struct vcpu *vcpus;
_Atomic(struct filter *) filter;
_Atomic(struct shared *) shared;
_Atomic bool reader;
struct codes *_Atomic codes;
_Atomic int flushing;
_Atomic uint64_t flush_wanted, flush_begun, flush_done;
_Atomic bool instrumenting;
bool everywhere;

static uint64_t plugin;
static void *scores, *handles[REGS];
static const char *const names[REGS] = REG_NAMES;

static uint64_t masked(uint64_t cr3) { return cr3 & ~(0x1fffull | 1ull << 63); }

int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static bool has(const uint64_t *set, size_t n, uint64_t x)
{
    return n && bsearch(&x, set, n, sizeof x, compare);
}

uint64_t reg(unsigned v, int which)
{
    uint64_t value = 0;
    GByteArray *buffer = vcpus[v].buffer;
    if (handles[which]) {
        g_byte_array_set_size(buffer, 0);
        if (qemu_plugin_read_register(handles[which], buffer) > 0)
            memcpy(&value, buffer->data, buffer->len < 8 ? buffer->len : 8);
    }
    return value;
}

struct score *score_of(unsigned v) { return qemu_plugin_scoreboard_find(scores, v); }

/* --- callbacks, on the vCPU's thread ------------------------------------------------------------------------ */
static void flushed(uint64_t id);

static void flush_if_wanted(void)
{
    uint64_t begun = flush_begun, wanted = flush_wanted;
    if (wanted > begun && atomic_compare_exchange_strong(&flush_begun, &begun, wanted))
        qemu_plugin_reset(plugin, flushed);
}

static struct filter *enter(unsigned v)
{
    vcpus[v].busy = 1;
    vcpus[v].deciding = 1;
    flush_if_wanted();
    return filter;
}

static void leave(unsigned v, struct event *e, enum action action, unsigned limit_ms)
{
    vcpus[v].deciding = 0;
    if (reader && e && e->kind == CODE)
        pass_fences(v, false, limit_ms);
    if (reader && action != OFF)
        emit(e, action, limit_ms);
    vcpus[v].busy = 0;
}

/* A vaddr has 57 significant bits; the 7 above carry what else the instruction's callback has to know. */
static void *packed(uint64_t vaddr, unsigned extra) { return (void *)(vaddr << 7 >> 7 | (uint64_t)extra << 57); }
static uint64_t vaddr_of(void *p) { return (uint64_t)((int64_t)((uint64_t)p << 7) >> 7); }
static unsigned extra_of(void *p) { return (uint64_t)p >> 57; }

/* Bit 0 of the word, while only the system calls of pending asids count. */
static void switch_syscalls(unsigned v, bool on)
{
    if (on)
        __atomic_fetch_or(&score_of(v)->sys, 1, __ATOMIC_SEQ_CST);
    else
        __atomic_fetch_and(&score_of(v)->sys, ~1ull, __ATOMIC_SEQ_CST);
}

static bool listed(const uint64_t bitmap[16], uint64_t number)
{
    return number < 1024 && bitmap[number / 64] >> number % 64 & 1;
}

static void on_syscall(unsigned v, void *data)
{
    struct event e = {.kind = SYSCALL, .vcpu = v, .pc = vaddr_of(data), .entry = extra_of(data)};
    struct filter *f = enter(v);
    enum action action = OFF;
    unsigned limit = f ? f->head.hold_ms : 0;
    if (f && f->sys) {
        e.number = reg(v, R_RAX) & 0xffffffff;
        e.cr3 = reg(v, R_CR3);
        action = f->head.every;
        if (f->head.n_pending) {
            if (has(f->pending, f->head.n_pending, masked(e.cr3)))
                action = HOLD;
            else if (f->only_pending)
                switch_syscalls(v, false);
        }
        if (f->head.syscall > action && listed(f->head.bitmap[e.entry != 0], e.number))
            action = f->head.syscall;
    }
    leave(v, &e, action, limit);
}

/* The kernel begins a system call.  Which one low fences let pass is listed for 64-bit code only. */
static void on_entry(unsigned v, void *entry)
{
    struct filter *f = enter(v);
    unsigned limit = f ? f->head.hold_ms : 0;
    bool low = f && !entry && listed(f->head.bitmap[2], reg(v, R_RAX) & 0xffffffff);
    vcpus[v].deciding = 0;
    pass_fences(v, low, limit);         /* without a reader, too: it takes the word down */
    vcpus[v].busy = 0;
}

static void on_cr3(unsigned v, void *data)
{
    struct event e = {.kind = ASID, .vcpu = v, .pc = vaddr_of(data)};
    struct filter *f = enter(v);
    enum action action = OFF;
    unsigned limit = f ? f->head.hold_ms : 0;
    if (f && f->cr3) {
        e.cr3 = reg(v, R_CR3);
        e.new_cr3 = reg(v, extra_of(data));
        if (masked(e.cr3) != masked(e.new_cr3)) {
            action = f->head.asid;
            if (f->only_pending)
                switch_syscalls(v, has(f->pending, f->head.n_pending, masked(e.new_cr3)));
            for (unsigned i = 0; i < f->head.n_words; i++) {
                struct word *w = &f->words[i];
                uint64_t value = w->size == 8 ? *(volatile uint64_t *)w->address : *(volatile uint32_t *)w->address;
                if (value != atomic_load_explicit(&w->last, memory_order_relaxed)
                    && atomic_exchange(&w->last, value) != value)
                    e.moved = 1;
            }
            if (e.moved)
                action = HOLD;
        }
    }
    leave(v, &e, action, limit);
}

/* The fence for this address, if what its argument (rdi) points at has something at the fence's offset; or HOLD. */
static enum action fence_at(unsigned v, const struct filter *f, uint64_t pc)
{
    GByteArray *buffer = vcpus[v].buffer;
    for (unsigned i = 0; f->head.n_entries && i < f->head.n_fences; i++) {
        const uint64_t *fence = &f->fences[3 * i];
        if (fence[0] != pc)
            continue;
        uint64_t value = 0, at = reg(v, R_RDI) + fence[1];
        if (qemu_plugin_read_memory_vaddr(at, buffer, sizeof value) && buffer->len == sizeof value)
            memcpy(&value, buffer->data, sizeof value);
        return !value ? HOLD : fence[2] ? LOW_FENCE : FENCE;
    }
    return HOLD;
}

static void on_code(unsigned v, void *data)
{
    struct event e = {.kind = CODE, .vcpu = v, .pc = (uint64_t)data};
    struct filter *f = enter(v);
    enum action action = OFF;
    unsigned limit = f ? f->head.hold_ms : 0;
    if (f && has(f->code, f->head.n_code, e.pc)) {
        e.cr3 = reg(v, R_CR3);
        action = f->head.code;
        if (action == HOLD)
            action = fence_at(v, f, e.pc);
    }
    leave(v, &e, action, limit);
}

static void on_return(unsigned v, void *data)
{
    (void)data;
    enter(v);
    if (flush_wanted == flush_done) {   /* no attention needed any more; bit 0 is the control thread's */
        struct score *s = score_of(v);
        __atomic_fetch_and(&s->ret, 0, __ATOMIC_SEQ_CST);
        __atomic_fetch_and(&s->sys, 1, __ATOMIC_SEQ_CST);
        __atomic_fetch_and(&s->cr3, 1, __ATOMIC_SEQ_CST);
    }
    leave(v, NULL, OFF, 0);
}

static void on_resume(uint64_t id, unsigned v)
{
    (void)id;
    if (v < n_vcpus && vcpus[v].seen)
        on_return(v, NULL);
}

static void on_idle(uint64_t id, unsigned v)
{
    (void)id, (void)v;
}

void wake_all(void)
{
    qemu_plugin_register_vcpu_idle_cb(plugin, on_idle);
}

static void at_code(void *insn, uint64_t vaddr, const struct code *code)
{
    score_u64 word = {scores, offsetof(struct score, entry)};
    for (uint64_t entry = 0; code && code->what >> 1 >> entry; entry++)
        if (code->what >> 1 >> entry & 1)
            qemu_plugin_register_vcpu_insn_exec_cond_cb(insn, on_entry, CB_R_REGS, COND_NE, word, 0, (void *)entry);
    word.offset = offsetof(struct score, code);
    if (code && code->what & 1)
        qemu_plugin_register_vcpu_insn_exec_cond_cb(insn, on_code, CB_R_REGS, COND_NE, word, 0, (void *)vaddr);
}

static void on_translate(uint64_t id, void *tb)
{
    (void)id;
    flush_if_wanted();
    size_t n = qemu_plugin_tb_n_insns(tb);
    struct codes *c = codes;
    for (size_t i = 0; i < n; i++) {
        void *insn = qemu_plugin_tb_get_insn(tb, i);
        size_t size = qemu_plugin_insn_size(insn);
        score_u64 word = {scores, 0};
        uint64_t vaddr = 0;
        uint8_t b[4];
        if (c && c->n) {
            vaddr = qemu_plugin_insn_vaddr(insn);
            if (vaddr >= c->list[0].at && vaddr <= c->list[c->n - 1].at)
                at_code(insn, vaddr, bsearch(&vaddr, c->list, c->n, sizeof *c->list, compare));
        }
        if (size < 2 || size > 4)
            continue;
        qemu_plugin_insn_data(insn, b, size);
        vaddr = qemu_plugin_insn_vaddr(insn);
        if (b[0] == 0x0f && (b[1] == 0x05 || b[1] == 0x34)) {
            word.offset = offsetof(struct score, sys);
            qemu_plugin_register_vcpu_insn_exec_cond_cb(insn, on_syscall, CB_R_REGS, COND_NE, word, 0,
                                                        packed(vaddr, b[1] == 0x34));
        } else if (b[0] == 0xcd && b[1] == 0x80) {
            word.offset = offsetof(struct score, sys);
            qemu_plugin_register_vcpu_insn_exec_cond_cb(insn, on_syscall, CB_R_REGS, COND_NE, word, 0,
                                                        packed(vaddr, 2));
        } else if (b[0] == 0x48 && b[1] == 0xcf) {
            word.offset = offsetof(struct score, ret);
            qemu_plugin_register_vcpu_insn_exec_cond_cb(insn, on_return, CB_NO_REGS, COND_NE, word, 0, NULL);
        } else {
            unsigned rex = (b[0] & 0xf0) == 0x40 ? b[0] : 0;
            uint8_t *op = rex ? b + 1 : b;
            if (size == (rex ? 4 : 3) && op[0] == 0x0f && op[1] == 0x22 && (op[2] >> 3 & 7) == 3 && !(rex & 4)) {
                word.offset = offsetof(struct score, cr3);
                qemu_plugin_register_vcpu_insn_exec_cond_cb(insn, on_cr3, CB_R_REGS, COND_NE, word, 0,
                                                            packed(vaddr, (op[2] & 7) | (rex & 1) << 3));
            }
        }
    }
}

/* --- set-up ------------------------------------------------------------------------------------------------- */
static void on_vcpu(uint64_t id, unsigned v)
{
    (void)id;
    if (v >= n_vcpus || vcpus[v].seen)
        return;
    GArray *all = qemu_plugin_get_registers();
    const reg_descriptor *r = (const void *)all->data;
    for (unsigned i = 0; v == 0 && i < all->len; i++)
        for (int k = 0; k < REGS; k++)
            if (!handles[k] && !strcmp(r[i].name, names[k]))
                handles[k] = r[i].handle;
    g_array_free(all, 1);
    vcpus[v].buffer = g_byte_array_new();
    vcpus[v].seen = true;
    words_of_vcpu(v);                   /* plugged in after a reader armed */
    if (v == 0)
        control_start();                /* not earlier: QEMU may still have to fork into the background */
}

static void on_end(uint64_t id, void *data)
{
    (void)id, (void)data;
    control_end();
}

void tell_us_of_translations(void)
{
    qemu_plugin_register_vcpu_tb_trans_cb(plugin, on_translate);
}

static void subscribe(uint64_t id)
{
    qemu_plugin_register_vcpu_init_cb(id, on_vcpu);
    qemu_plugin_register_vcpu_resume_cb(id, on_resume);
    if (instrumenting)
        tell_us_of_translations();
    qemu_plugin_register_atexit_cb(id, on_end, NULL);
}

static void flushed(uint64_t id)        /* every vCPU is out of generated code */
{
    subscribe(id);
    flush_done = flush_begun;
    flushing = 1;
    if (reader)
        shared->flushes = flush_done;
    flushing = 0;
}

/* Whether QEMU was told to run all vCPUs in one thread. */
static bool one_thread(void)
{
    static char line[1 << 17];
    FILE *f = fopen("/proc/self/cmdline", "r");
    size_t n = f ? fread(line, 1, sizeof line - 1, f) : 0;
    if (f)
        fclose(f);
    for (const char *word = line; word < line + n; word += strlen(word) + 1)
        if (strstr(word, "thread=single") || !strcmp(word + (word[0] == '-' && word[1] == '-'), "-icount"))
            return true;
    return !n;
}

EXPORT int qemu_plugin_install(uint64_t id, const qemu_info_t *info, int argc, char **argv)
{
    const char *path = NULL;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "socket=", 7))
            path = argv[i] + 7;
    if (!path || !info->system_emulation || strcmp(info->target_name, "x86_64")) {
        fprintf(stderr, "pse-trap: needs socket=PATH and qemu-system-x86_64\n");
        return 1;
    }
    if (info->version.cur > NEWEST_API) {
        fprintf(stderr, "pse-trap: this QEMU's plugin API (%d) is newer than what is known here (%d); "
                "start it without -plugin, and watch it in another mode\n", info->version.cur, NEWEST_API);
        return 1;
    }
    if (one_thread() && info->system.max_vcpus > 1) {
        /* Of code for one thread QEMU 10.0 takes the vCPU for a constant, and multiplies that constant in place to
         * find its scoreboard (gen_plugin_u64_ptr()): the guest's own code computes with the product then. */
        fprintf(stderr, "pse-trap: with all vCPUs in one thread (thread=single, -icount) QEMU's plugins spoil a guest "
                "with more than one vCPU; start it without -plugin, or without that option\n");
        return 1;
    }
    plugin = id;
    n_vcpus = info->system.max_vcpus;
    if (sysconf(_SC_NPROCESSORS_ONLN) > n_vcpus)    /* else the reader may need this very CPU */
        spin_ns = SPIN_NS;
    vcpus = aligned_alloc(64, n_vcpus * sizeof *vcpus);
    if (!vcpus || control_listen(path) < 0)
        return 1;
    memset(vcpus, 0, n_vcpus * sizeof *vcpus);
    for (unsigned v = 0; v < n_vcpus; v++)
        vcpus[v].fd = -1;
    scores = qemu_plugin_scoreboard_new(sizeof(struct score));
    instrumenting = everywhere = one_thread();
    subscribe(id);
    return 0;
}
