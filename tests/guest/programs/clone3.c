/* N times the bare system call clone3, without exec. N starts, N ends. */
#include "lab.h"
#include <linux/sched.h>

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		struct clone_args how = { .exit_signal = SIGCHLD };
		pid_t pid = syscall(SYS_clone3, &how, sizeof how);
		if (!pid)
			_exit(4);
		reap(pid, 4 << 8);
	}
}
