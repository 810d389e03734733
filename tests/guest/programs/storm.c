/* A tree of forks: FAN (3) children each, DEPTH levels deep, all at once. FAN + FAN^2 + ... + FAN^DEPTH starts and ends.
 * A node exits only after its children. */
#include "lab.h"

static void grow(int depth, int fan)
{
	for (int i = 0; depth && i < fan; i++) {
		pid_t pid = fork();
		need(pid >= 0, "fork");
		if (!pid) {
			grow(depth - 1, fan);
			_exit(0);
		}
	}
	while (wait(NULL) > 0)
		;
}

int main(int argc, char **argv)
{
	grow(times(argc, argv), second(argc, argv, 3));
}
