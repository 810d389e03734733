/* SPDX-License-Identifier: BSD-2-Clause
 *
 * vCPUs: their registers, and the words that say whether generated code calls us.
 *
 * Our callbacks are conditional: generated code compares a word of its vCPU with 0, and calls us if it differs.
 * Each part of the plugin that may want such a call has a bit of its own in the word, and touches no other.
 */
#pragma once
#include <stdbool.h>

#include "abi.h"
#include "wire.h"

enum word { ON_SYSCALL, ON_CALL, ON_CR3, ON_IRET, ON_CODE, ON_ENTRY, WORDS };
enum reason { BY_FILTER = 1, BY_FLUSH = 2, BY_FENCE = 4, BY_ASID = 8 };
enum reg { RAX = 0, RBX = 3, RDI = 7, CR3 = EVENT_REGISTERS, REGISTERS };        /* 0 to CR3: as in an event */

extern unsigned n_vcpus;                        /* how many there may be */

bool vcpus_create(unsigned n);
void *for_each_vcpu(size_t size);               /* so much zeroed memory for each, or NULL; never freed */

bool vcpu_add(unsigned v);                      /* on its own thread; false if it was there already */
bool vcpu_seen(unsigned v);                     /* it was added, so it has words */

score_u64 place_of(enum word);                  /* where QEMU finds it */
uint64_t reasons(unsigned v, enum word);        /* what has raised it and not lowered it */
void raise_word(unsigned v, enum word, enum reason);
void lower_word(unsigned v, enum word, enum reason);

/* In a callback on the vCPU's thread. */
uint64_t reg(unsigned v, unsigned which);
uint64_t quadword(unsigned v, uint64_t address);        /* guest-virtual; 0 if it cannot be read */
