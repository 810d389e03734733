"""What is QEMU's own of the contract, which is checked in `tests.contract.test_qemu`."""

from __future__ import annotations

import pytest

from live.arch.x86_64 import X86_64
from live.core.errors import TargetError
from live.core.traps import CodeHit
from live.hypervisors import registry
from live.testing import drain
from tests.contract.lab import symbols
from tests.guest.fixtures import Boot
from tests.hypervisors import sockets

__all__ = ["drain", "symbols"]


def test_a_second_reader_is_told(boot: Boot) -> None:
    guest = boot(plugins=(sockets.plugin("contract"),))
    attached = registry.attach(str(guest.pid))
    (plugin,) = (offer for offer in attached.offers if offer.mode == "plugin")
    kinds: frozenset[type] = frozenset({CodeHit})
    source = plugin.open(X86_64, kinds, 1.0)
    try:
        with pytest.raises(TargetError, match="serves another reader; end that one first"):
            plugin.open(X86_64, kinds, 1.0)
        assert source.wait(0) is None
    finally:
        source.close()
        attached.close()
