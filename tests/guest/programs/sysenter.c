/* N times a child that makes the 32-bit call getpid by sysenter, and dies of SIGSEGV: the kernel returns to the 32-bit
 * vDSO, which a 64-bit program has not. N starts, N ends. Intel only: on AMD the instruction is invalid in long mode. */
#include <sys/prctl.h>

#include "lab.h"

static unsigned stack[64];

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		pid_t pid = fork();
		if (!pid) {
			prctl(PR_SET_DUMPABLE, 0);
			/* The kernel takes the stack pointer, and the 6th argument from there, from ebp. */
			__asm__ volatile("push %%rbp; mov %0, %%rbp; sysenter"
					 : : "r"((unsigned long)(stack + 32)), "a"(20) : "memory");
			_exit(99);
		}
		int status;
		need(waitpid(pid, &status, 0) == pid, "waitpid");
		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSEGV)
			return 1;
	}
}
