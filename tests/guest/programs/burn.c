/* One process that computes for MS (1000) milliseconds of its own CPU time. Nothing starts, nothing ends. */
#include "lab.h"

int main(int argc, char **argv)
{
	clock_t end = clock() + (argc > 1 ? atol(argv[1]) : 1000) * (CLOCKS_PER_SEC / 1000);

	while (clock() < end)
		;
}
