"""How many tasks came and went unseen, by the kernel's own counters.

Theory of operation
-------------------
`total_forks` counts the tasks (processes and threads) that were ever created.  It never decreases
in one boot, and wraps at 2**64.  (tid, start_boottime) identifies a task and never repeats in one
boot.  So between two consistent snapshots

    unseen = created - found

``created``: by how much `total_forks` has grown.  ``found``: the tasks that are on the new list or
were reported by a trap since, and are not on the old list.  Zero proves that every task was seen.
A task of which nothing else is known is counted as one, whether it was a process or a thread.

Listed before counted: `copy_process()` (kernel/fork.c) puts a task on the list and increments
`total_forks` afterwards.  It holds `tasklist_lock` meanwhile, which an observer outside the guest
does not take.  A snapshot may therefore find more tasks than were created.  The surplus
(``uncounted``) is what the next snapshot will see as created and not find anew.

Torn snapshots: the guest changed the list while it was read.  The entries are sound, the list may
be incomplete, and the counters may belong to another list.  A torn snapshot counts nothing.  What
it found is kept as if a trap had reported it, until the next consistent snapshot.

Found and not shown: a task inside execve is found, but it is shown (has a start event) only when a
later snapshot or a trap has it complete.  If it leaves the list before that, it was missed
(``unfinished``).  If only a torn snapshot had it, it does not count as found.

Shown late: the trap of a death may show a process whose birth was not seen.  If a snapshot has
counted a task as missed since (``unseen``), it is taken to be this one, and is taken back.

Limits
------
The guest's root can write the counters and the task list.  `missed` is a proof only for a guest
that is not hostile.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from live.core.events import Identity
from live.core.snapshot import Counters, Snapshot

_MAX_CREATED = 1 << 40
"""Tasks between two snapshots.  A larger number is a counter that was turned back, modulo 2**64."""


class Accounting:
    """Counts the tasks that were created and never shown.

    For each snapshot call `count`, hand its moments to the state machine, then call `settle`.
    ``known`` are in both the identities that are live or dead, as far as the tracker knows at that
    time.  Raises nothing: what a hostile guest reports makes wrong counts at most.
    """

    def __init__(self) -> None:
        """Nothing is counted before the second consistent snapshot."""
        self.missed = 0
        """Tasks that were created and never shown, up to now."""
        self.counters: Counters | None = None
        """The kernel's counters at the last consistent snapshot."""
        self._tids: frozenset[tuple[int, int]] = frozenset()
        """All tasks on the last consistent list."""
        self._trapped: set[tuple[int, int]] = set()
        """Tasks that traps, or torn snapshots, have found since."""
        self._uncounted = 0
        """How many tasks were found before `total_forks` counted them."""
        self._unseen = 0
        """How many tasks the last consistent snapshot counted as missed, less those shown since."""
        self._unfinished: set[Identity] = set()
        """Those on the last consistent list that have not been shown: they were inside execve."""

    def created(self, tid: int, start: int) -> None:
        """A trap reported a new task, process or thread.  ``start``: its `start_boottime` in ns."""
        self._trapped.add((tid, start))

    def count(self, snapshot: Snapshot, known: AbstractSet[Identity]) -> None:
        """Count what came and went since the snapshot before."""
        if snapshot.torn:
            inside_execve = {task.identity for task in snapshot.tasks if task.transient and not task.dead}
            self._trapped |= snapshot.tids - (inside_execve - known)
            return
        if self.counters is not None:
            created = (snapshot.counters.forks - self.counters.forks) % (1 << 64)
            found = len((snapshot.tids | self._trapped) - self._tids)
            if created < _MAX_CREATED:
                unseen = created - found - self._uncounted
                self._unseen = max(unseen, 0)
                self._uncounted = max(-unseen, 0)
                self.missed += self._unseen
        self.counters = snapshot.counters
        self._tids = snapshot.tids
        self._trapped.clear()

    def settle(self, snapshot: Snapshot, known: AbstractSet[Identity]) -> None:
        """Take note of what the snapshot found and did not show; count what left the list like that."""
        if snapshot.torn:
            return
        listed = {task.identity for task in snapshot.tasks}
        self.missed += len(self._unfinished - listed)
        self._unfinished = listed - known

    def shown(self, identity: Identity) -> None:
        """A process is live or dead now: whatever becomes of it, it is not missed."""
        self._unfinished.discard(identity)

    def shown_late(self, identity: Identity) -> None:
        """The death of a process was its first moment: its birth was not seen."""
        if identity in self._tids:
            return
        if self._unseen:
            self._unseen -= 1
            self.missed -= 1
        else:
            self._trapped.add(identity)
