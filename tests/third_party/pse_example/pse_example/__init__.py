"""A hypervisor and an output for pse, in a package of their own."""
