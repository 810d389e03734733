/* N times fork, execve (of `true`) through x32's system call numbers. N starts, N execs, N ends.
 * Ends with 38 (ENOSYS) if the kernel has no x32: Debian's cloud kernels have none. */
#include "lab.h"

#define X32 0x40000000
static unsigned arguments[2], environment[1];

int main(int argc, char **argv)
{
	static char word[] = "true", path[] = TRUE;

	arguments[0] = (unsigned)(unsigned long)word;
	if (syscall(X32 | 39) < 0)
		return ENOSYS;
	for (int i = times(argc, argv); i--;) {
		pid_t pid = syscall(X32 | 57);
		if (!pid) {
			syscall(X32 | 520, path, arguments, environment);
			syscall(X32 | 231, 99);
		}
		reap(pid, 0);
	}
}
