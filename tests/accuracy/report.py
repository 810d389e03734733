"""The results as Markdown: docs/ACCURACY.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.accuracy.campaign import Result
from tests.accuracy.compare import KERNEL, Row
from tests.accuracy.options import INEXACT, MODES
from tests.accuracy.poll import CLASSES, Recall

_INTRO = """\
# How exact are the events?

`pse watch --json` beside the guest's own record of what happened, in real guests, event by event. This
file is made by

    {command}

and holds what was really run, on {dates}, with QEMU {qemu} (TCG), on kernels
{releases}.

- **true**: starts by fork, execs and ends that the guest recorded; **seen**: those of them that
  `pse watch` showed; **missed** and **false**: the rest on either side; **wrong**: shown with a wrong
  field, of these: pid, start time, ppid, comm, exit code, signal, core flag, and for the lab's own
  programs exe and argv[0].
- **raced**: seen, with the ppid that it had when it was trapped; its parent died on another vCPU before the
  guest's own probe, which comes a moment later, looked. Or with the one that it got when it was given away
  between that probe and our look, its parent's end being out by then. Counted as right.
- **unknown**: ends that are shown as `gone`: the process was reaped, and its memory used again, before we
  looked. How it ended is not said.
- The record is made by kprobes that the guest's tracer reads (`tests/guest/truth.py`). A record that
  shares no probed function with us, the scheduler's own events, is compared in
  `tests/accuracy/test_independence.py`, as are all fields with the guest's `/proc`.
- **order**: within each process, the events are in the order of the guest.
- **invariants broken**, over the whole stream, also between two portions of the record: one start and
  at most one end for each process, each after the other; exec as end, exec, start.
- **tasks missed** is what `pse watch` says itself at its end, from the kernel's own counters.
- **kernel threads**: what is shown of them, which is not in the other columns. Where asid changes are trapped
  they are seen by chance: they have no asid and make no system call. What is not is in *tasks missed*.
- **held**: mean time in microseconds that a vCPU was held at a trap, on this machine while others used it;
  `python -m tests.bench hold` has the median.
- **as listed**: how many of the workloads did exactly what their table (`tests/guest/workloads.py`)
  says, by the guest's record: the torture was what it claims to be.
"""


_RATES = ("recall", "precision")
_MODES = """\
## All modes

