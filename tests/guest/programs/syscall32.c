/* N times a child that makes the 32-bit call getpid by `syscall` from 32-bit code, and dies of SIGSEGV, as sysenter.c has it.
 * N starts, N ends. AMD only: on Intel the instruction is invalid there. The program is linked below 4 GiB. */
#include <sys/prctl.h>

#include "lab.h"

static unsigned stack[64];
static struct { unsigned at; unsigned short segment; } code32 = {.segment = 0x23};	/* __USER32_CS */

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		pid_t pid = fork();
		if (!pid) {
			prctl(PR_SET_DUMPABLE, 0);
			__asm__ volatile("movl $1f, %0; mov %1, %%rsp; ljmp *%0\n"
					 ".code32\n1: movl $20, %%eax; syscall\n.code64"
					 : "+m"(code32) : "r"((unsigned long)(stack + 32)) : "memory");
			_exit(99);
		}
		int status;
		need(waitpid(pid, &status, 0) == pid, "waitpid");
		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSEGV)
			return 1;
	}
}
