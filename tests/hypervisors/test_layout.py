"""Guest RAM in the monitor's words."""

from __future__ import annotations

from live.hypervisors.qemu.memory.layout import (
    RamRange,
    main_memory,
    parse_backends,
    parse_flat_view,
    parse_hva,
)

# QEMU 10.0.2, -M q35 -m 4G with two NUMA nodes of memory-backend-memfd, -vga std; shortened.
MTREE = """\
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "vga", root: bus master container
 Root memory region: system
  No rendered FlatView

FlatView #2
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 AS "cpu-memory-1", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): /objects/n0 KVM
  00000000000a0000-00000000000affff (prio 2, ram): alias vga.chain4 @00000000000a0000
  00000000000c0000-00000000000cafff (prio 0, rom): n0 @00000000000c0000 KVM
  00000000000cb000-00000000000cdfff (prio 1000, ram): n0 @00000000000cb000 KVM
  00000000000ce000-00000000000e3fff (prio 0, rom): n0 @00000000000ce000 KVM
  00000000000e4000-00000000000effff (prio 1, ram): n0 @00000000000e4000
  00000000000f0000-00000000000fffff (prio 0, rom): n0 @00000000000f0000
  0000000000100000-000000003fffffff (prio 0, ram): n0 @0000000000100000
  0000000040000000-000000007fffffff (prio 0, ram): n1
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-000000017fffffff (prio 0, ram): n1 @0000000040000000

FlatView #3
 AS "cpu-smm-0", root: memory
  0000000000000000-00000000000fffff (prio 0, ram): smm
"""

MEMDEV = """\
memory backend: n0
  size:  1073741824
  merge: true
memory backend: n1
  size:  3221225472
"""


def test_main_memory_is_merged_and_told_from_video_memory_and_firmware() -> None:
    ranges = main_memory(parse_flat_view(MTREE), parse_backends(MEMDEV))
    assert ranges == [
        RamRange(start=0, length=0xA0000, block="n0", offset=0),
        RamRange(start=0xC0000, length=0x3FF40000, block="n0", offset=0xC0000),
        RamRange(start=0x40000000, length=0x40000000, block="n1", offset=0),
        RamRange(start=0x100000000, length=0x80000000, block="n1", offset=0x40000000),
    ]


def test_without_backends_the_block_at_zero_counts() -> None:
    assert {one.block for one in main_memory(parse_flat_view(MTREE), set())} == {"n0"}


def test_another_address_space_is_not_taken() -> None:
    assert parse_flat_view(MTREE, "cpu-smm-0") == [RamRange(start=0, length=0x100000, block="smm", offset=0)]
    assert parse_flat_view(MTREE, "nothing") == []
    assert parse_flat_view("") == []


def test_backends_with_object_paths() -> None:
    assert parse_backends("memory backend: /objects/ram0\n") == {"ram0"}
    assert parse_backends("no memory backends\n") == set()


def test_host_addresses() -> None:
    assert parse_hva("Host virtual address for 0x100000 (n0) is 0x7f0012345678\n") == 0x7F0012345678
    assert parse_hva("Memory at address 0xa0000 is not RAM\n") is None
