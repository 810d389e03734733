/* N children, one after the other, whose leader thread exits (5) at once; another thread ends the process with
 * exit_group(6) MS (100) later. Nobody waits for them: they leave no zombie. N starts, N ends, status 6. */
#include "lab.h"

static int ms;

static void *body(void *nothing)
{
	sleep_ms(ms);
	_exit(6);
	return nothing;
}

int main(int argc, char **argv)
{
	ms = second(argc, argv, 100);
	signal(SIGCHLD, SIG_IGN);
	for (int i = times(argc, argv); i--;) {
		pid_t pid = fork();
		if (!pid) {
			pthread_t thread;
			need(!pthread_create(&thread, NULL, body, NULL), "pthread_create");
			syscall(SYS_exit, 5);
		}
		need(pid > 0, "fork");
		need(waitpid(pid, NULL, 0) < 0 && errno == ECHILD, "wait");
	}
}
