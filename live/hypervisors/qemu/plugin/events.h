/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Events: the memory that is shared with the reader, and who waits until the reader has resumed an event.
 *
 * Theory of operation
 * -------------------
 * RECORD: nobody waits.  HOLD: the vCPU waits for its resume word, the time limit, or the end of the reader,
 * whichever is first.  FENCE: the guest runs on while the reader looks at its memory, but no vCPU gets past the
 * beginning of its next system call (an entry of the request), or its next code address that is trapped, before
 * the resume word is there: nothing else changes what the reader wants to read.  PASSABLE_FENCE: the same, but
 * the listed system calls may begin.  A wait at a fence has the same limit.  Most fences cost nothing, because
 * the reader is quicker than the guest.
 *
 * A fence raises the ON_ENTRY word of every vCPU, so that its next system call calls us.  Each vCPU lowers its own
 * first and looks for fences then: one that is put up meanwhile raises it again, or is seen.
 *
 * The limit counts time in which both sides could run.  While the whole machine is suspended, neither can.  And a
 * reader that is ready to run and gets no CPU, on a host with more to do than it has CPUs for, does not hang: up to
 * PATIENCE limits of such time are not counted.
 *
 * A reader that let a wait run into its limit is late: nothing waits for it until it has read what is in the ring.
 *
 * The memory is used only between events_enter() and events_leave(), so that it can be unmapped when no vCPU is
 * between them.  The reader may write anything into it: nothing in it is used as an address or a length.
 */
#pragma once
#include <sys/types.h>

#include "vcpu.h"

bool events_create(void);

/* On the control thread. */
enum { SESSION_DESCRIPTORS = 2 + MAX_VCPUS };
unsigned events_open(pid_t reader, uint64_t flushes, int fds[SESSION_DESCRIPTORS]);
                /* how many descriptors go to the reader, 0 on failure; the caller closes the first one */
void events_close(void);                        /* lets every vCPU go; nothing may pass the filter any more */

/* While no vCPU runs generated code: the code cache was flushed for the `number`th time. */
void events_flushed(uint64_t number);

/* On the vCPU's thread. */
void events_add_vcpu(unsigned v);
void events_enter(unsigned v);
void events_leave(unsigned v);
bool asid_settled(uint64_t asid);               /* between the two */
void asid_left(uint64_t asid, uint64_t sequence);       /* not settled until the reader has handled that event */
bool fences_up(void);
void pass_fences(unsigned v, bool passing, unsigned limit_ms);  /* `passing`: only those that are not passable */
void emit(struct event *, enum action, unsigned limit_ms);
