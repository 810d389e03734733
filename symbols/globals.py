"""C types of global variables, which BTF lacks (it describes per-CPU variables only).

Data.  One line per variable: its name, and its type as a C declaration without the name, with BTF's names of
the base types.  ``[]`` has the size up to the next symbol.  If the kernel lacks the type, the variable is
untyped.  ``{a, b}`` is the anonymous struct with these members in this order.  ``|`` separates alternatives.
"""

from __future__ import annotations

_TEXT = """
init_task                   struct task_struct
_text                       void
_stext                      void
_etext                      void
const_current_task          struct task_struct *
current_task                struct task_struct *
const_pcpu_hot              struct pcpu_hot
init_pid_ns                 struct pid_namespace
init_uts_ns                 struct uts_namespace
init_user_ns                struct user_namespace
init_ipc_ns                 struct ipc_namespace
init_cgroup_ns              struct cgroup_namespace
init_time_ns                struct time_namespace
init_net                    struct net
init_nsproxy                struct nsproxy
init_cred                   struct cred
init_css_set                struct css_set
init_files                  struct files_struct
init_fs                     struct fs_struct
init_mm                     struct mm_struct
init_signals                struct signal_struct
init_sighand                struct sighand_struct
init_struct_pid             struct pid
cgrp_dfl_root               struct cgroup_root
cgroup_roots                struct list_head
super_blocks                struct list_head
file_systems                struct file_system_type *
modules                     struct list_head
module_kset                 struct kset *
mod_tree                    struct mod_tree_root
module_addr_min             long unsigned int
module_addr_max             long unsigned int
net_namespace_list          struct list_head
tty_drivers                 struct list_head
prog_idr                    struct idr
map_idr                     struct idr
bpf_kallsyms                struct list_head
bpf_tree                    struct latch_tree_root
ftrace_ops_list             struct ftrace_ops *
ftrace_list_end             struct ftrace_ops
ftrace_mod_maps             struct list_head
ftrace_ops_trampoline_list  struct list_head
__start___tracepoints_ptrs  int []
__stop___tracepoints_ptrs   int []
prb                         struct printk_ringbuffer *
printk_rb_static            struct printk_ringbuffer
log_buf                     char *
log_buf_len                 unsigned int
log_first_idx               unsigned int
log_next_idx                unsigned int
log_first_seq               long long unsigned int
log_next_seq                long long unsigned int
console_drivers             struct console *
console_list                struct hlist_head
iomem_resource              struct resource
ioport_resource             struct resource
idt_table                   struct gate_struct []
keyboard_notifier_list      struct atomic_notifier_head
registered_fb               struct fb_info * [32]
num_registered_fb           int
cap_last_cap                int
taint_flags                 struct taint_flag []
height_to_maxindex          long unsigned int []
height_to_maxnodes          long unsigned int []
tk_core                     struct tk_data | struct {seq, timekeeper}
timekeeper                  struct timekeeper
jiffies                     long unsigned int
jiffies_64                  long long unsigned int
sys_call_table              void * []
ia32_sys_call_table         void * []
socket_file_ops             struct file_operations
sockfs_dentry_operations    struct dentry_operations
tcp4_seq_afinfo             struct tcp_seq_afinfo
tcp6_seq_afinfo             struct tcp_seq_afinfo
udp4_seq_afinfo             struct udp_seq_afinfo
udp6_seq_afinfo             struct udp_seq_afinfo
udplite4_seq_afinfo         struct udp_seq_afinfo
udplite6_seq_afinfo         struct udp_seq_afinfo
tcp4_seq_ops                struct seq_operations
tcp6_seq_ops                struct seq_operations
udp_seq_ops                 struct seq_operations
udp6_seq_ops                struct seq_operations
raw_seq_ops                 struct seq_operations
raw6_seq_ops                struct seq_operations
arp_seq_ops                 struct seq_operations
unix_seq_ops                struct seq_operations
tcp_seq_ops                 struct seq_operations
packet_seq_ops              struct seq_operations
page_offset_base            long unsigned int
vmalloc_base                long unsigned int
vmemmap_base                long unsigned int
phys_base                   long unsigned int
physical_mask               long long unsigned int
high_memory                 void *
mem_section                 struct mem_section * *
node_data                   struct pglist_data * []
mem_map                     struct page *
pgdir_shift                 unsigned int
ptrs_per_p4d                unsigned int
__pgtable_l5_enabled        unsigned int
pgtable_l5_enabled          unsigned int
__per_cpu_offset            long unsigned int []
nr_cpu_ids                  unsigned int
nr_threads                  int
total_forks                 long unsigned int
pid_max                     int
pidhash_shift               unsigned int
pid_hash                    struct hlist_head *
sysctl_bootid               unsigned char [16]
saved_command_line          char *
vmcoreinfo_data             unsigned char *
vmcoreinfo_size             long unsigned int
kallsyms_num_syms           unsigned int
kallsyms_names              unsigned char [0]
kallsyms_token_table        char [0]
kallsyms_token_index        short unsigned int [256]
kallsyms_markers            unsigned int [0]
kallsyms_offsets            int [0]
kallsyms_relative_base      long unsigned int
kallsyms_addresses          long unsigned int [0]
kallsyms_seqs_of_names      unsigned char [0]
mount_hashtable             struct hlist_head *
dentry_hashtable            struct hlist_bl_head *
inode_hashtable             struct hlist_head *
slab_caches                 struct list_head
vmap_area_list              struct list_head
nf_hooks                    struct list_head []
"""

DECLARATIONS: dict[str, str] = {
    name: declaration for name, declaration in (line.split(None, 1) for line in _TEXT.strip().splitlines())
}
"""Variable name -> declaration."""
