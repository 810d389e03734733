"""The one error tree of the project.

::

    PseError                    anything a user may be shown, as one sentence
     +-- MemoryFault            guest memory that is not there, or not what a pointer claimed
     +-- GuestError             the guest is not something that we can introspect
     |    +-- NoKernelFound     no Linux kernel in this memory
     |    +-- SymbolsMissing    the kernel has no BTF or kallsyms, or lacks a symbol that we need
     |    +-- GuestGone         the guest (or its hypervisor) went away while it was watched
     +-- TargetError            the thing named on the command line cannot be used
          +-- NoTarget          there is no running guest, or none of that name
          +-- NotPermitted      the operating system refuses us access

Every message is complete on its own: what is wrong, then what to do next.  Nothing else is
raised on account of what a guest's memory holds.
"""

from __future__ import annotations


class PseError(Exception):
    """Base of all errors that are reported to the user as one sentence, without a traceback."""


class MemoryFault(PseError):
    """Guest memory could not be read.

    ``address`` is the first address that failed; ``kind`` says which address space it
    belongs to: ``"gpa"`` (guest-physical) or ``"virtual"`` (guest-virtual).
    """

    def __init__(self, address: int, reason: str = "not in guest RAM", kind: str = "gpa") -> None:
        """The message is made from the parts."""
        super().__init__(f"{kind} {address:#x}: {reason}")
        self.address = address
        self.reason = reason
        self.kind = kind


class GuestError(PseError):
    """The guest is not something that can be introspected."""


class NoKernelFound(GuestError):
    """No (living) Linux kernel was found in this memory."""


class SymbolsMissing(GuestError):
    """The kernel carries no usable BTF or kallsyms, or lacks a symbol or member that we need."""


class GuestGone(GuestError):
    """The guest, or the hypervisor under it, went away while it was watched."""


class TargetError(PseError):
    """What the user named cannot be used as a source of guest memory."""


class NoTarget(TargetError):
    """There is no running guest, or none that fits the name given."""


class NotPermitted(TargetError):
    """The operating system refuses access to the guest's memory or monitor."""
