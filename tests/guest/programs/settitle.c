/* Writes a title of N bytes over its arguments and on into its environment, as setproctitle of nginx, sshd and postgres
 * does, ends it with NULs, and stays until it is killed. N 0: leaves its arguments, whatever they are. */
#include "lab.h"

int main(int argc, char **argv)
{
	char *end = argv[argc - 1] + strlen(argv[argc - 1]) + 1;
	int length = times(argc, argv);

	for (char **at = environ; *at; at++)
		if (*at == end)
			end += strlen(*at) + 1;
	need(length <= end - argv[0] - 1, "no room for the title");
	if (length) {
		char *start = argv[0];

		memset(start, 0, end - start);
		memset(start, 't', length);
		memcpy(start, "settitle: ", 10);
	}
	for (;;)
		pause();
}
