"""The URL handler for running guests."""

from __future__ import annotations

import urllib.error
import urllib.request

from volatility3.framework.layers import resources

from live.core.errors import PseError
from live.core.text import printable
from live.volatility.input import guest_file


class GuestHandler(resources.VolatilityHandler):  # type: ignore[misc]
    """Opens ``SCHEME:///TARGET`` and ``SCHEME://NAME``.  Volatility finds it among its subclasses."""

    @classmethod
    def non_cached_schemes(cls) -> list[str]:
        """Ours: else Volatility would copy all of guest RAM to its cache and keep using that copy."""
        return list(guest_file.SCHEMES)

    @staticmethod
    def default_open(req: urllib.request.Request) -> guest_file.GuestFile | None:
        """The guest's memory; None for other URLs.  Raises `URLError`."""
        if req.type not in guest_file.SCHEMES:
            return None
        try:
            return guest_file.open_url(req.full_url)
        except PseError as error:
            raise urllib.error.URLError(printable(str(error))) from error
