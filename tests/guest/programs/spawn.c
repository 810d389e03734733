/* N times posix_spawn (clone with CLONE_VM | CLONE_VFORK on a stack of its own) of `true`. N starts, execs, ends. */
#include "lab.h"
#include <spawn.h>

int main(int argc, char **argv)
{
	char *words[] = { "true", NULL };

	for (int i = times(argc, argv); i--;) {
		pid_t pid;
		need(!(errno = posix_spawn(&pid, TRUE, NULL, NULL, words, environ)), "posix_spawn");
		reap(pid, 0);
	}
}
