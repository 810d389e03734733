/* SPDX-License-Identifier: BSD-2-Clause
 *
 * See vcpu.h.
 */
#include "vcpu.h"

#include <stdlib.h>
#include <string.h>

enum { CACHE_LINE = 64 };

struct vcpu { _Atomic bool seen; GByteArray *buffer; };
struct score { uint64_t word[WORDS]; };

unsigned n_vcpus;

static struct vcpu *vcpus;
static void *scores, *handles[REGISTERS];
static const char *const names[REGISTERS] = {REGISTER_NAMES, "cr3"};

void *for_each_vcpu(size_t size)
{
    size_t all = (n_vcpus * size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    void *memory = aligned_alloc(CACHE_LINE, all);
    return memory ? memset(memory, 0, all) : NULL;
}

bool vcpus_create(unsigned n)
{
    n_vcpus = n;
    vcpus = for_each_vcpu(sizeof *vcpus);
    scores = qemu_plugin_scoreboard_new(sizeof(struct score));
    return vcpus && scores;
}

/* The handles of registers are the same for all vCPUs. */
static void find_registers(void)
{
    GArray *all = qemu_plugin_get_registers();
    const reg_descriptor *r = (const void *)all->data;
    for (unsigned i = 0; i < all->len; i++)
        for (unsigned k = 0; k < REGISTERS; k++)
            if (!handles[k] && !strcmp(r[i].name, names[k]))
                handles[k] = r[i].handle;
    g_array_free(all, 1);
}

bool vcpu_add(unsigned v)
{
    if (v >= n_vcpus || vcpus[v].seen)
        return false;
    if (v == 0)
        find_registers();
    vcpus[v].buffer = g_byte_array_new();
    vcpus[v].seen = true;
    return true;
}

bool vcpu_seen(unsigned v)
{
    return v < n_vcpus && vcpus[v].seen;
}

score_u64 place_of(enum word word)
{
    return (score_u64){scores, word * sizeof(uint64_t)};
}

static uint64_t *word_of(unsigned v, enum word word)
{
    struct score *score = qemu_plugin_scoreboard_find(scores, v);
    return &score->word[word];
}

uint64_t reasons(unsigned v, enum word word)
{
    return __atomic_load_n(word_of(v, word), __ATOMIC_RELAXED);
}

void raise_word(unsigned v, enum word word, enum reason reason)
{
    __atomic_fetch_or(word_of(v, word), (uint64_t)reason, __ATOMIC_SEQ_CST);
}

void lower_word(unsigned v, enum word word, enum reason reason)
{
    __atomic_fetch_and(word_of(v, word), ~(uint64_t)reason, __ATOMIC_SEQ_CST);
}

uint64_t reg(unsigned v, unsigned which)
{
    uint64_t value = 0;
    GByteArray *buffer = vcpus[v].buffer;
    if (handles[which]) {
        g_byte_array_set_size(buffer, 0);
        if (qemu_plugin_read_register(handles[which], buffer) > 0)
            memcpy(&value, buffer->data, buffer->len < sizeof value ? buffer->len : sizeof value);
    }
    return value;
}

uint64_t quadword(unsigned v, uint64_t address)
{
    uint64_t value = 0;
    GByteArray *buffer = vcpus[v].buffer;
    if (qemu_plugin_read_memory_vaddr(address, buffer, sizeof value) && buffer->len == sizeof value)
        memcpy(&value, buffer->data, sizeof value);
    return value;
}
