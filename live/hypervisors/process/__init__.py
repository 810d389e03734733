"""Any VMM by its process id: its guest's memory alone; no monitor, registers or options of the VMM."""

from live.hypervisors.process.guest import PROCESS, ProcessGuest

__all__ = ["PROCESS", "ProcessGuest"]
