/*
 * Looks at processes by their /proc, and writes down what it says: looks OUTPUT FILE...
 *
 * Two things tell it when to look. A process that opens one of the FILEs (the C library, which the dynamic linker opens
 * before a new image's first own instruction) is held there by fanotify until it has been looked at: such a look is
 * "held". The kernel's proc connector tells of forks, execs and changes of ids, and the look comes a moment later: with
 * one CPU that is the next thing that runs, as this process has a real-time priority.
 *
 * One line a look: WHY BEGIN PID, then NAME=HEX for each thing read, END, and a final dot, so that a line that was cut
 * is known. BEGIN and END are CLOCK_BOOTTIME in nanoseconds. exe, cwd and root are read as we see them, and with "my_"
 * as from the process's own root directory. A process that changed its image or name meanwhile is marked "torn".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BIG (160 << 10)

static FILE *out;
static int proc, home, self;

static unsigned long long now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_BOOTTIME, &at);
	return at.tv_sec * 1000000000ULL + at.tv_nsec;
}

static ssize_t slurp(int dir, const char *name, char *data)
{
	int file = openat(dir, name, O_RDONLY | O_CLOEXEC);
	ssize_t length = 0, got;

	if (file < 0)
		return -1;
	while (length < BIG && (got = read(file, data + length, BIG - length)) > 0)
		length += got;
	close(file);
	return length;
}

static void say(const char *name, const char *data, ssize_t length)
{
	static const char digits[] = "0123456789abcdef";

	if (length < 0)
		return;
	fprintf(out, " %s=", name);
	for (ssize_t at = 0; at < length; at++) {
		putc_unlocked(digits[(unsigned char)data[at] >> 4], out);
		putc_unlocked(digits[data[at] & 15], out);
	}
}

static ssize_t link_of(int dir, const char *name, char *data)
{
	return readlinkat(dir, name, data, BIG);
}

/* Only what tells the image: the link to it, and the process's start time. */
static ssize_t image(int dir, char *data)
{
	ssize_t exe = link_of(dir, "exe", data), stat;

	if (exe < 0)
		exe = 0;
	stat = slurp(dir, "stat", data + exe);
	if (stat <= 0)
		return -1;
	char *name_end = memrchr(data + exe, ')', stat);
	char *at = name_end;
	/* Field 22 is the start time; up to the state nothing else matters. */
	for (int field = 2; at && field < 22; field++)
		at = memchr(at + 1, ' ', data + exe + stat - at - 1);
	if (!at)
		return -1;
	char *end = memchr(at + 1, ' ', data + exe + stat - at - 1);
	size_t kept = name_end - (data + exe) + 1;
	memmove(data + exe + kept, at, end ? end - at : 0);
	return exe + kept + (end ? end - at : 0);
}

