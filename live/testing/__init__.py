"""The contract suite: whether a guest of any hypervisor does what `live.core.hypervisor` says.

For whoever adds a hypervisor, in their own tests; needs pytest (``pip install 'pse[testing]'``)::

    from live.testing import GuestContract, Subject

    class TestMyGuests(GuestContract):
        modes = ("mine",)  # the offers that work

        @pytest.fixture
        def subject(self):
            return Subject(open=lambda: MINE.attach("a-guest"), work=..., functions=...)

Every capability that the guest declares is checked.  A check is skipped only where the guest declares that
it lacks the capability, or where the `Subject` cannot make happen what the check is about; the reason says
which.
`MemoryContract` alone is for whoever has memory and nothing else.  `FaultyMemory` and `FaultyGuest` inject
read faults into what exists.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    *(
        f"live.testing.{name}"
        for name in ("memory", "sentences", "capabilities", "traps", "floods", "ends", "watching")
    )
)

# Behind the line above, so that what fails says with which values.
from live.testing.ends import EndContract  # noqa: E402 - see above
from live.testing.faults import Faults, FaultyGuest, FaultyMemory  # noqa: E402 - see above
from live.testing.floods import FloodContract  # noqa: E402 - see above
from live.testing.memory import MemoryContract  # noqa: E402 - see above
from live.testing.subject import Function, Subject, Wait  # noqa: E402 - see above
from live.testing.traps import drain  # noqa: E402 - see above
from live.testing.watching import WatchContract  # noqa: E402 - see above

__all__ = [
    "Faults",
    "FaultyGuest",
    "FaultyMemory",
    "Function",
    "GuestContract",
    "MemoryContract",
    "Subject",
    "Wait",
    "drain",
]


class GuestContract(FloodContract, EndContract, WatchContract):
    """Everything that a guest has to do.

    Override the fixture `subject`, and `mortal` if a guest that has ended cannot be opened again; list the
    guest's offers in `modes` and `refused`.
    """
