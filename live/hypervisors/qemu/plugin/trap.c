/* SPDX-License-Identifier: BSD-2-Clause
 *
 * QEMU TCG plugin for x86-64: traps at system calls, CR3 writes and code addresses, filtered beside the vCPU.
 *
 * Theory of operation
 * -------------------
 * At translation, `syscall`, `sysenter`, `int 0x80`, `mov cr3` and (to get a vCPU's attention) `iretq` get a
 * *conditional* callback: generated code compares one word per vCPU, and calls us only while it is non-zero.
 * Code addresses get one too, when they are known: those that are trapped, and those at which the guest's kernel
 * begins a system call (*entries*), for the fences.
 *
 * The parts, each above the ones it includes:
 *
 *   wire.h     what goes between the plugin and its reader
 *   vcpu.h     registers, and the words that say whether generated code calls us
 *   filter.h   which events pass
 *   events.h   ring, holds and fences
 *   tb.h       which code is instrumented, and since when
 *   control.h  the reader's connection
 *   trap.c     QEMU's callbacks
 *
 * Known wart: 32-bit code that uses `syscall`, as it may on AMD, has its calls taken for NATIVE ones.  Fences are
 * right for it, as they go by the kernel's entry.
 */
#include "control.h"
#include "events.h"
#include "filter.h"
#include "tb.h"

#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { NEWEST_API = 6 };                /* 7 has other callbacks */

EXPORT int qemu_plugin_version = 4;

/* --- callbacks, on the vCPU's thread ------------------------------------------------------------------------ */
static const struct filter *enter(unsigned v)
{
    events_enter(v);
    tb_flush_if_wanted();
    return filter_enter(v);
}

static void leave(unsigned v, const struct filter *f, struct event *e, enum action action)
{
    unsigned limit_ms = f ? f->head.hold_ms : 0;
    filter_leave(v);
    if (e->kind == CODE_HIT)
        pass_fences(v, false, limit_ms);
    emit(e, action, limit_ms);
    events_leave(v);
}

/* Between filter_enter() and filter_leave(): the filter that there is when the fences are passed. */
static const struct filter *after_fences(unsigned v, const struct filter *f)
{
    if (!f || !f->head.moved_fence || !fences_up())
        return f;
    unsigned limit_ms = f->head.hold_ms;
    filter_leave(v);
    pass_fences(v, false, limit_ms);
    return filter_enter(v);
}

/* A vaddr has 57 significant bits; the 7 above carry what else the instruction's callback has to know. */
static void *packed(uint64_t vaddr, unsigned extra) { return (void *)(vaddr << 7 >> 7 | (uint64_t)extra << 57); }
static uint64_t vaddr_of(void *p) { return (uint64_t)((int64_t)((uint64_t)p << 7) >> 7); }
static unsigned extra_of(void *p) { return (uint64_t)p >> 57; }

static void on_syscall(unsigned v, void *data)
{
    struct event e = {.kind = SYSCALL, .vcpu = v, .pc = vaddr_of(data), .abi = extra_of(data)};
    const struct filter *f = enter(v);
    enum action action = filter_syscall(f, &e);
    if (action == HOLD) {               /* what the reader learns at a fence may settle the asid */
        f = after_fences(v, f);
        action = filter_syscall(f, &e);
    }
    leave(v, f, &e, action);
}

/* One of which the number is not known from the code, or is listed. */
static void on_call(unsigned v, void *data)
{
    if (reasons(v, ON_CALL) != BY_FILTER || filter_lists(extra_of(data), (uint32_t)reg(v, RAX)))
        on_syscall(v, data);
}

static void on_cr3(unsigned v, void *data)
{
    struct event e = {.kind = ASID_CHANGE, .vcpu = v, .pc = vaddr_of(data)};
    const struct filter *f = after_fences(v, enter(v));
    enum action action = filter_cr3(f, &e, extra_of(data));
    uint64_t left = action == RECORD && f->head.unsettled_asid == RECORD ? filter_asid(f, e.cr3) : 0;
    leave(v, f, &e, action);
    if (left)
        asid_left(left, e.sequence);
}

static void on_code(unsigned v, void *data)
{
    struct event e = {.kind = CODE_HIT, .vcpu = v, .pc = (uint64_t)data};
    const struct filter *f = enter(v);
    leave(v, f, &e, filter_code(f, &e));
}

/* The kernel begins a system call. */
static void on_entry(unsigned v, void *data)
{
    const struct filter *f = enter(v);
    unsigned limit_ms = f ? f->head.hold_ms : 0;
    bool passing = filter_passes(f, v, (uintptr_t)data);
    filter_leave(v);
    pass_fences(v, passing, limit_ms);
    events_leave(v);
}

static void on_iret(unsigned v, void *data)
{
    (void)data;
    tb_flush_if_wanted();
    tb_rest(v);
}

static void on_resume(uint64_t id, unsigned v)
{
    (void)id;
    if (vcpu_seen(v))
        on_iret(v, NULL);
}

/* --- translation -------------------------------------------------------------------------------------------- */
static void call(void *insn, insn_cb callback, enum word word, void *data)
{
    int flags = word == ON_IRET ? CB_NO_REGS : CB_R_REGS;
    qemu_plugin_register_vcpu_insn_exec_cond_cb(insn, callback, flags, COND_NE, place_of(word), 0, data);
}

