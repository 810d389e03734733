/* N children whose leader thread exits (5) at once, while another thread lives for MS (20) more and exits (6).
 * N starts, N ends, at the second thread's end. The status depends on the kernel: the leader's 5, or 6 where the last
 * thread's exit counts as the group's ("signal: Guarantee that SIGNAL_GROUP_EXIT is set on process exit"). */
#include "lab.h"

static int ms;

static char leaders_state(void)
{
	char text[64] = "", *after;
	int file = open("/proc/self/stat", O_RDONLY);

	need(file >= 0 && read(file, text, sizeof text - 1) > 0, "/proc/self/stat");
	close(file);
	after = strrchr(text, ')');
	return after ? after[2] : 0;
}

static void *body(void *unused)
{
	(void)unused;
	/* On a busy machine the leader may be late, however long one sleeps. */
	while (leaders_state() != 'Z')
		sched_yield();
	sleep_ms(ms);
	syscall(SYS_exit, 6);
	return NULL;
}

int main(int argc, char **argv)
{
	ms = second(argc, argv, 20);
	for (int i = times(argc, argv); i--;) {
		int status;
		pid_t pid = fork();
		if (!pid) {
			pthread_t thread;
			need(!pthread_create(&thread, NULL, body, NULL), "pthread_create");
			syscall(SYS_exit, 5);
		}
		need(pid > 0 && waitpid(pid, &status, 0) == pid, "fork");
		need(status == 5 << 8 || status == 6 << 8, "status");
	}
}
