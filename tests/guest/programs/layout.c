/* Offsets of members of kernel structures, from the BTF that the kernel carries: layout STRUCT.MEMBER... prints one
 * number a line. The lab's kprobes are written with them, so the guest's record does not lean on the code under test. */
#include "lab.h"
#include <linux/btf.h>
#include <sys/stat.h>

static char *types, *types_end, *names, **by_id;
static unsigned count;

/* Bytes that follow a type's header (Documentation/bpf/btf.rst). */
static unsigned tail(const struct btf_type *type)
{
	unsigned n = BTF_INFO_VLEN(type->info);

	switch (BTF_INFO_KIND(type->info)) {
	case BTF_KIND_INT: case BTF_KIND_VAR: case 17: /* DECL_TAG */ return 4;
	case BTF_KIND_ARRAY: return sizeof(struct btf_array);
	case BTF_KIND_STRUCT: case BTF_KIND_UNION: return n * sizeof(struct btf_member);
	case BTF_KIND_ENUM: return n * 8;
	case BTF_KIND_FUNC_PROTO: return n * 8;
	case BTF_KIND_DATASEC: return n * 12;
	case 19: /* ENUM64 */ return n * 12;
	default: return 0;
	}
}

static int member(const struct btf_type *type, const char *wanted, unsigned base)
{
	const struct btf_member *at = (const void *)(type + 1);

	for (unsigned i = 0; i < BTF_INFO_VLEN(type->info); i++, at++) {
		unsigned bits = BTF_INFO_KFLAG(type->info) ? BTF_MEMBER_BIT_OFFSET(at->offset) : at->offset;
		const struct btf_type *inner = (const void *)by_id[at->type];
		unsigned kind = at->type ? BTF_INFO_KIND(inner->info) : 0;
		int found;

		if (!strcmp(names + at->name_off, wanted))
			return base + bits / 8;
		if (!names[at->name_off] && (kind == BTF_KIND_STRUCT || kind == BTF_KIND_UNION) &&
		    (found = member(inner, wanted, base + bits / 8)) >= 0)
			return found;
	}
	return -1;
}

int main(int argc, char **argv)
{
	int file = open("/sys/kernel/btf/vmlinux", O_RDONLY);
	struct stat info;

	need(file >= 0 && !fstat(file, &info), "/sys/kernel/btf/vmlinux");
	char *data = malloc(info.st_size);
	for (ssize_t got, at = 0; at < info.st_size; at += got)
		need((got = read(file, data + at, info.st_size - at)) > 0, "read");
	struct btf_header *header = (void *)data;
	types = data + header->hdr_len + header->type_off;
	types_end = types + header->type_len;
	names = data + header->hdr_len + header->str_off;
	by_id = calloc(header->type_len / sizeof(struct btf_type) + 2, sizeof *by_id);
	for (char *at = types; at < types_end;) {
		by_id[++count] = at;
		at += sizeof(struct btf_type) + tail((const void *)at);
	}
	for (int i = 1; i < argc; i++) {
		char *dot = strchr(argv[i], '.');
		int offset = -1;

		need(dot != NULL, argv[i]);
		*dot = 0;
		for (unsigned id = 1; id <= count && offset < 0; id++) {
			const struct btf_type *type = (const void *)by_id[id];
			if (BTF_INFO_KIND(type->info) == BTF_KIND_STRUCT && !strcmp(names + type->name_off, argv[i]))
				offset = member(type, dot + 1, 0);
		}
		if (offset < 0) {
			fprintf(stderr, "this kernel has no %s.%s\n", argv[i], dot + 1);
			return 1;
		}
		printf("%d\n", offset);
	}
}
