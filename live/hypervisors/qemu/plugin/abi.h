/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The ABI of QEMU's TCG plugins (API version 4) and of GLib, as far as it is used here.  Neither header is needed.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct { char *data; unsigned len; } GArray;
typedef struct { uint8_t *data; unsigned len; } GByteArray;
typedef struct { const char *target_name; struct { int min, cur; } version; bool system_emulation;
                 struct { int smp_vcpus, max_vcpus; } system; } qemu_info_t;
typedef struct { void *handle; const char *name; const char *feature; } reg_descriptor;
typedef struct { void *score; size_t offset; } score_u64;
typedef void (*insn_cb)(unsigned vcpu, void *userdata);
enum { CB_NO_REGS, CB_R_REGS };
enum { COND_NE = 3 };

extern GByteArray *g_byte_array_new(void);
extern GByteArray *g_byte_array_set_size(GByteArray *, unsigned);
extern char *g_array_free(GArray *, int);
extern GArray *qemu_plugin_get_registers(void);
extern int qemu_plugin_read_register(void *handle, GByteArray *);
extern bool qemu_plugin_read_memory_vaddr(uint64_t address, GByteArray *, size_t length);
extern void qemu_plugin_reset(uint64_t id, void (*)(uint64_t id));
extern void qemu_plugin_register_vcpu_init_cb(uint64_t id, void (*)(uint64_t id, unsigned vcpu));
extern void qemu_plugin_register_vcpu_idle_cb(uint64_t id, void (*)(uint64_t id, unsigned vcpu));
extern void qemu_plugin_register_vcpu_resume_cb(uint64_t id, void (*)(uint64_t id, unsigned vcpu));
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*)(uint64_t id, void *tb));
extern void qemu_plugin_register_atexit_cb(uint64_t id, void (*)(uint64_t id, void *), void *);
extern void qemu_plugin_register_vcpu_insn_exec_cond_cb(void *insn, insn_cb, int flags, int cond, score_u64,
                                                        uint64_t imm, void *userdata);
extern size_t qemu_plugin_tb_n_insns(const void *tb);
extern void *qemu_plugin_tb_get_insn(const void *tb, size_t);
extern size_t qemu_plugin_insn_size(const void *insn);
extern uint64_t qemu_plugin_insn_vaddr(const void *insn);
extern size_t qemu_plugin_insn_data(const void *insn, void *to, size_t);
extern void *qemu_plugin_scoreboard_new(size_t);
extern void *qemu_plugin_scoreboard_find(void *, unsigned vcpu);
