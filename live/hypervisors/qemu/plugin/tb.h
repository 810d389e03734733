/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Translation blocks (TBs): which guest addresses have our callbacks, and how code from before gets them.
 *
 * Theory of operation
 * -------------------
 * A callback is put into a TB when QEMU translates it.  QEMU tells us of translations only if asked to, and TBs
 * that it makes while anybody asks are a few percent slower, whether or not they have a callback
 * (`python -m tests.bench floor`).  So we ask when the first reader comes, and not before.
 *
 * What a reader wants and the TBs from before do not have is put there by a flush of all TBs: qemu_plugin_reset(),
 * which must be called on a vCPU's thread.  So the words of all vCPUs are raised, and the first that calls us does
 * it: at an instruction, a trap, a translation, or when it wakes up.  One that sleeps is woken by subscribing to one
 * more event: QEMU queues work for every vCPU then, and reports its wake-up (seen in QEMU 10.0; no other call does
 * it).  One that does none of these is made to stand for a moment by the reader.
 *
 * QEMU reports no wake-ups where one thread runs all vCPUs; there we ask to be told of translations at once.
 *
 * We never cease to ask: a translation that was broken off leaves QEMU with a state (`tcg_ctx->plugin_insn`) in
 * which it crashes when it goes on translating without plugins (seen in QEMU 10.0, within minutes).
 */
#pragma once
#include "vcpu.h"

enum { TRAPPED = 1, ENTRY = 2 };        /* of place.what; an entry of ABI n is ENTRY << n */
struct place { uint64_t at; unsigned what; };

/* `subscribe` asks for all callbacks but `translated`; called now, and after each flush. */
void tb_start(uint64_t plugin, bool at_once, void (*subscribe)(uint64_t), void (*translated)(uint64_t, void *));

/* On the control thread. */
bool tb_instrument(const uint64_t *code, size_t n_code, const uint64_t *entries, size_t n_entries);
                /* it is in all TBs, or will be by a flush; false without memory, and nothing is changed then */
void tb_list(const uint64_t native[BITMAP], const uint64_t compat[BITMAP]);     /* the same for system calls */
bool tb_begin_flush(void);              /* have a vCPU do what is to be done; false if there is nothing */
uint64_t tb_flush_wanted(void);         /* numbers of flushes, from 1 */
uint64_t tb_flush_done(void);

/* On the vCPU's thread. */
void tb_add_vcpu(unsigned v);
void tb_flush_if_wanted(void);
void tb_rest(unsigned v);               /* lower its words if no flush is wanted any more */
bool tb_lists(enum abi abi, uint32_t number);   /* a system call that code says to make is one of those */
const struct place *tb_place(uint64_t vaddr);   /* what is to be instrumented there; NULL for nothing */
