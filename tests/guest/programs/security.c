/* Sets what a process may do, says what /proc/self has of it, and waits. Argument: what to set, letters of
 * n(o new privileges) s(eccomp filter) u(ser namespace with ids 1000 and 2000) l(ogin uid 1234) c(apabilities dropped). */
#include "lab.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

static void put(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);

	need(file >= 0 && write(file, text, strlen(text)) > 0, path);
	close(file);
}

static void show(const char *path, const char *wanted)
{
	char line[512];
	FILE *file = fopen(path, "r");

	need(file != NULL, path);
	while (fgets(line, sizeof line, file))
		if (!strncmp(line, wanted, strlen(wanted)))
			printf("%s%s", *wanted ? "" : "value ", line);
	fclose(file);
	puts("");
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = {1, &allow};

	if (strchr(what, 'l'))
		put("/proc/self/loginuid", "1234");
	if (strchr(what, 'c'))
		need(!prctl(PR_CAPBSET_DROP, 21, 0, 0, 0), "PR_CAPBSET_DROP");
	if (strchr(what, 'u')) {
		need(!unshare(CLONE_NEWUSER), "unshare");
		put("/proc/self/uid_map", "1000 0 1\n");
		put("/proc/self/setgroups", "deny");
		put("/proc/self/gid_map", "2000 0 1\n");
	}
	if (strchr(what, 'n'))
		need(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
	if (strchr(what, 's'))
		need(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0), "PR_SET_SECCOMP");
	printf("pid %d\nids %d %d %d %d\n", getpid(), getuid(), getgid(), geteuid(), getegid());
	show("/proc/self/status", "Cap");
	show("/proc/self/status", "NoNewPrivs");
	show("/proc/self/status", "Seccomp:");
	printf("loginuid ");
	fflush(stdout);
	show("/proc/self/loginuid", "");
	printf("sessionid ");
	show("/proc/self/sessionid", "");
	show("/proc/self/stat", "");
	puts("end");
	fflush(stdout);
	pause();
}
