/* paths CASE: a process in a place that is hard to name, which stays. It prints what the links /proc/self/exe and
 * /proc/self/cwd say, then getcwd(2), one a line ("!errno" if there is none); `paths fds` one line for each file
 * that it holds, from 40 on. All mounts are in a namespace of its own, below /tmp/w. */
#include "lab.h"
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define W "/tmp/w"
#define PROC 9 /* an open /proc: reachable from whatever root */
#define HELD 40 /* first of the files of `paths fds`, beyond those that open() gives */
#define OUTSIDE 8 /* W, open as well */
#define MUST(call) need((call) >= 0, #call)

static const char *now; /* the case */

static int is(const char *name)
{
	return !strcmp(now, name);
}

static void copy_to(int to)
{
	int from = openat(PROC, "self/exe", O_RDONLY);
	ssize_t got;

	need(from >= 0 && to >= 0, "copy");
	while ((got = sendfile(to, from, NULL, 1 << 20)) > 0)
		;
	need(!got, "sendfile");
	close(from);
}

static void copy(const char *name)
{
	int to = open(name, O_WRONLY | O_CREAT | O_EXCL, 0755);

	copy_to(to);
	close(to);
}

static void directory(const char *name)
{
	MUST(mkdir(name, 0755));
}

static void enter(const char *name)
{
	directory(name);
	MUST(chdir(name));
}

static void mount_tmpfs(const char *name)
{
	MUST(mount("tmpfs", name, "tmpfs", 0, NULL));
}

static void bind_mount(const char *from, const char *to)
{
	MUST(mount(from, to, NULL, MS_BIND, NULL));
}

/* Execute an open file that nobody has open for writing. */
static void run_file(int writable, char **argv)
{
	char name[32];

	snprintf(name, sizeof name, "self/fd/%d", writable);
	int file = openat(PROC, name, O_RDONLY | O_CLOEXEC);
	close(writable);
	syscall(SYS_execveat, file, "", argv, environ, AT_EMPTY_PATH);
	need(0, "execveat");
}

/* Make the place; the program to execute there. */
static const char *prepare(char **argv)
{
	if (is("plain"))
		return "/programs/paths";
	MUST(unshare(CLONE_NEWNS));
	MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	mkdir(W, 0755);
	mount_tmpfs(W);
	MUST(chdir(W));
	MUST(dup2(open(".", O_DIRECTORY), OUTSIDE));
	if (is("bind") || is("escaped") || is("detached")) {
		directory("vol"), directory("vol/sub"), directory("vol/sub/dir"), directory("data");
		copy("vol/sub/tool");
		if (is("detached")) {
			int tree = syscall(428 /* open_tree */, AT_FDCWD, "vol/sub", 1 /* OPEN_TREE_CLONE */ | O_CLOEXEC);
			MUST(fchdir(tree));
			MUST(chdir("dir"));
			return "../tool";
		}
		bind_mount("vol/sub", "data");
		MUST(chdir("data/dir"));
		return W "/data/tool";
	}
	if (is("bind-file")) {
		close(open("name", O_CREAT | O_WRONLY, 0755));
		bind_mount("/programs/paths", "name");
		return W "/name";
	}
	if (is("over")) { /* two mounts at one place, one of them a bind mount, and one over the directory that we are in */
		directory("m");
		mount_tmpfs("m");
		directory("m/sub"), directory("m/sub/dir");
		copy("m/sub/tool");
		bind_mount("m/sub", "m");
		MUST(chdir(W "/m/dir"));
		mount_tmpfs(W "/m/dir");
		return "../tool";
	}
	if (is("overlay")) {
		directory("low"), directory("up"), directory("work"), directory("all"), directory("low/dir");
		copy("low/tool");
		MUST(mount("overlay", "all", "overlay", 0, "lowerdir=low,upperdir=up,workdir=work"));
		MUST(chdir("all/dir"));
		return W "/all/tool";
	}
	if (is("chroot") || is("cwd-outside") || is("root-deleted")) {
		directory("jail"), directory("jail/dir"), directory("out");
		copy("jail/tool");
		MUST(chdir(is("cwd-outside") ? "out" : "jail/dir"));
		MUST(chroot(W "/jail"));
		if (is("root-deleted"))
			MUST(chdir("/"));
		return "/tool";
	}
	if (is("pivot") || is("pivot-left")) { /* the initial root cannot be pivoted away, so there is another between */
		directory("new");
		copy("tool");
		mount_tmpfs("new");
		directory("new/old"), directory("new/dir");
		copy("new/tool");
		MUST(chroot(W));
		MUST(syscall(SYS_pivot_root, "/new", "/new/old"));
		MUST(chroot("/"));
		if (is("pivot")) {
			MUST(chdir("/dir"));
			return "/tool";
		}
		directory("/old/dir");
		MUST(chdir("/old/dir"));
		return "/old/tool";
	}
	if (is("unmounted")) {
		directory("m");
		mount_tmpfs("m");
		enter("m/dir");
		copy("tool");
		return "./tool";
	}
	if (is("memfd")) {
		int file = memfd_create("ghost", MFD_CLOEXEC);
		copy_to(file);
		run_file(file, argv);
	}
	if (is("tmpfile")) {
		int file = open(W, O_TMPFILE | O_RDWR | O_CLOEXEC, 0755);
		copy_to(file);
		run_file(file, argv);
	}
	if (is("deep"))
		for (int i = 0; i < 1500; i++)
			enter("d");
	if (!strncmp(now, "bytes-", 6)) { /* a directory whose path has that many bytes */
		char name[252] = { 0 };
		int left = atoi(now + 6) - (int)strlen(W);

		memset(name, 'n', 250);
		for (; left > 251; left -= 251)
			enter(name);
		name[left - 1] = 0;
		enter(name);
		return "/programs/paths";
	}
	if (is("cwd-deleted"))
		enter("gone");
	copy("tool");
	return "./tool";
}

