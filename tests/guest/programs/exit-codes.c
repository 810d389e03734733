/* N forks, the i-th child exits with i % 256. N starts, N ends. */
#include "lab.h"

int main(int argc, char **argv)
{
	int n = times(argc, argv);

	for (int i = 0; i < n; i++) {
		pid_t pid = fork();
		if (!pid)
			_exit(i);
		reap(pid, (i & 255) << 8);
	}
}
