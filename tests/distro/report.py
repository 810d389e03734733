"""The table of a run."""

from __future__ import annotations

from collections.abc import Iterator

from tests.distro.fields import Count
from tests.distro.run import Outcome

_COLUMNS = ("compared", "held", "right", "moved", "later", "unreadable", "wrong")


def text(outcome: Outcome, *, examples: int = 4) -> str:
    """Events, then fields, then the first examples of each field that is not right."""
    lines = [
        f"Debian on {outcome.kernel}, QEMU {outcome.qemu}, {outcome.cpus} vCPU{'s' * (outcome.cpus > 1)}, "
        f"mode {outcome.mode}: {outcome.processes} processes; systemd says {outcome.state!r}",
        f"{outcome.looks} looks at /proc, {outcome.held} of them held; "
        f"their queue overflowed {outcome.lost} times",
        "",
        str(outcome.score),
        f"invariants broken: {len(outcome.invariants)}; {outcome.summary}",
        "",
        f"fields of {outcome.fields.compared} of {outcome.fields.events} events, "
        f"{outcome.fields.held} with a look at the same moment",
        f"{'':20}" + "".join(f"{name:>11}" for name in _COLUMNS),
    ]
    counts = {**outcome.fields.counts, **outcome.boots}
    for name, count in counts.items():
        lines.append(f"{name:20}" + "".join(f"{getattr(count, column):11}" for column in _COLUMNS))
    for name, count in counts.items():
        lines += _examples(name, count, examples)
    lines += [f"broken: {each}" for each in outcome.invariants[:5]]
    lines += [f"failed in the guest: {each}" for each in outcome.failed]
    lines += [f"too early: {each}" for each in dict.fromkeys(outcome.attempts)]
    took = ", ".join(f"{name} {seconds:.0f}" for name, seconds in outcome.seconds.items())
    return "\n".join([*lines, f"seconds: {took}"])


def _examples(name: str, count: Count, most: int) -> Iterator[str]:
    for verdict in ("wrong", "unreadable"):
        kinds = [(kind, n) for kind, n in count.kinds.most_common() if kind.startswith(verdict)]
        for kind, number in kinds[:most]:
            yield f"{name}: {number} {kind}\n    {count.examples[kind]}"
        if len(kinds) > most:
            yield f"{name}: {len(kinds) - most} more kinds of {verdict}"
