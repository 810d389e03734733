"""The pure core: no I/O, no clock, standard library only."""
