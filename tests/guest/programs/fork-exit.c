/* N forks without exec, each child exits with CODE (0), one after the other. N starts, N ends. */
#include "lab.h"

int main(int argc, char **argv)
{
	int code = second(argc, argv, 0);

	for (int i = times(argc, argv); i--;) {
		pid_t pid = fork();
		if (!pid)
			_exit(code);
		reap(pid, code << 8);
	}
}
