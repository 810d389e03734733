/* N children that die of SIGSEGV and dump core (into /tmp). N starts, N ends with the core flag. */
#include "lab.h"
#include <sys/resource.h>

int main(int argc, char **argv)
{
	int *volatile nowhere = (int *)8;
	struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };

	need(!chdir("/tmp") && !setrlimit(RLIMIT_CORE, &all), "setrlimit");
	for (int i = times(argc, argv); i--;) {
		pid_t pid = fork();
		if (!pid) {
			*nowhere = 0;
			_exit(99);
		}
		reap(pid, SIGSEGV | 0x80);
		unlink("core");
	}
}
