/* N forks, each child's exec fails twice (no such file, not executable); it exits with 7. N starts, 0 execs, N ends. */
#include "lab.h"

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		pid_t pid = fork();
		if (!pid) {
			execve("/nonexistent", argv, environ);
			execve("/etc/passwd", argv, environ);
			_exit(7);
		}
		reap(pid, 7 << 8);
	}
}
