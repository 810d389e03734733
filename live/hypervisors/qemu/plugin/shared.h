/* SPDX-License-Identifier: BSD-2-Clause
 *
 * What the trap plugin shares with its reader (protocol.py has the same), and what its parts share.
 */
#pragma once
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "abi.h"

#define EXPORT __attribute__((visibility("default")))

enum { NEWEST_API = 6 };                       /* 7 has other callbacks */
enum { MAGIC = 0x31455350, PROTOCOL = 5, SLOTS = 8192, MAX_PENDING = 4096, MAX_WORDS = 64, MAX_CODE = 4096,
       MAX_FENCES = 64, MAX_ENTRIES = 16 };
enum kind { ASID = 1, SYSCALL = 2, CODE = 3 };
enum stage { ARM, PREPARE, MADE };              /* of struct arm: see trap.c */
enum action { OFF, RECORD, HOLD, FENCE, LOW_FENCE };    /* event.held: 1 for HOLD, 2 and 3 for the fences */
enum { GPRS = 16, REGS = GPRS + 3, R_RAX = 0, R_RDI = 7, R_GS = GPRS, R_KGS, R_CR3 };
#define REG_NAMES {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", \
                   "r11", "r12", "r13", "r14", "r15", "gs_base", "k_gs_base", "cr3"}

struct event {
    uint64_t sequence, time;
    uint8_t kind, held, entry, moved;
    uint32_t vcpu;
    uint64_t cr3, new_cr3, pc, number, regs[18], cpu, unused[6];    /* cpu: the host's */
};
_Static_assert(sizeof(struct event) == 256, "layout");

struct shared {
    uint32_t magic, protocol, vcpus, slots;
    uint64_t ring_offset, unused[5];
    _Alignas(64) _Atomic uint64_t head;
    _Alignas(64) _Atomic uint64_t tail;
    _Atomic uint64_t asleep;                    /* the reader wants `wake_fd` written */
    _Alignas(64) _Atomic uint64_t dropped;
    _Atomic uint64_t timeouts, flushes, waited_ns;
    _Alignas(64) struct { _Alignas(64) _Atomic uint64_t resumed; } vcpu[];
};

struct arm {
    uint32_t length;
    uint8_t asid, every, syscall, code;
    uint32_t hold_ms, n_pending, n_words, n_code, n_fences, n_entries, stage, unused;
    uint64_t bitmap[3][16];                     /* trapped: 64-bit, i386; what passes low fences: 64-bit */
    uint64_t tail[];            /* pending[], {address, size}[], code[], {code, offset, low}[], {address, entry}[] */
};

struct word { uint64_t address, size; _Atomic uint64_t last; };
struct filter {
    struct arm head;
    bool sys, cr3, only_pending;
    uint64_t *pending, *code, *fences, *entries;
    struct word *words;
};

/* --- the parts: trap.c and events.c run on vCPU threads, control.c on a thread of its own --------------------- */
struct score { uint64_t sys, cr3, ret, code, entry; };                      /* one per vCPU: non-zero calls us */
enum { ATTENTION = 2 };                                                     /* a bit of these words; 1: the filter */
struct vcpu {
    _Alignas(64) _Atomic int deciding;
    _Atomic int busy;
    int fd;
    _Atomic bool seen;
    _Atomic uint64_t fence, high;                                           /* sequences of its last fence, and high one */
    GByteArray *buffer;
};
enum { SPIN_NS = 200000, NAP_NS = 50000, SLICE_NS = 20000000 };
struct code { uint64_t at; unsigned what; };                                /* bit 0: a trap; bit 1 + e: entry e */
struct codes { size_t n; struct code list[]; };

extern unsigned n_vcpus;
extern struct vcpu *vcpus;
extern _Atomic(struct filter *) filter;
extern _Atomic(struct shared *) shared;
extern _Atomic bool reader;                                                 /* one is connected */
extern int wake_fd, reader_stat;
extern _Atomic uint64_t late;
extern size_t ring_offset;                                                  /* not from shared memory: it may lie */
extern _Atomic int flushing;                                                /* `shared` is in use for that */
extern struct codes *_Atomic codes;                                         /* all ever wanted; grows only */
extern _Atomic uint64_t flush_wanted, flush_begun, flush_done;
extern _Atomic bool instrumenting;                                          /* QEMU tells us of translations */
extern bool everywhere;                         /* no code is left from before it did, or a flush of it was begun */

extern uint64_t spin_ns;

struct score *score_of(unsigned vcpu);
uint64_t reg(unsigned vcpu, int which);
void pass_fences(unsigned vcpu, bool low, unsigned limit_ms);
void emit(struct event *, enum action, unsigned limit_ms);
void words_of_vcpu(unsigned vcpu);
void wake_all(void);
void tell_us_of_translations(void);
int compare(const void *, const void *);
int control_listen(const char *path);
void control_start(void);
void control_end(void);