static void instrument_place(void *insn, const struct place *place)
{
    for (uintptr_t abi = NATIVE; abi <= COMPAT; abi++)
        if (place->what & ENTRY << abi)
            call(insn, on_entry, ON_ENTRY, (void *)abi);
    if (place->what & TRAPPED)
        call(insn, on_code, ON_CODE, (void *)place->at);
}

enum { ANY_NUMBER = -1 };

/* `number`: of the system call, if the code says it. */
static void instrument_call(void *insn, uint64_t vaddr, enum abi abi, int64_t number)
{
    if (number == ANY_NUMBER || tb_lists(abi, number))
        call(insn, on_call, ON_CALL, packed(vaddr, abi));
    else
        call(insn, on_syscall, ON_SYSCALL, packed(vaddr, abi));
}

/* 0f 05 syscall; 0f 34 sysenter; cd 80 int 0x80; 48 cf iretq; [rex] 0f 22 /3 mov cr3. */
static void instrument_instruction(void *insn, uint64_t vaddr, const uint8_t *b, size_t size, int64_t eax)
{
    unsigned rex = (b[0] & 0xf0) == 0x40 ? b[0] : 0;
    const uint8_t *op = rex ? b + 1 : b;
    if (b[0] == 0x0f && (b[1] == 0x05 || b[1] == 0x34))
        instrument_call(insn, vaddr, b[1] == 0x34 ? COMPAT : NATIVE, eax);
    else if (b[0] == 0xcd && b[1] == 0x80)
        instrument_call(insn, vaddr, COMPAT, eax);
    else if (b[0] == 0x48 && b[1] == 0xcf)
        call(insn, on_iret, ON_IRET, NULL);
    else if (size == (rex ? 4 : 3) && op[0] == 0x0f && op[1] == 0x22 && (op[2] >> 3 & 7) == 3 && !(rex & 4))
        call(insn, on_cr3, ON_CR3, packed(vaddr, (op[2] & 7) | (rex & 1) << 3));
}

static void on_translate(uint64_t id, void *tb)
{
    (void)id;
    tb_flush_if_wanted();
    size_t n = qemu_plugin_tb_n_insns(tb);
    int64_t eax = ANY_NUMBER;           /* what the instruction before has put there */
    for (size_t i = 0; i < n; i++) {
        void *insn = qemu_plugin_tb_get_insn(tb, i);
        size_t size = qemu_plugin_insn_size(insn);
        uint64_t vaddr = qemu_plugin_insn_vaddr(insn);
        const struct place *place = tb_place(vaddr);
        uint8_t bytes[5];
        int64_t before = eax;
        eax = ANY_NUMBER;
        if (place)
            instrument_place(insn, place);
        if (size < 2 || size > sizeof bytes)
            continue;
        qemu_plugin_insn_data(insn, bytes, size);
        if (size == 5 && bytes[0] == 0xb8)      /* mov eax, number */
            eax = bytes[1] | bytes[2] << 8 | bytes[3] << 16 | (int64_t)bytes[4] << 24;
        else
            instrument_instruction(insn, vaddr, bytes, size, before);
    }
}

/* --- set-up ------------------------------------------------------------------------------------------------- */
static void on_vcpu(uint64_t id, unsigned v)
{
    (void)id;
    if (!vcpu_add(v))
        return;
    filter_add_vcpu(v);                 /* plugged in after a reader armed */
    events_add_vcpu(v);
    tb_add_vcpu(v);
    if (v == 0)
        control_start();                /* not earlier: QEMU may still have to fork into the background */
}

static void on_end(uint64_t id, void *data)
{
    (void)id, (void)data;
    control_end();
}

static void subscribe(uint64_t id)
{
    qemu_plugin_register_vcpu_init_cb(id, on_vcpu);
    qemu_plugin_register_vcpu_resume_cb(id, on_resume);
    qemu_plugin_register_atexit_cb(id, on_end, NULL);
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

static bool usable(const qemu_info_t *info, const char *path)
{
    if (!path || !info->system_emulation || strcmp(info->target_name, "x86_64")) {
        fprintf(stderr, "pse-trap: needs socket=PATH and qemu-system-x86_64\n");
        return false;
    }
    if (info->version.cur > NEWEST_API) {
        fprintf(stderr, "pse-trap: this QEMU's plugin API (%d) is newer than what is known here (%d); "
                "start it without -plugin, and watch it in another mode\n", info->version.cur, NEWEST_API);
        return false;
    }
    if (one_thread() && info->system.max_vcpus > 1) {
        /* Of code for one thread QEMU 10.0 takes the vCPU for a constant, and multiplies that constant in place to
         * find its scoreboard (gen_plugin_u64_ptr()): the guest's own code computes with the product then. */
        fprintf(stderr, "pse-trap: with all vCPUs in one thread (thread=single, -icount) QEMU's plugins spoil a "
                "guest with more than one vCPU; start it without -plugin, or without that option\n");
        return false;
    }
    if (info->system.max_vcpus > MAX_VCPUS) {
        fprintf(stderr, "pse-trap: more than %d vCPUs cannot be watched; start it without -plugin\n", MAX_VCPUS);
        return false;
    }
    return true;
}

EXPORT int qemu_plugin_install(uint64_t id, const qemu_info_t *info, int argc, char **argv)
{
    const char *path = NULL;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "socket=", 7))
            path = argv[i] + 7;
    if (!usable(info, path) || control_listen(path) < 0)
        return 1;
    if (!vcpus_create(info->system.max_vcpus) || !filter_create() || !events_create())
        return 1;
    tb_start(id, one_thread(), subscribe, on_translate);
    return 0;
}
