"""Error tree of the guest lab. Each message is one sentence that ends with what to do next.

LabError
├── FetchError      a package, a mirror or a compiler could not be had
├── GuestError      the guest did not boot, panicked, or QEMU went away
│   └── GuestTimeout    it is alive, but did not answer in time
├── CommandFailed   a command inside the guest ended with a non-zero status
└── TruthLost       the guest's own record has a gap: nothing may be concluded from it
"""

from __future__ import annotations


class LabError(Exception):
    """Base of all errors of the lab."""


class FetchError(LabError):
    """Something that the lab needs is neither in the cache nor can it be fetched or built."""


class GuestError(LabError):
    """The guest did not boot, panicked, or its QEMU went away."""


class GuestTimeout(GuestError):
    """The guest runs but did not answer within the time limit."""


class CommandFailed(LabError):
    """A command inside the guest ended with a non-zero status."""


class TruthLost(LabError):
    """The guest's own trace overflowed or cannot be parsed: comparing against it would prove nothing."""