Processes only. Recall: which part of what happened was shown. Precision: which part of what was shown
happened, with every compared field right. `asid` and `diff` are the idea of PANDA's `osi_pse`. Nobody has
published a count for that one; of the rows below, by its README and code: start, exec without fork and fork
only are seen partly, an end when the thread group is dead, a signal told apart from an exit code, a failed
exec, an identity that survives reuse of the pid, and a count of what was lost are not.
"""


def markdown(
    results: Sequence[Result], recalls: Sequence[Recall], commands: Sequence[str], notes: Sequence[str] = ()
) -> str:
    """The whole file."""
    results = sorted(results, key=_order)
    parts = [
        _INTRO.format(
            command="\n    ".join(dict.fromkeys(commands)),
            dates=_listed(r.date for r in results),
            qemu=_listed(r.qemu for r in results),
            releases=_listed(r.release for r in results),
        )
    ]
    parts.append(_all_modes(results))
    for mode in dict.fromkeys(result.case.mode for result in results):
        of_mode = [result for result in results if result.case.mode == mode]
        parts.append(_mode(mode, of_mode))
        parts.append(_contract(mode, of_mode))
    if recalls:
        parts.append(_recall(recalls))
    parts.append(_notes(results, notes))
    return "\n".join(part for part in parts if part)


def _order(result: Result) -> tuple[int, tuple[int, ...], bool, int]:
    case = result.case
    version = tuple(int(part) for part in case.kernel.split("."))
    return (MODES.index(case.mode), version, case.pti, case.cpus)


def _listed(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def table(titles: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """A Markdown table; the first ``left`` columns are text, the others numbers."""
    marks = ["---" if at < left else "---:" for at in range(len(titles))]
    lines = [titles, marks, *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _all_modes(results: Sequence[Result]) -> str:
    """Recall and precision by mode and kind, over all guests."""
    rows = []
    for mode in dict.fromkeys(result.case.mode for result in results):
        of_mode = [result for result in results if result.case.mode == mode]
        cells = []
        for kind in ("fork", "exec", "end"):
            found = [result.rows[kind] for result in of_mode if kind in result.rows]
            true, seen = sum(row.true for row in found), sum(row.seen for row in found)
            false, wrong = sum(row.false for row in found), sum(row.wrong for row in found)
            cells += [f"{_percent(seen, true)} of {true:,}", _percent(seen - wrong, seen + false)]
        rows.append((mode, *cells))
    titles = [
        "mode",
        "starts: recall",
        "precision",
        "execs: recall",
        "precision",
        "ends: recall",
        "precision",
    ]
    return f"{_MODES}\n{table(titles, rows)}"


def _percent(part: int, whole: int) -> str:
    """To a hundredth, cut and not rounded: only all is 100 %."""
    return f"{part * 10_000 // whole / 100:.2f} %" if whole else "-"


def _mode(mode: str, results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        case, total = result.case, Row("all")
        for name, row in result.rows.items():
            for count in (
                ("true", "seen", "missed", "false", "wrong", "raced", "unknown") if name != KERNEL else ()
            ):
                setattr(total, count, getattr(total, count) + getattr(row, count))
        kernel = result.rows.get(KERNEL, Row(KERNEL))
        kinds = [result.rows[kind].true if kind in result.rows else 0 for kind in ("fork", "exec", "end")]
        rows.append(
            (
                case.kernel,
                case.cpus,
                "on" if case.pti else "off",
                result.processes,
                result.threads,
                "/".join(str(kind) for kind in kinds),
                total.true,
                total.seen,
                total.missed,
                total.false,
                total.wrong,
                total.raced,
                total.unknown,
                f"{kernel.seen} of {kernel.true}",
                "right" if result.ordered else "WRONG",
                result.invariants,
                result.missed,
                "-" if result.held_us is None else f"{result.held_us:.0f}",
                "/".join(str(count) for count in result.known),
            )
        )
    titles = ["kernel", "vCPUs", "PTI", "processes", "threads", "starts/execs/ends"]
    titles += ["true", "seen", "missed", "false", "wrong", "raced", "unknown", "kernel threads"]
    titles += ["order", "invariants broken"]
    titles += ["tasks missed", "held us", "as listed"]
    sums = f"{sum(r.processes for r in results):,} processes in {len(results)} guests; "
    sums += f"{sum(r.exact for r in results)} of {len(results)} exact."
    return f"## Mode {mode}\n\n{sums}\n\n{table(titles, rows)}"


def _contract(mode: str, results: Sequence[Result]) -> str:
    kernels = list(dict.fromkeys(result.case.kernel for result in results))
    names = list(dict.fromkeys(name for result in results for name in result.groups))
    if not names:
        return ""
    rows = []
    for name in names:
        cells = []
        for kernel in kernels:
            groups = [r.groups[name] for r in results if r.case.kernel == kernel and name in r.groups]
            true, seen = sum(g.true for g in groups), sum(g.seen for g in groups)
            off = sum(g.missed + g.false + g.wrong + g.unknown for g in groups)
            cells.append(f"{seen} of {true}" + (f", {off} off" if off else ""))
        rows.append((name, *cells))
    head = (
        f"### The rows of the contract, mode {mode}\n\nEvents seen of true events, all vCPU counts and PTI "
    )
    head += "settings together; anything missed, false, wrong or unknown would be counted as *off*.\n"
    return f"{head}\n{table(['row', *kernels], rows)}"


def _recall(recalls: Sequence[Recall]) -> str:
    head = """## Mode poll: recall by lifetime

Processes seen of processes that lived that long (as the guest's own record has it), and what it says that
it missed beside what it really missed. The machine was shared: a look may have been late.
"""
    rows = []
    for each in recalls:
        cells = [f"{seen} of {true}" for true, seen in each.classes.values()]
        rows.append((each.kernel, f"{each.interval_ms} ms", *cells, each.missed, each.really, each.false))
    titles = ["kernel", "interval", *CLASSES, "says missed", "really missed", "false"]
    return f"{head}\n{table(titles, rows, left=2)}"


def _notes(results: Sequence[Result], notes: Sequence[str]) -> str:
    lines = [f"- {note}" for note in notes]
    for result in results:
        if result.case.mode in INEXACT:
            continue
        for row in result.rows.values():
            lines += [f"- {result.case}: {row.kind}: {note}" for note in row.notes]
        if result.lost:
            lines.append(
                f"- {result.case}: {result.lost} portions were not judged: the guest's record had a gap"
            )
        if result.unexpected or result.torn:
            text = f"{result.unexpected} unexpected moments, {result.torn} torn looks"
            lines.append(f"- {result.case}: {text}, counted and repaired")
    nothing = "Nothing, in the modes that promise to see everything."
    return "## What was not exact\n\n" + ("\n".join(lines) if lines else nothing) + "\n"
