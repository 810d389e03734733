"""QEMU's monitor: commands, pauses, and the watchdog that ends a pause for us."""
