/* N children, each execs `true` from a thread that is not the leader. N starts, N execs, N ends (no end for threads). */
#include "lab.h"

static void *body(void *unused)
{
	(void)unused;
	exec_true();
	_exit(99);
}

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		pid_t pid = fork();
		if (!pid) {
			pthread_t thread, other;
			need(!pthread_create(&other, NULL, sleeper, NULL), "pthread_create");
			need(!pthread_create(&thread, NULL, body, NULL), "pthread_create");
			for (;;)
				pause();
		}
		reap(pid, 0);
	}
}
