/*
 * The first process: starts the lab's agent (/init) as a child, waits until it is told where the real root is mounted
 * (one line into /go), moves that over the initramfs and becomes its /sbin/init. The agent stays behind in the
 * initramfs, which nobody else sees any more: its programs, its /proc and its tracefs are its own.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

int main(void)
{
	char root[256];
	ssize_t got;
	int go;

	mkfifo("/go", 0600);
	if (fork() == 0) {
		setsid();
		execl("/init", "/init", NULL);
		_exit(127);
	}
	go = open("/go", O_RDONLY | O_CLOEXEC);
	got = read(go, root, sizeof root - 1);
	if (got <= 0)
		return 1;
	root[got] = 0;
	root[strcspn(root, "\n")] = 0;
	if (chdir(root) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/")) {
		perror("lab: the new root");
		return 1;
	}
	execl("/sbin/init", "/sbin/init", NULL);
	perror("lab: /sbin/init");
	return 1;
}
