"""Writes a recording: numbers pages and steps, and hands them on.

`Writer.step` is called while a vCPU may be held: it only tells which pages are new, and what they differ
from.  The rest is done beside it, by `live.recording.sink`.
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
"""Pages for which it is remembered how many versions ago one was stored alone; others are stored alone."""
_ZERO_PAGE = bytes(PAGE_SIZE)


class _Numbers:
    """The id of the last recorded version of every page, 4 bytes a page of guest RAM: 0.1 % of it."""

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
    """A recording that is being written; a context manager.  One thread calls `step` and `frame_part`."""

    def __init__(
        self, path: Path | str, header: Header, symbols: bytes, *, force: bool = False, level: int = 3
    ) -> None:
        """Create the file and start the thread.

        ``symbols``: text of the ISF; ``level``: zstd's, for pages.  Raises `TargetError` if ``path``
        exists and not ``force``, or cannot be written.
        """
        self.path = Path(path)
        self._sink = Sink(self.path, header, symbols, force=force, level=level)
        self._known = _Numbers(header.segments)
        self._depths: dict[int, int] = {}
        self._next_page, self._generation, self._events, self.last_step = format.FIRST_PAGE, 0, 0, 0

    @property
    def waited_ns(self) -> int:
        """ns for which steps waited because the disk could not keep up."""
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
        """Hand over a step; returns its number.  Raises `TargetError` if writing has failed."""
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
        """Id of the last version of a page that was recorded, 0 for none."""
        return self._known.get(number)

    def frame_part(self, changed: list[tuple[int, int]], contents: dict[int, bytes], *, whole: bool) -> None:
        """A part of a frame: (page number, id) of what changed, and the content of ids that are new.

        Ids come from `new_page`; the last part has ``whole``, and `frame` follows.
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
        """The frame is over.

        ``after``: the step whose memory it is, 0 for none; ``error``: why it is incomplete.
        """
        detail: codec.Json = {"after": after, "still": still}
        return self._put_step(Item([], [], ("frame", time_ns, took_ns, cause, error), detail, ()))

    def new_page(self) -> int:
        """A fresh id."""
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
        """How to store a version: as a difference from the one before, if that leads to no long chain."""
        base = self._known.get(number)
        depth = self._depths.pop(number, format.MAX_DEPTH) + 1
        alone = before is None or base < format.FIRST_PAGE or depth >= format.MAX_DEPTH
        self._depths[number] = 0 if alone else depth
        if len(self._depths) > _DEPTHS:
            del self._depths[next(iter(self._depths))]
        return Page(page, content, 0, None) if alone else Page(page, content, base, before)

    def close(self, reason: str = "done") -> None:
        """Write what is still waiting, and say that this is the end.  Raises `TargetError` if that failed."""
        self._sink.close(reason)

    def __enter__(self) -> Writer:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close; an error on the way out does not hide the one that led here."""
        if error is None:
            self.close()
        else:
            with contextlib.suppress(TargetError):
                self.close(
                    "interrupted" if isinstance(error, (KeyboardInterrupt, GeneratorExit)) else str(error)
                )
