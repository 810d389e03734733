/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The filter: which events pass, and what is done with them.
 *
 * Made of the reader's request, on the control thread, which alone installs one.  vCPUs read it between
 * filter_enter() and filter_leave(); one that was replaced is freed when no vCPU is between them.
 *
 * Words of guest memory are compared through QEMU's own mapping of guest RAM.  The reader has their addresses
 * from the monitor (gpa2hva); each that is new is tried with process_vm_readv() before use.
 */
#pragma once
#include "vcpu.h"

struct watched { uint64_t address, size; _Atomic uint64_t last; };

struct filter {
    struct arm head;
    bool syscalls, asids, codes;                /* something of that kind is wanted */
    bool listed;                                /* system calls by number */
    bool everywhere;                            /* every system call, in whatever asid */
    uint64_t *code, *fences, *entries, *flags;  /* the first sorted */
    struct watched *words;
};

bool filter_create(void);

/* NULL if it cannot be had; `reply` says why.  The message is as long as its `length` says. */
struct filter *filter_make(const struct arm *, enum reply *reply);
void filter_free(struct filter *);
void filter_install(struct filter *);           /* NULL: nothing passes; returns when no vCPU uses the one before */
bool filter_idle(void);                         /* nothing can pass */
void filter_add_vcpu(unsigned v);

const struct filter *filter_enter(unsigned v);  /* may be NULL */
void filter_leave(unsigned v);

bool filter_lists(enum abi, uint64_t number);   /* it may be one of those that the filter lists; at any time */

/* Between the two: what to do with an event.  They fill in its number, cr3, new_cr3 and moved. */
enum action filter_syscall(const struct filter *, struct event *);
enum action filter_cr3(const struct filter *, struct event *, unsigned source);     /* the register that is loaded */
enum action filter_code(const struct filter *, struct event *);
uint64_t filter_asid(const struct filter *, uint64_t cr3);
bool filter_passes(const struct filter *, unsigned v, enum abi);        /* the call may pass a PASSABLE_FENCE */
