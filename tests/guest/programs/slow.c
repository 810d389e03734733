/* N times, with 0.3 s between any two steps: fork, exec of `sleep 0.3`, its end. N starts, N execs, N ends.
 * Slow enough for every look of whoever looks a few times in 0.3 s. */
#include "lab.h"

static void rest(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
}

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		rest();
		pid_t pid = fork();
		if (!pid) {
			rest();
			execl("/bin/sleep", "sleep", "0.3", NULL);
			_exit(99);
		}
		reap(pid, 0);
	}
	rest();
}
