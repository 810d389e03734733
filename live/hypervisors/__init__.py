"""Hypervisors and recordings: where bytes, registers and traps come from."""
