"""Guest RAM of a QEMU: where it lies, and the ways to read it."""
