/* N threads, one after the other. 0 starts, 0 ends. */
#include "lab.h"

static void *body(void *nothing)
{
	return nothing;
}

int main(int argc, char **argv)
{
	for (int i = times(argc, argv); i--;) {
		pthread_t thread;
		need(!pthread_create(&thread, NULL, body, NULL), "pthread_create");
		pthread_join(thread, NULL);
	}
}
