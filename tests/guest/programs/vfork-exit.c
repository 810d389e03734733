/* N vforks without exec; the child exits with 3. Parent and child share one address space. N starts, N ends. */
#include "lab.h"

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		pid_t pid = vfork();
		if (!pid)
			_exit(3);
		reap(pid, 3 << 8);
	}
}
