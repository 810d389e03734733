"""Opens the URLs of running guests for Volatility."""

from __future__ import annotations

import urllib.error
import urllib.request

from volatility3.framework.layers import resources

from live.core.errors import PseError
from live.core.text import printable
from live.volatility.input import guest_file


class GuestHandler(resources.VolatilityHandler):  # type: ignore[misc]
    """``qemu:///PATH``, ``qemu://NAME``; found by the host among the subclasses of its handlers."""

    @classmethod
    def non_cached_schemes(cls) -> list[str]:
        """Ours: the host would copy all of guest RAM to disk first, and show that copy ever after."""
        return list(guest_file.SCHEMES)

    @staticmethod
    def default_open(req: urllib.request.Request) -> guest_file.GuestFile | None:
        """The guest's memory; None for URLs that are not ours.  Raises `URLError` with what is wrong."""
        if req.type not in guest_file.SCHEMES:
            return None
        try:
            return guest_file.open_url(req.full_url)
        except PseError as error:
            raise urllib.error.URLError(printable(str(error))) from error
