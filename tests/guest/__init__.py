"""The guest lab: real kernels in a real QEMU, a command channel, and the guest's own record of events.

From a shell, to have something to look at::

    python3 -m tests.guest boot --kernel 6.12 --cpus 2 --loop 'fork-exec 3; sleep 1'
    python3 -m tests.guest dump -o guest.elf

In a test, where ``boot`` is a fixture, a booted guest is one line and a workload is another::

    def test_forks_are_seen(boot):
        guest = boot(kernel="6.12", cpus=2)
        with guest.truth() as recorder:
            job = guest.start(["fork-exit", "100"])
            ...                                     # what is being tested looks at guest.monitor meanwhile
            job.wait()
        program, *children = recorder.truth.below(job.wait_pid())

Anywhere else, ``with Guest(GuestSpec(...)) as guest``. What is needed is fetched, compiled or installed when
it is first used, into the cache (cache.py); workloads.py says as data what each workload program does.
"""

from __future__ import annotations

from .channel import Job, Result
from .errors import CommandFailed, FetchError, GuestError, GuestTimeout, LabError, TruthLost
from .guest import Guest
from .kernels import KERNELS
from .spec import GuestSpec

__all__ = [
    "KERNELS",
    "CommandFailed",
    "FetchError",
    "Guest",
    "GuestError",
    "GuestSpec",
    "GuestTimeout",
    "Job",
    "LabError",
    "Result",
    "TruthLost",
]
