/* N children that are killed by SIGNAL (9) while they sleep; each has one more thread. N starts, N ends. */
#include "lab.h"

int main(int argc, char **argv)
{
	int number = second(argc, argv, SIGKILL);

	for (int i = times(argc, argv); i--;) {
		pid_t pid = fork();
		if (!pid) {
			pthread_t thread;
			need(!pthread_create(&thread, NULL, sleeper, NULL), "pthread_create");
			for (;;)
				pause();
		}
		need(pid > 0 && !kill(pid, number), "kill");
		reap(pid, number);
	}
}
