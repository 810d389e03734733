/* N calls of getppid() as a C library makes them, with the number in the code: nothing starts, nothing ends. */
#include "lab.h"

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		long number = SYS_getppid;
		__asm__ volatile("mov %1, %%eax\n\tsyscall"
				 : "=&a"(number) : "i"(SYS_getppid) : "rcx", "r11", "memory");
	}
}
