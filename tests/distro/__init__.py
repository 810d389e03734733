"""A real Debian, watched from outside, against two records of its own.

``python -m tests.distro`` boots it and prints how exact the events and the fields were::

    python -m tests.distro                              # everything, kernel 6.1, one vCPU, plugin mode
    python -m tests.distro --short --kernel 6.12-generic --cpus 2

Events are compared with what the guest's tracer recorded (tests/guest/truth.py), from before systemd begins.
Fields are compared with each process's own /proc, read inside the guest by programs/looks.c, which shares
nothing with us.  The root file system is made once, by mmdebstrap from the machine's own apt sources, and
kept in the lab's cache with the kernels.
"""