static void look(const char *why, int pid)
{
	static char before[2 * BIG], after[2 * BIG], data[BIG + 1];
	static const char *const files[] = { "stat", "status", "cmdline", "cgroup", "loginuid", "sessionid" };
	static const char *const links[] = { "exe", "cwd", "root" };
	static const char *const spaces[] = { "pid", "mnt", "net", "uts", "ipc", "cgroup", "user", "time" };
	unsigned long long begin = now();
	char name[32];
	int dir, root;
	ssize_t same;

	if (pid == self)
		return;
	sprintf(name, "%d", pid);
	dir = openat(proc, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return;
	same = image(dir, before);
	if (same < 0) {
		close(dir);
		return;
	}
	fprintf(out, "%s %llu %d", why, begin, pid);
	for (unsigned i = 0; i < sizeof files / sizeof *files; i++)
		say(files[i], data, slurp(dir, files[i], data));
	for (unsigned i = 0; i < sizeof links / sizeof *links; i++)
		say(links[i], data, link_of(dir, links[i], data));
	for (unsigned i = 0; i < sizeof spaces / sizeof *spaces; i++) {
		sprintf(name, "ns/%s", spaces[i]);
		char label[32];
		sprintf(label, "ns_%s", spaces[i]);
		say(label, data, link_of(dir, name, data));
	}
	root = openat(dir, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root >= 0) {
		if (!fchdir(root) && !chroot(".")) {
			say("my_exe", data, link_of(dir, "exe", data));
			say("my_cwd", data, link_of(dir, "cwd", data));
		}
		if (fchdir(home) || chroot("."))
			exit(3);
		close(root);
	}
	if (image(dir, after) != same || memcmp(before, after, same))
		fprintf(out, " torn=");
	fprintf(out, " %llu .\n", now());
	close(dir);
}

static void opened(int group)
{
	static char events[64 << 10];
	ssize_t length = read(group, events, sizeof events);
	struct fanotify_event_metadata *at = (void *)events;

	for (; length > 0 && FAN_EVENT_OK(at, length); at = FAN_EVENT_NEXT(at, length)) {
		struct fanotify_response answer = { at->fd, FAN_ALLOW };

		if (at->fd < 0)
			continue;
		look("held", at->pid);
		if (write(group, &answer, sizeof answer) < 0)
			perror("answer");
		close(at->fd);
	}
}

static void told(int connector)
{
	static char data[64 << 10];
	ssize_t length = recv(connector, data, sizeof data, MSG_DONTWAIT);

	if (length < 0 && errno == ENOBUFS)
		fprintf(out, "lost %llu 0 0 .\n", now());
	for (struct nlmsghdr *header = (void *)data; length > 0 && NLMSG_OK(header, (size_t)length);
	     header = NLMSG_NEXT(header, length)) {
		struct cn_msg *message = NLMSG_DATA(header);
		struct proc_event *event = (void *)message->data;

		switch ((unsigned)event->what) {
		case PROC_EVENT_FORK:
			if (event->event_data.fork.child_pid == event->event_data.fork.child_tgid)
				look("fork", event->event_data.fork.child_tgid);
			break;
		case PROC_EVENT_EXEC: look("exec", event->event_data.exec.process_tgid); break;
		case PROC_EVENT_UID:
		case PROC_EVENT_GID: look("id", event->event_data.id.process_tgid); break;
		case PROC_EVENT_SID: look("sid", event->event_data.sid.process_tgid); break;
		case PROC_EVENT_COMM: look("comm", event->event_data.comm.process_tgid); break;
		}
	}
}

static int listen_to_kernel(void)
{
	int connector = socket(PF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_CONNECTOR), size = 16 << 20;
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = CN_IDX_PROC, .nl_pid = getpid() };
	struct { struct nlmsghdr header; char message[sizeof(struct cn_msg) + 4]; } request = {
		.header = { .nlmsg_len = NLMSG_LENGTH(sizeof(struct cn_msg) + 4), .nlmsg_type = NLMSG_DONE,
			    .nlmsg_pid = getpid() },
	};
	struct cn_msg *message = (void *)request.message;
	enum proc_cn_mcast_op op = PROC_CN_MCAST_LISTEN;

	if (connector < 0 || bind(connector, (void *)&address, sizeof address))
		return -1;
	setsockopt(connector, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
	message->id.idx = CN_IDX_PROC;
	message->id.val = CN_VAL_PROC;
	message->len = sizeof op;
	memcpy(message->data, &op, sizeof op);
	return send(connector, &request, request.header.nlmsg_len, 0) < 0 ? -1 : connector;
}

int main(int argc, char **argv)
{
	struct sched_param priority = { 50 };
	int connector, group;

	self = getpid();
	out = fopen(argv[1], "w");
	proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	home = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	group = fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_UNLIMITED_QUEUE, O_RDONLY | O_CLOEXEC);
	connector = listen_to_kernel();
	if (!out || proc < 0 || home < 0 || group < 0 || connector < 0) {
		perror("looks");
		return 1;
	}
	for (int at = 2; at < argc; at++)
		if (fanotify_mark(group, FAN_MARK_ADD, FAN_OPEN_PERM, AT_FDCWD, argv[at])) {
			perror(argv[at]);
			return 1;
		}
	if (sched_setscheduler(0, SCHED_FIFO, &priority))
		perror("looks: real-time priority");
	setvbuf(out, NULL, _IOFBF, 1 << 20);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		struct pollfd polled[] = { { group, POLLIN, 0 }, { connector, POLLIN, 0 } };

		if (poll(polled, 2, 200) == 0)
			fflush(out);
		if (polled[0].revents)
			opened(group);
		else if (polled[1].revents)
			told(connector);
	}
}
