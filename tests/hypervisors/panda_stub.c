/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Stands in for libpanda-x86_64.so and its plugin syscalls2, so that pandare itself can be run (panda_real.py).
 * The functions are those that pandare calls on the way; what they do follows PANDA's sources (see panda_fake.py).
 * One thread executes the vCPU and has the big lock meanwhile.  The offsets of members come from pandare.
 *
 * The guest: for process N it makes system call 57 in asid HOME, goes to asid OWN(N), makes 59 there by `syscall` and 11
 * by `int 0x80`, writes N to the quadword at WORD, and goes home.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MEMBER(type, base, offset) (*(type *)((char *)(base) + (offset)))
enum { MOST = 16 };

#ifdef PLUGIN
typedef void (*sys_enter)(void *cpu, uint64_t pc, uint64_t number);
static sys_enter list[MOST];
static int n;

void ppp_add_cb_on_all_sys_enter(sys_enter f) { list[n++] = f; }

bool ppp_remove_cb_on_all_sys_enter(sys_enter f)
{
    bool found = false;
    for (int i = 0; i < n; i++) {
        if (!found && f == list[i]) {
            found = true;
            n--;
        }
        if (found)
            list[i] = list[i + 1];
    }
    return found;
}

void stub_enter(void *cpu, uint64_t pc, uint64_t number)
{
    for (int i = 0; i < n; i++)
        list[i](cpu, pc, number);
}

int stub_listeners(void) { return n; }
#else
enum { HOME = 0x10000, WORD = 0x200000, PC = 0x400000, COMPAT_PC = 0x400100 };

struct callback { void *handle; int type; void *function; bool enabled; };

uint64_t ram_size;
bool panda_break_vl_loop_req;
uint64_t stub_forbidden, stub_processes, stub_calls;    /* calls of asid_changed */

static struct callback callbacks[MOST];
static int n;
static char *ram, cpu[SIZE_CPU], env[SIZE_ENV];
static pthread_mutex_t big_lock = PTHREAD_MUTEX_INITIALIZER;
static volatile bool stopping;
static void *plugin;
static void (*enter)(void *, uint64_t, uint64_t);

void _panda_set_library_mode(bool on) { (void)on; }
void panda_set_os_name(char *name) { (void)name; }
void panda_set_qemu_path(char *path) { (void)path; }
void panda_setup_signal_handling(void *f) { (void)f; }
void panda_unload_plugins(void) {}

int panda_init(int argc, char **argv, char **envp)
{
    (void)argc, (void)argv, (void)envp;
    ram_size = RAM;
    ram = calloc(1, RAM);
    MEMBER(void *, cpu, ENV_PTR) = env;
    MEMBER(uint64_t, env, CR + 3 * 8) = HOME;
    MEMBER(uint64_t, env, CR) = 1u << 31;
    MEMBER(uint64_t, env, SEGS + 5 * SEGMENT + BASE) = 0x1234000;
    MEMBER(uint64_t, env, KERNELGS) = 0x5678000;
    return 0;
}

void panda_require_from_library(char *name, char **args, uint32_t count)
{
    (void)args, (void)count;
    char path[4096];
    snprintf(path, sizeof path, "%s/panda_%s.so", PLUGINS, name);
    plugin = dlopen(path, RTLD_NOW);
    if (!plugin)
        abort();
    enter = (void (*)(void *, uint64_t, uint64_t))dlsym(plugin, "stub_enter");
}

void panda_register_callback_helper(void *handle, int type, void *pcb)
{
    callbacks[n++] = (struct callback){handle, type, *(void **)pcb, true};
}

static void set(void *handle, int type, bool enabled)
{
    for (int i = 0; i < n; i++)
        if (callbacks[i].handle == handle && callbacks[i].type == type)
            callbacks[i].enabled = enabled;
}

void panda_enable_callback_helper(void *handle, int type, void *pcb) { (void)pcb, set(handle, type, true); }
void panda_disable_callback_helper(void *handle, int type, void *pcb) { (void)pcb, set(handle, type, false); }

void panda_unregister_callbacks(void *handle)
{
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (callbacks[i].handle != handle)
            callbacks[kept++] = callbacks[i];
    n = kept;
}

static void load_root(uint64_t root)
{
    bool forbidden = false;
    for (int i = 0; i < n; i++)
        if (callbacks[i].type == ASID_CHANGED && callbacks[i].enabled) {
            bool (*f)(void *, uint64_t, uint64_t) = (bool (*)(void *, uint64_t, uint64_t))callbacks[i].function;
            forbidden |= f(cpu, MEMBER(uint64_t, env, CR + 3 * 8), root);
            stub_calls++;
        }
    if (forbidden)
        stub_forbidden++;
    else
        MEMBER(uint64_t, env, CR + 3 * 8) = root;
}

static void call(uint64_t pc, uint64_t number)
{
    MEMBER(uint64_t, env, REGS) = number;
    MEMBER(uint64_t, env, EIP) = pc;
    if (enter)
        enter(cpu, pc, number);
}

static void *execute(void *unused)
{
    (void)unused;
    for (uint64_t process = 1; !stopping; process++) {
        pthread_mutex_lock(&big_lock);
        MEMBER(uint64_t, env, REGS + 7 * 8) = process;                  /* RDI: the first argument of a call */
        call(PC, 57);
        MEMBER(uint64_t, env, EIP) = 0xffffffff81000000;
        load_root((0x20000 + process % 1000 * 0x2000) | 1);
        call(PC, 59);
        call(COMPAT_PC, 11);
        memcpy(ram + WORD, &process, sizeof process);
        load_root(HOME);
        stub_processes = process;
        pthread_mutex_unlock(&big_lock);
        usleep(500);
    }
    return NULL;
}

void panda_run(void)
{
    pthread_t thread;
    panda_break_vl_loop_req = stopping = false;
    pthread_create(&thread, NULL, execute, NULL);
    while (!panda_break_vl_loop_req) {
        pthread_mutex_lock(&big_lock);
        for (int i = 0; i < n; i++)
            if (callbacks[i].type == MAIN_LOOP_WAIT && callbacks[i].enabled)
                ((void (*)(void))callbacks[i].function)();
        pthread_mutex_unlock(&big_lock);
        usleep(1000);
    }
    stopping = true;
    pthread_join(thread, NULL);
}

void *get_cpu(void) { return cpu; }
uint64_t panda_current_asid(void *c) { return MEMBER(uint64_t, MEMBER(void *, c, ENV_PTR), CR + 3 * 8); }

static bool is_ram(uint64_t gpa) { return gpa < RAM && !(gpa >= 0xa0000 && gpa < 0xc0000); }

int panda_physical_memory_read_external(uint64_t gpa, void *to, int length)
{
    if (!is_ram(gpa))
        return -1;
    memcpy(to, ram + gpa, length);
    return 0;
}

int panda_virtual_memory_read_external(void *c, uint64_t address, void *to, int length)
{
    (void)c;
    const char *code = address == PC ? "\x0f\x05" : address == COMPAT_PC ? "\xcd\x80" : NULL;
    if (!code)
        return -1;
    memcpy(to, code, length > 2 ? 2 : length);
    return 0;
}

void *panda_get_plugin_by_name(const char *name) { return strcmp(name, "syscalls2") ? NULL : plugin; }

uint32_t PandaPhysicalAddressToRamOffset_external(uint64_t *out, uint64_t gpa, bool is_write)
{
    (void)is_write;
    if (!is_ram(gpa))
        return 2;
    *out = gpa;
    return 0;
}
#endif
