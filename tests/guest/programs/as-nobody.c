/* Become uid and gid 65534 (nobody), then exec the arguments. Nothing starts. */
#include "lab.h"
#include <grp.h>

int main(int argc, char **argv)
{
	need(argc > 1, "usage");
	need(!setgroups(0, NULL) && !setgid(65534) && !setuid(65534), "setuid");
	execvp(argv[1], argv + 1);
	need(0, argv[1]);
}
