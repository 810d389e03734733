"""`--pid N`: the guest of any VMM by its process's memory alone, end to end."""

from __future__ import annotations

import json
import socket
import subprocess
import time

import pytest

from tests.accuracy.campaign import quiet
from tests.accuracy.poll import _identity
from tests.guest.fixtures import Boot
from tests.guest.guest import Guest
from tests.guest.truth import TruthFork
from tests.watch import Watch, pse

BIG = 5 << 10
"""MiB: more than fits under the PCI hole of either machine."""


def ps(*arguments: str) -> tuple[set[tuple[int, str]], str]:
    """({(pid, comm)}, what was said beside it)."""
    run = pse("ps", "--json", *arguments)
    assert run.returncode == 0, run.stderr
    documents = [json.loads(line) for line in run.stdout.splitlines()]
    return {(d["process"]["pid"], d["process"]["name"]) for d in documents}, run.stderr


def asked(guest: Guest) -> set[tuple[int, str]]:
    """The same from the guest's own /proc, kernel workers left out: they come, go and change their names."""
    return {(entry.pid, entry.comm) for entry in guest.proc_list() if not entry.comm.startswith("kworker")}


def poll_exactly(guest: Guest, *target: str) -> str:
    """Watch while processes come and go; what is shown and what is counted is what there was."""
    with guest.truth(buffer_kib=16384) as recorder, Watch(*target, "--kernel-threads") as watch:
        running = {_identity(d) for d in watch.documents}
        for command in (["fork-exit", "60"], ["fork-exec", "30"], ["sh", "-c", "sleep 0.3; sleep 0.2"]):
            guest.start(command).wait(600)
        quiet(watch)
        time.sleep(0.05)
    created = {(e.pid, e.start) for e in recorder.truth.events if isinstance(e, TruthFork)} - running
    seen = {_identity(d) for d in watch.documents} - running
    assert seen - created == set(), "shown, and never was"
    assert watch.missed == len(created - seen), "came and went unseen"
    assert seen, "what lived for longer than a few intervals is shown"
    return watch.errors


@pytest.mark.parametrize(
    ("machine", "ram", "memory"),
    [("q35", "private", 512), ("q35", "memfd", BIG), ("pc", "private", BIG), ("pc", "memfd", BIG)],
)
def test_a_qemu_without_any_monitor(boot: Boot, machine: str, ram: str, memory: int) -> None:
    guest = boot(machine=machine, ram=ram, memory=memory, monitor=False)
    shown, said = ps("--pid", str(guest.pid))
    assert asked(guest) <= shown
    assert said == "", "nothing but the list, where everything is as it should be"
    errors = poll_exactly(guest, f"process:{guest.pid}")
    assert "poll mode" in errors
    assert ("copied" if ram == "private" else "mapped") in errors


def test_a_qemu_whose_monitor_somebody_else_has(boot: Boot) -> None:
    guest = boot()
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(guest.monitor))
        other.recv(1)
        for target in (str(guest.monitor), str(guest.pid)):
            shown, said = ps(target)
            assert asked(guest) <= shown
            assert "its memory alone is read, and it can be polled only" in said
            assert "another program uses it" in said
        errors = poll_exactly(guest, str(guest.pid))
        assert "poll mode" in errors
        refused = pse("watch", str(guest.pid), "--mode", "gdbstub", "--duration", "1")
    assert refused.returncode == 1
    assert "cannot be watched in gdbstub mode; it can in: poll" in refused.stderr


def test_volatility_reads_it_too(boot: Boot, tmp_path) -> None:
    from tests.volplugins import scene

    guest = boot(monitor=False, ram="private")
    run = scene.vol(
        "-f", f"process:///{guest.pid}", "linux.pslist", cwd=tmp_path, symbols=tmp_path, pack=scene.packs()[0]
    )
    assert run.status == 0, run.errors
    assert {pid for pid, _ in asked(guest)} <= {row["PID"] for row in run.rows} | {
        row["TID"] for row in run.rows
    }


@pytest.mark.parametrize(
    ("target", "sentence"),
    [("999999999", "process"), ("2", "runs no guest"), ("self", "could be RAM of a guest")],
)
def test_what_is_no_guest_is_one_sentence(target: str, sentence: str) -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        run = pse("ps", "--pid", target if target.isdigit() else str(sleeper.pid))
        sleeper.kill()
    assert run.returncode == 1
    assert sentence in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_a_guest_that_ends_while_it_is_watched(boot: Boot) -> None:
    guest = boot(fresh=True, monitor=False)
    with Watch("--pid", str(guest.pid)) as watch:
        guest.close()
        assert watch.wait() == 3
    assert "has ended" in watch.errors
    assert "Traceback" not in watch.errors
