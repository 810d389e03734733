/* N threads, each forks a child: its parent is the process, not the thread. N starts, N ends. */
#include "lab.h"

static void *body(void *nothing)
{
	pid_t pid = fork();
	if (!pid)
		_exit(getppid() == *(pid_t *)nothing ? 0 : 1);
	reap(pid, 0);
	return nothing;
}

int main(int argc, char **argv)
{
	pid_t own = getpid();

	for (int i = times(argc, argv); i--;) {
		pthread_t thread;
		need(!pthread_create(&thread, NULL, body, &own), "pthread_create");
		pthread_join(thread, NULL);
	}
}
