/* N double forks: the first child exits at once, the second one (adopted by pid 1) after 10 ms. 2N starts, 2N ends;
 * all have ended when the program ends. */
#include "lab.h"

int main(int argc, char **argv)
{
	int alive[2];
	char byte;

	need(!pipe(alive), "pipe");
	for (int i = times(argc, argv); i--;) {
		pid_t pid = fork();
		if (!pid) {
			setsid();
			if (!fork())
				sleep_ms(10);
			_exit(0);
		}
		reap(pid, 0);
	}
	/* The pipe reads as ended once no process holds its writing end: close(2) is part of dying, so wait a bit more. */
	close(alive[1]);
	need(read(alive[0], &byte, 1) == 0, "read");
	sleep_ms(50);
}
