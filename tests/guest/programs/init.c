/*
 * The guest's first process: sets the guest up, then takes commands from the lab over the second serial port.
 *
 * Each message is one header line, then as many bytes as it announces. The port is raw and nobody else writes to it
 * (the kernel's messages go to the first port), so nothing needs quoting. Host to guest:
 *     run ID LEN      argv, each string ended by a NUL: start it
 *     put ID LEN      PATH NUL, then bytes to append to that file
 *     sig ID LEN      a signal number in ASCII: send it to what `run ID` started
 * Guest to host:
 *     pid ID PID      it runs
 *     out ID LEN      bytes that it wrote to stdout or stderr
 *     end ID STATUS   it ended (status as of wait(2)), or `put` is done (an errno)
 *
 * One `run` is exactly one fork and one exec, so that a workload's processes can be counted exactly. The agent holds no
 * pipe's reading end shut: a daemon that outlives its command may go on writing without being killed for it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define JOBS 64
#define PAYLOAD (64 << 10)

static struct job { int used, running, id, pipe; pid_t pid; } jobs[JOBS];
static int port;
static sigset_t unblocked;

static void send_all(const char *data, size_t length)
{
	while (length) {
		ssize_t done = write(port, data, length);
		if (done < 0 && errno != EINTR && errno != EAGAIN)
			return;
		if (done > 0) {
			data += done;
			length -= done;
		}
	}
}

static void tell(const char *word, int id, int value)
{
	char line[64];

	send_all(line, snprintf(line, sizeof line, "%s %d %d\n", word, id, value));
}

static void receive(char *data, size_t length)
{
	while (length) {
		ssize_t got = read(port, data, length);
		if (got > 0) {
			data += got;
			length -= got;
		}
	}
}

static void start(int id, char *data, size_t length)
{
	char *argv[256];
	int count = 0, ends[2];
	struct job *job = jobs;

	for (char *at = data; at < data + length && count < 255; at += strlen(at) + 1)
		argv[count++] = at;
	argv[count] = NULL;
	while (job < jobs + JOBS && job->used)
		job++;
	if (job == jobs + JOBS || pipe2(ends, O_CLOEXEC) < 0) {
		tell("end", id, 126 << 8);
		return;
	}
	pid_t pid = fork();
	if (pid == 0) {
		setsid();
		dup2(open("/dev/null", O_RDWR), 0);
		dup2(ends[1], 1);
		dup2(ends[1], 2);
		sigprocmask(SIG_SETMASK, &unblocked, NULL);
		execvp(argv[0], argv);
		dprintf(2, "%s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	close(ends[1]);
	if (pid < 0) {
		close(ends[0]);
		tell("end", id, 126 << 8);
		return;
	}
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	fcntl(ends[0], F_SETPIPE_SZ, 1 << 20);
	*job = (struct job){ 1, 1, id, ends[0], pid };
	tell("pid", id, pid);
}

static void put(int id, char *data, size_t length)
{
	size_t path = strnlen(data, length) + 1;
	int result = 0, file = open(data, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0755);

	if (file < 0 || write(file, data + path, length - path) != (ssize_t)(length - path))
		result = errno ? errno : EIO;
	if (file >= 0)
		close(file);
	tell("end", id, result);
}

static void obey(void)
{
	static char payload[PAYLOAD + 1];
	char line[64], word[8];
	int id;
	unsigned used = 0, length;

	do
		receive(line + used, 1);
	while (line[used] != '\n' && ++used < sizeof line - 1);
	line[used] = 0;
	if (sscanf(line, "%7s %d %u", word, &id, &length) != 3 || length > PAYLOAD)
		return;
	receive(payload, length);
	payload[length] = 0;
	if (!strcmp(word, "run"))
		start(id, payload, length);
	else if (!strcmp(word, "put"))
		put(id, payload, length);
	else if (!strcmp(word, "sig"))
		for (struct job *job = jobs; job < jobs + JOBS; job++)
			if (job->used && job->running && job->id == id)
				kill(-job->pid, atoi(payload));
}

/* Pass on what the job wrote; free its slot when it is over and nobody holds the writing end any more. */
static void drain(struct job *job)
{
	static char buffer[32 << 10];
	ssize_t got;

	while ((got = read(job->pipe, buffer, sizeof buffer)) > 0) {
		tell("out", job->id, got);
		send_all(buffer, got);
	}
	if (got == 0) {
		close(job->pipe);
		job->pipe = -1;
		job->used = job->running;
	}
}

static void reap(void)
{
	pid_t pid;
	int status;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (struct job *job = jobs; job < jobs + JOBS; job++)
			if (job->used && job->running && job->pid == pid) {
				if (job->pipe >= 0)
					drain(job);
				job->running = 0;
				job->used = job->pipe >= 0;
				tell("end", job->id, status);
			}
}

static void set_up(void)
{
	struct termios raw;
	int console;

	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL);
	mkdir("/dev/shm", 0755);
	mount("tmpfs", "/dev/shm", "tmpfs", 0, NULL);
	mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL);
	console = open("/dev/console", O_RDWR | O_NOCTTY | O_CLOEXEC);
	for (int fd = 0; fd < 3 && console >= 0; fd++)
		dup2(console, fd);
	port = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (port < 0 || tcgetattr(port, &raw) < 0) {
		dprintf(2, "lab: /dev/ttyS1: %s\n", strerror(errno));
		_exit(1);	/* the kernel panics, and the lab shows the console */
	}
	cfmakeraw(&raw);
	cfsetspeed(&raw, B115200);
	raw.c_cflag |= CLOCAL | CREAD;
	raw.c_cc[VMIN] = 1;
	tcsetattr(port, TCSANOW, &raw);
	setenv("PATH", "/programs:/bin:/sbin", 1);
	setenv("HOME", "/tmp", 1);
	chdir("/tmp");
}

int main(void)
{
	sigset_t children;
	struct pollfd polled[JOBS + 2];
	struct job *of[JOBS + 2];

	set_up();
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	sigprocmask(SIG_BLOCK, &children, &unblocked);
	int signals = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);

	tell("end", 0, 0);	/* the prompt: ready for commands */
	for (;;) {
		int count = 2;

		polled[0] = (struct pollfd){ port, POLLIN, 0 };
		polled[1] = (struct pollfd){ signals, POLLIN, 0 };
		for (struct job *job = jobs; job < jobs + JOBS; job++)
			if (job->used && job->pipe >= 0) {
				of[count] = job;
				polled[count++] = (struct pollfd){ job->pipe, POLLIN, 0 };
			}
		poll(polled, count, -1);
		for (int at = 2; at < count; at++)
			if (polled[at].revents)
				drain(of[at]);
		if (polled[1].revents) {
			struct signalfd_siginfo info;
			while (read(signals, &info, sizeof info) > 0)
				;
			reap();
		}
		if (polled[0].revents)
			obey();
	}
}
