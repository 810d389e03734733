/* Become SCHED_FIFO, then exec the arguments. Nothing starts. Who is forked by it is SCHED_OTHER: on one CPU the
 * parent goes on until it waits, however slow the machine is. */
#include "lab.h"

int main(int argc, char **argv)
{
	struct sched_param first = { .sched_priority = 1 };

	need(argc > 1, "usage");
	need(!sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &first), "sched_setscheduler");
	execvp(argv[1], argv + 1);
	need(0, argv[1]);
}
