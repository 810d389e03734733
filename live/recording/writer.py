"""Writes a recording: assigns ids to pages and steps and queues them.

`Writer.step` is called while a vCPU may be held.  It only decides which pages are new and on which version
each is based; the thread of `live.recording.sink` does the rest.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Sequence
from pathlib import Path

from live.core.errors import TargetError
from live.core.events import Event
from live.core.memory import PAGE_SIZE, Segment
from live.recording import codec, format
from live.recording.header import Header
from live.recording.live_memory import Reads
from live.recording.sink import Item, Page, Sink

_DEPTHS = 1 << 16
"""Most pages whose XOR chain length is remembered; a version of any other page is stored as it is."""
_ZERO_PAGE = bytes(PAGE_SIZE)


class _Numbers:
    """The id of the last recorded version of every page; takes 4 bytes per page of guest RAM."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._parts = [
            (one.start >> 12, one.end >> 12, array("I", bytes(4 * (one.length >> 12)))) for one in segments
        ]

    def get(self, number: int) -> int:
        for start, end, ids in self._parts:
            if start <= number < end:
                return ids[number - start]
        return 0

    def set(self, number: int, page: int) -> None:
        for start, end, ids in self._parts:
            if start <= number < end:
                ids[number - start] = page


class Writer:
    """A recording that is being written; a context manager.  Its methods are for one thread."""

    def __init__(
        self, path: Path | str, header: Header, symbols: bytes, *, force: bool = False, level: int = 3
    ) -> None:
        """Create the file and start the thread.

        ``symbols``: ISF text; ``level``: of zstd compression.  Raises `TargetError` if ``path`` exists
        (without ``force``) or cannot be written.
        """
        self.path = Path(path)
        self._sink = Sink(self.path, header, symbols, force=force, level=level)
        self._known = _Numbers(header.segments)
        self._depths: dict[int, int] = {}
        self._next_page, self._generation, self._events, self.last_step = format.FIRST_PAGE, 0, 0, 0

    @property
    def waited_ns(self) -> int:
        """Time in ns that steps waited because the disk could not keep up."""
        return self._sink.waited_ns

    def step(
        self,
        kind: str,
        time_ns: int,
        reads: Sequence[Reads],
        events: Sequence[Event] = (),
        *,
        late_ns: int = 0,
        cause: str = "",
        detail: codec.Json | None = None,
        error: str | None = None,
    ) -> int:
        """Queue a step; return its number.  Raises `TargetError` if writing has failed.

        ``kind`` to ``error`` as in `live.recording.file.Step`; ``reads``: one entry per generation.
        """
        pages: list[Page] = []
        generations = [self._number(one, pages) for one in reads]
        self._generation += len(generations)
        return self._put_step(
            Item(pages, generations, (kind, time_ns, late_ns, cause, error), detail, events)
        )

    def _put_step(self, item: Item) -> int:
        self._events += len(item.events)
        self.last_step += 1
        kind, time_ns, late_ns, cause, error = item.step or ()
        row = (self.last_step, kind, time_ns, late_ns, cause, self._generation, self._events, error)
        self._sink.put(item._replace(step=row))
        return self.last_step

    def known(self, number: int) -> int:
        """Id of the last recorded version of page ``number`` (gpa / 4096), 0 for none."""
        return self._known.get(number)

    def frame_part(self, changed: list[tuple[int, int]], contents: dict[int, bytes], *, whole: bool) -> None:
        """Queue a part of a frame.

        ``changed``: (page number, version id).  ``contents``: content of the ids that are new, which come
        from `new_page`.  ``whole``: the last part; `frame` follows.
        """
        for number, page in changed:
            self._known.set(number, page)
            self._depths.pop(number, None)
        pages = [Page(page, content, 0, None) for page, content in contents.items()]
        generation = format.Generation([n for n, _ in changed], [page for _, page in changed], (), whole)
        self._generation += 1
        self._sink.put(Item(pages, [generation], None, None, ()))

    def frame(
        self, time_ns: int, took_ns: int, cause: str, *, after: int, still: bool, error: str | None = None
    ) -> int:
        """Queue the step of a frame; return its number.

        ``after``: the step at which it was taken, 0 for none; ``error``: why it is incomplete, or None.
        """
        detail: codec.Json = {"after": after, "still": still}
        return self._put_step(Item([], [], ("frame", time_ns, took_ns, cause, error), detail, ()))

    def new_page(self) -> int:
        """A new page-version id."""
        page = self._next_page
        self._next_page += 1
        return page

    def _number(self, reads: Reads, pages: list[Page]) -> format.Generation:
        changed, ids = [], []
        for number, content, before in reads.changed:
            changed.append(number)
            if content is None:
                page = format.FAULT
            elif content == _ZERO_PAGE:
                page = format.ZERO
            else:
                page = self.new_page()
                pages.append(self._version(number, page, content, before))
            self._known.set(number, page)
            ids.append(page)
        return format.Generation(changed, ids, reads.same, False)

    def _version(self, number: int, page: int, content: bytes, before: bytes | None) -> Page:
        """How to store a version: as an XOR with the previous one unless the chain gets too long."""
        base = self._known.get(number)
        depth = self._depths.pop(number, format.MAX_DEPTH) + 1
        alone = before is None or base < format.FIRST_PAGE or depth >= format.MAX_DEPTH
        self._depths[number] = 0 if alone else depth
        if len(self._depths) > _DEPTHS:
            del self._depths[next(iter(self._depths))]
        return Page(page, content, 0, None) if alone else Page(page, content, base, before)

    def close(self, reason: str = "done") -> None:
        """Write the rest of the queue and ``reason``.  Raises `TargetError` if writing has failed."""
        self._sink.close(reason)

    def __enter__(self) -> Writer:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close; an error while closing does not replace the one that is being raised."""
        if error is None:
            self.close()
        else:
            with contextlib.suppress(TargetError):
                self.close(
                    "interrupted" if isinstance(error, (KeyboardInterrupt, GeneratorExit)) else str(error)
                )
