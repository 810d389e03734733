/* N children in which a thread that is not the leader calls exit_group(9). N starts, N ends. */
#include "lab.h"

static void *body(void *unused)
{
	(void)unused;
	_exit(9);
}

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		pid_t pid = fork();
		if (!pid) {
			pthread_t thread;
			need(!pthread_create(&thread, NULL, body, NULL), "pthread_create");
			for (;;)
				pause();
		}
		reap(pid, 9 << 8);
	}
}
