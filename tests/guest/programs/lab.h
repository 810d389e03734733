/* What the workload programs share. Each prints nothing unless something is wrong, and ends with 0 only if all of its
 * children ended exactly as they should. */
#ifndef LAB_H
#define LAB_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TRUE "/programs/true"

extern char **environ;

static inline void need(int fine, const char *what)
{
	if (!fine) {
		fprintf(stderr, "%s: %s\n", what, strerror(errno));
		_exit(99);
	}
}

/* The number of times to do it: first argument, or once. */
static inline int times(int argc, char **argv)
{
	return argc > 1 ? atoi(argv[1]) : 1;
}

/* Second argument, or else. */
static inline int second(int argc, char **argv, int otherwise)
{
	return argc > 2 ? atoi(argv[2]) : otherwise;
}

static inline void reap(pid_t pid, int expected)
{
	int status = -1;

	need(pid > 0, "fork");
	need(waitpid(pid, &status, 0) == pid, "waitpid");
	if (status != expected) {
		fprintf(stderr, "child %d: wait status %#x, expected %#x\n", pid, status, expected);
		_exit(98);
	}
}

static inline void sleep_ms(long ms)
{
	struct timespec left = { ms / 1000, ms % 1000 * 1000000 };

	while (nanosleep(&left, &left) < 0 && errno == EINTR)
		;
}

/* Body of a thread that does nothing until it is killed. */
static inline void *sleeper(void *nothing)
{
	for (;;)
		pause();
	return nothing;
}

static inline void exec_true(void)
{
	char *argv[] = { "true", NULL };

	execve(TRUE, argv, environ);
}
#endif
