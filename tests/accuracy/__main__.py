"""``python -m tests.accuracy``: torture guests, and say how exact the events were.

With ``--results`` a long campaign can be ended and gone on
with; the tables are made of all that file holds.
"""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tests.accuracy import matrix, poll
from tests.accuracy.campaign import Result, run_case
from tests.accuracy.options import INEXACT, KERNELS, MODES, add_options
from tests.accuracy.poll import Recall
from tests.accuracy.report import markdown
from tests.guest.command import run_command
from tests.guest.errors import LabError

_TRIES = 2


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for; 1 if a trap mode was not exact."""
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy", description=__doc__)
    add_options(parser)
    options = parser.parse_args(argv)
    # A full collection over all documents takes a second, in which nobody would read what pse watch writes,
    # and it would stand, and the guest with it.
    gc.disable()
    cpus = options.cpus or ([1] if options.quick else [1, 2, 4])
    pti = [word == "on" for word in options.pti or (["off"] if options.quick else ["off", "on"])]
    modes = options.mode or list(MODES)
    kernels = options.kernel or list(KERNELS)
    words = ["python", "-m", "tests.accuracy", *(argv if argv is not None else sys.argv[1:])]
    results, recalls, notes = _kept(options.results)
    done = {result.case for result in results}
    failed = False
    todo = [case for case in matrix.all_cases(kernels, modes, cpus, pti) if case not in done]
    if todo:
        notes["command"].append(shlex.join(words))
        _keep(options.results, "command", shlex.join(words))
    for case in todo:
        wanted = options.processes or (matrix.QUICK if options.quick else matrix.PROCESSES)[case.mode]
        result = _run(case, wanted, stress=not (options.no_stress or options.quick))
        if result is None:
            failed = True
            continue
        results.append(result)
        _keep(options.results, "case", result.document())
    if "poll" in modes:
        for kernel in kernels:
            if any(recall.kernel == kernel for recall in recalls):
                continue
            for recall in poll.run(kernel, 10 if options.quick else 40):
                recalls.append(recall)
                _keep(options.results, "recall", recall.document())
    text = markdown(results, recalls, notes["command"], notes["note"])
    if options.output:
        options.output.write_text(text)
    else:
        print(text)
    exact = all(result.exact for result in results if result.case.mode not in INEXACT)
    return 1 if failed or not exact else 0


def _run(case: matrix.Case, processes: int, *, stress: bool) -> Result | None:
    """A guest may fail to boot on a loaded machine: it is tried again, and said."""
    for _ in range(_TRIES):
        print(f"{time.strftime('%H:%M:%S')} {case}: {processes} processes ...", file=sys.stderr, flush=True)
        try:
            result = run_case(case, processes, with_stress=stress)
        except (LabError, AssertionError, OSError, subprocess.TimeoutExpired) as error:
            print(f"{case}: {error}", file=sys.stderr)
            continue
        verdict = "exact" if result.exact else "NOT EXACT"
        print(
            f"{case}: {verdict}, {result.processes} processes in {result.seconds:.0f} s",
            *(f"\n  {note}" for row in result.rows.values() for note in row.notes if case.mode != "poll"),
            f"\n  {result.summary}",
            file=sys.stderr,
            flush=True,
        )
        return result
    return None


def _kept(file: Path | None) -> tuple[list[Result], list[Recall], dict[str, list[str]]]:
    results: list[Result] = []
    recalls: list[Recall] = []
    notes: dict[str, list[str]] = {"command": [], "note": []}
    if file is not None and file.exists():
        for line in file.read_text().splitlines():
            kind, document = json.loads(line)
            if kind == "case":
                results.append(Result.of(document))
            elif kind == "recall":
                recalls.append(Recall(**document))
            else:
                notes[kind].append(document)
    return results, recalls, notes


def _keep(file: Path | None, kind: str, document: object) -> None:
    if file is not None:
        with file.open("a") as out:
            out.write(json.dumps([kind, document]) + "\n")


if __name__ == "__main__":
    run_command(main)
