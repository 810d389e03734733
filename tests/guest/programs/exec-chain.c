/* One child that execs itself N times (then exits with 0). 1 start, N execs, 1 end. */
#include "lab.h"

int main(int argc, char **argv)
{
	char left[16], *words[] = { "exec-chain", "-", left, NULL };
	int n = argc > 2 ? atoi(argv[2]) : times(argc, argv);

	if (argc == 2) {
		pid_t pid = fork();
		if (pid) {
			reap(pid, 0);
			return 0;
		}
	}
	if (n == 0)
		return 0;
	snprintf(left, sizeof left, "%d", n - 1);
	execve("/proc/self/exe", words, environ);
	return 99;
}
