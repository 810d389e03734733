/* N children, each pid 1 of a pid namespace of its own, in which it forks one more. 2N starts, 2N ends. */
#include "lab.h"

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		pid_t pid = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
		if (!pid) {
			pid_t inner = fork();
			if (!inner)
				_exit(getpid() == 2 ? 0 : 1);
			reap(inner, 0);
			_exit(getpid() == 1 ? 11 : 1);
		}
		reap(pid, 11 << 8);
	}
}
