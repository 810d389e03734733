"""Guest RAM in a process of this host: what the adapters of several hypervisors share.

`maps` reads /proc/PID/maps, `segments` says which gpa is RAM, `memory` reads it.  Nothing here knows a
hypervisor: an adapter says at which addresses of which process RAM lies.
"""