/* What is done to a program while it runs. */
static void afterwards(void)
{
	if (is("deleted"))
		MUST(unlink(W "/tool"));
	if (is("cwd-deleted"))
		MUST(unlink("tool")), MUST(rmdir(W "/gone"));
	if (is("exe-outside")) {
		directory("jail");
		MUST(chroot("jail"));
		MUST(chdir("/"));
	}
	if (is("root-deleted")) {
		MUST(unlink("/tool"));
		MUST(rmdir("/dir"));
		MUST(unlinkat(OUTSIDE, "jail", AT_REMOVEDIR));
	}
	if (is("unmounted"))
		MUST(umount2(W "/m", MNT_DETACH));
	if (is("pivot-left"))
		MUST(umount2("/old", MNT_DETACH));
	if (is("escaped"))
		MUST(rename(W "/vol/sub/dir", W "/vol/dir"));
	if (is("namespace"))
		MUST(unshare(CLONE_NEWNS));
}

static void say(const char *link)
{
	char text[8192];
	ssize_t length = readlinkat(PROC, link, text, sizeof text - 1);

	if (length < 0)
		printf("!%d\n", errno);
	else
		printf("%.*s\n", (int)length, text);
}

static void files(void)
{
	int pair[2], held = HELD;

	MUST(pipe(pair));
	int all[] = { pair[0], socket(AF_UNIX, SOCK_STREAM, 0), eventfd(0, 0), memfd_create("ghost", 0),
		      open("/tmp", O_TMPFILE | O_RDWR, 0600), syscall(434 /* pidfd_open */, getpid(), 0),
		      open("/proc/self/ns/mnt", O_RDONLY), open("/programs/paths", O_RDONLY) };

	for (unsigned i = 0; i < sizeof all / sizeof *all; i++, held++) {
		char name[32];

		MUST(dup2(all[i], held));
		snprintf(name, sizeof name, "self/fd/%d", held);
		say(name);
	}
}

int main(int argc, char **argv)
{
	char text[8192];
	int shown = argc > 2;

	need(argc > 1, "paths CASE");
	now = argv[1];
	if (!shown) {
		MUST(dup2(open("/proc", O_DIRECTORY), PROC));
		char *again[] = { "paths", argv[1], "there", NULL };
		mkdir(W, 0755);
		if (!is("fds")) {
			const char *program = prepare(again);

			execve(program, again, environ);
			need(0, program);
		}
	}
	afterwards();
	if (is("fds")) {
		files();
	} else {
		say("self/exe");
		say("self/cwd");
		if (syscall(SYS_getcwd, text, sizeof text) < 0)
			printf("!%d\n", errno);
		else
			printf("%s\n", text);
	}
	printf("there\n");
	fflush(stdout);
	for (;;)
		pause();
}
