/* N children that are ptraced over an exec of `true`. N starts, N execs, N ends. */
#include "lab.h"
#include <sys/ptrace.h>

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		int status;
		pid_t pid = fork();
		if (!pid) {
			ptrace(PTRACE_TRACEME, 0, 0, 0);
			exec_true();
			_exit(99);
		}
		while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status))
			ptrace(PTRACE_CONT, pid, 0, 0);
		need(status == 0, "status");
	}
}
