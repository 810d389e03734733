/* N forks, each child's first exec fails, its second succeeds. N starts, N execs, N ends. */
#include "lab.h"

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		pid_t pid = fork();
		if (!pid) {
			execve("/nonexistent", argv, environ);
			exec_true();
			_exit(99);
		}
		reap(pid, 0);
	}
}
