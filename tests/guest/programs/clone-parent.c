/* N children that fork with CLONE_PARENT: the new process is its creator's sibling. 2N starts, 2N ends. */
#include "lab.h"

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		pid_t pid = fork();
		if (!pid) {
			if (!syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0))
				_exit(0);
			_exit(0);
		}
		reap(pid, 0);
		need(wait(NULL) > 0, "wait for the sibling");
	}
}
