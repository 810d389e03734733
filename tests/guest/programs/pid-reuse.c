/* N forks with kernel.pid_max at its minimum, so that pids come around again quickly. N starts, N ends.
 * With fewer processes than pids, N > 1000 uses each free pid several times. */
#include "lab.h"

static void set(const char *text)
{
	int file = open("/proc/sys/kernel/pid_max", O_WRONLY);

	need(file >= 0 && write(file, text, strlen(text)) > 0, "pid_max");
	close(file);
}

int main(int argc, char **argv)
{
	char least[16];

	/* PIDS_PER_CPU_MIN is 8, and never fewer than 301 (kernel/pid.c: pid_max_min, pidmap_init). */
	snprintf(least, sizeof least, "%d", second(argc, argv, 400));
	set(least);
	for (int i = times(argc, argv); i--;) {
		pid_t pid = fork();
		if (!pid)
			_exit(0);
		reap(pid, 0);
	}
	set("32768");
}
