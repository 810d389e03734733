/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The reader's connection: one at a time, on a thread of its own.  Its end lets every vCPU go and frees everything.
 */
#pragma once

int control_listen(const char *path);           /* at a Unix socket; -1 and a message on stderr if that fails */
void control_start(void);                       /* serve; not before QEMU has forked into the background */
void control_end(void);                         /* QEMU ends: remove the socket */
