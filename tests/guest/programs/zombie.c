/* N children that exit with 2 and stay zombies for MS (100); then all are reaped. N starts, N ends, before the wait. */
#include "lab.h"

int main(int argc, char **argv)
{
	int n = times(argc, argv);
	pid_t *pids = calloc(n, sizeof *pids);

	for (int i = 0; i < n; i++)
		if (!(pids[i] = fork()))
			_exit(2);
	sleep_ms(second(argc, argv, 100));
	for (int i = 0; i < n; i++)
		reap(pids[i], 2 << 8);
}
