/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The wire format: what goes between the trap plugin and its reader, byte for byte.
 *
 * protocol.py has the same numbers; tests/hypervisors/test_wire.py compares the two.  Raise PROTOCOL with every
 * change here.
 *
 * 1. The reader connects and gets a struct hello, with descriptors: the memory of struct shared, an eventfd that
 *    is written when an event wants to be read, and for each vCPU one that the reader writes after a resume word.
 * 2. Each request of the reader is a struct arm and what follows it, and is answered by a struct answer.
 * 3. Events are in the ring in shared memory: number n in slot n % slots, from `tail` up to, but not with, `head`.
 * 4. Settled asids are in a hash table in shared memory, which the reader alone changes, and needs no request for.
 *
 * All is little-endian and naturally aligned, as this host has it: both sides run on it.
 */
#pragma once
#include <stdatomic.h>
#include <stdint.h>

enum { MAGIC = 0x31455350, PROTOCOL = 9 };                     /* "PSE1" */
enum { SLOTS = 8192, MAX_VCPUS = 250 };                         /* Linux passes 253 descriptors at once, SCM_MAX_FD */
enum { MAX_WORDS = 4096, MAX_CODE = 4096, MAX_FENCES = 64, MAX_ENTRIES = 16, MAX_FLAGS = 16 };
enum { SYSCALL_NUMBERS = 1024, BITMAP = SYSCALL_NUMBERS / 64 };

enum kind { ASID_CHANGE = 1, SYSCALL = 2, CODE_HIT = 3 };
enum action { OFF, RECORD, HOLD, FENCE, PASSABLE_FENCE };       /* a request has the first three only */
enum abi { NATIVE, COMPAT };                                    /* whose table a system call's number is of */
enum reply { IN_FORCE, FLUSHING, BAD, BAD_ADDRESS, NO_MEMORY, PREPARING };

/* The order of registers in an event.  Without HOLD only the brief ones are read; the others are 0. */
#define REGISTER_NAMES "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", \
                       "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "gs_base", "k_gs_base"
#define BRIEF_REGISTERS 0, 2, 6, 7, 10
enum { EVENT_REGISTERS = 18, EVENT_WORDS = 7 };

/* The table of settled asids: linear probing from SETTLED_FIRST(asid), up to the first empty slot or SETTLED_PROBES
 * of them.  A slot is SETTLED_EMPTY, an asid with SETTLED_MARK, or what was one and is no more.  An asid is a page. */
enum { SETTLED_BITS = 14, SETTLED_SLOTS = 1 << SETTLED_BITS, SETTLED_PROBES = 64 };
enum { SETTLED_EMPTY = 0, SETTLED_MARK = 1, SETTLED_GONE = 2 };
#define SETTLED_FIRST(asid) (((asid) >> 12) * 0x9e3779b97f4a7c15ull >> (64 - SETTLED_BITS))

struct hello {
    uint32_t magic, protocol, vcpus, slots;
};

struct event {
    uint64_t sequence, time_ns;                 /* CLOCK_MONOTONIC */
    uint8_t kind, action, abi, moved;           /* how many words have moved; the addresses of the first of them */
    uint32_t vcpu;
    uint64_t cr3, new_cr3, pc, number, registers[EVENT_REGISTERS], words[EVENT_WORDS];
};
_Static_assert(sizeof(struct event) == 256, "a slot is four cache lines");

/* A cache line for each writer: the plugin has `head` and the counters, the reader the rest. */
struct shared {
    uint64_t ring_offset;                       /* bytes from here to slot 0 */
    _Alignas(64) _Atomic uint64_t head;
    _Alignas(64) _Atomic uint64_t tail;
    _Atomic uint64_t asleep;                    /* the reader wants its eventfd written */
    _Atomic uint64_t handled;                   /* sequence of the last event that it has handled, held or not */
    _Alignas(64) _Atomic uint64_t dropped;
    _Atomic uint64_t timeouts, flushes, waited_ns;
    _Alignas(64) _Atomic uint64_t settled[SETTLED_SLOTS];
    struct { _Alignas(64) _Atomic uint64_t resumed; } vcpu[];   /* sequence of the last event that was resumed */
};

/* A request.  Quadwords follow it: words, as address in this process and size (4 or 8), ascending; code addresses;
 * fences, as code address, offset, and whether they are passable; entries, as address and ABI; flags, as number of a
 * listed call, ABI, and the bits of which its first argument has to have one. */
struct arm {
    uint32_t length;                            /* bytes, with what follows */
    uint8_t asid, every, syscall, code;         /* enum action: asid changes, every call, those listed, code */
    uint8_t unsettled_asid, unsettled_syscall;  /* the same of asids that are not settled */
    uint8_t split;              /* the roots of an asid differ in bit 12, too: page-table isolation */
    uint8_t moved_fence;        /* what a moved word does: a fence that `passing` calls pass, where there are entries */
    uint32_t hold_ms, n_words, n_code, n_fences, n_entries, n_flags, unused_too;
    uint64_t syscalls[BITMAP], compat_syscalls[BITMAP], passing[BITMAP];        /* bit n % 64 of word n / 64 */
};
enum { QUADS_PER_WORD = 2, QUADS_PER_FENCE = 3, QUADS_PER_ENTRY = 2, QUADS_PER_FLAGS = 3 };

struct answer {
    uint64_t reply, flush;      /* FLUSHING: in force when shared.flushes has come to `flush`;
                                 * PREPARING: nothing is; ask again when shared.flushes has come to it */
};
