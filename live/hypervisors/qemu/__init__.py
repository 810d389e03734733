"""QEMU: guest memory, monitor and traps of a guest that is already running."""
