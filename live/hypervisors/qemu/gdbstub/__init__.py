"""Traps from QEMU's gdb stub: any QEMU, TCG and KVM; it can be started on a guest that already runs."""
