"""Makes the bundled recordings: ``python -m tests.recording.make [NAME ...]``.

Each is of one boot of the lab, in plugin mode if its name says no other, and is kept only if the guest's own
record confirms every event in it.  The golden events beside it are the recorded ones, as neutral JSON lines
(`live.recording.codec`).
"""

import json
import sys
import tempfile
from pathlib import Path

from live.recording.codec import dumps, encode_event
from live.recording.opening import open_recording
from tests.accuracy.compare import compare
from tests.guest import GuestSpec
from tests.guest.command import run_command
from tests.recording.run import record, trappable

DATA = Path(__file__).parents[1] / "data"
SPECS = {
    "5.10": GuestSpec(kernel="5.10"),
    "6.1": GuestSpec(kernel="6.1", cpus=2),
    "6.12": GuestSpec(kernel="6.12", cpu_model="max"),
    "7.2": GuestSpec(kernel="7.2", cpu_model="Skylake-Client"),
    "6.12-asid": GuestSpec(kernel="6.12"),
}
"""Four kernels; two vCPUs, 5-level paging and page-table isolation once each."""
LIMIT = 2 << 20


def golden(path):
    """The events of a recording, one line each."""
    with open_recording(path) as recording:
        return "".join(dumps(encode_event(one.event)).decode() + "\n" for one in recording.events())


def mode_of(name):
    return name.partition("-")[2] or "plugin"


def make(kernel):
    spec = SPECS[kernel]
    values = {name: getattr(spec, name) for name in GuestSpec.__dataclass_fields__}
    named = GuestSpec(**{**values, "extra": ("-name", f"linux-{kernel}")})
    with tempfile.TemporaryDirectory() as directory, trappable(named) as guest:
        path = Path(directory) / "run.pse"
        with guest.truth() as recorder:
            lines, said = record(guest, path, "--mode", mode_of(kernel), "--level", "19", "--kernel-threads")
        score = compare(recorder.truth, map(json.loads, lines.splitlines()))
        print(said, score, f"{path.stat().st_size} bytes", sep="\n")
        if not score.exact or path.stat().st_size > LIMIT:
            raise SystemExit(f"the recording of {kernel} is not fit to be kept")
        (DATA / f"linux-{kernel}.pse").write_bytes(path.read_bytes())
        (DATA / f"linux-{kernel}.jsonl").write_text(golden(path))


def main(kernels):
    for kernel in kernels or SPECS:
        make(kernel)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
