"""Live introspection of virtual machines: events, kernel introspection, hypervisor adapters."""
