"""Trap modes: every process of every workload, exactly once, with the right fields, in the guest's order.

A small version of `python -m tests.accuracy`, which makes docs/ACCURACY.md.
"""

import pytest

from tests.accuracy.run import measure, trappable
from tests.guest import GuestSpec
from tests.guest.workloads import workloads

pytestmark = pytest.mark.guest


def every_workload(kernel, n):
    return [list(work.argv) for work in workloads(n, group_exit=kernel != "5.10")]


@pytest.mark.parametrize("kernel", ["5.10", pytest.param("6.1", marks=pytest.mark.deep), "6.12", "7.2"])
def test_plugin_mode_is_exact(kernel):
    with trappable(GuestSpec(kernel=kernel)) as guest:
        outcome = measure(guest, "plugin", every_workload(kernel, 3))
    assert outcome.score.exact, str(outcome.score)
    assert outcome.missed == 0
    assert outcome.processes > 300


@pytest.mark.parametrize(
    "spec", [GuestSpec(cpus=4), GuestSpec(cpu_model="Skylake-Client")], ids=["4cpus", "pti"]
)
def test_plugin_mode_is_exact_on_many_cpus_and_with_pti(spec):
    with trappable(spec) as guest:
        if spec.cpu_model != "qemu64":
            assert (
                "Mitigation: PTI" in guest.run("cat /sys/devices/system/cpu/vulnerabilities/meltdown").output
            )
        outcome = measure(guest, "plugin", every_workload(spec.kernel, 3))
    assert outcome.score.exact, str(outcome.score)
    assert outcome.missed == 0


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(GuestSpec(kernel="5.10", cpus=2), marks=pytest.mark.deep),
        GuestSpec(kernel="6.12", cpu_model="Skylake-Client"),
        GuestSpec(kernel="7.2", cpus=4),
        GuestSpec(qemu="7.2"),
    ],
    ids=["5.10 2cpus", "6.12 pti", "7.2 4cpus", "old qemu"],
)
def test_gdbstub_mode_is_exact(boot, spec):
    outcome = measure(boot(spec), "gdbstub", every_workload(spec.kernel, 3))
    assert outcome.score.exact, str(outcome.score)
    assert outcome.missed == 0
    assert outcome.processes > 300


@pytest.mark.parametrize(
    "spec",
    [
        GuestSpec(kernel="5.10"),
        pytest.param(GuestSpec(kernel="6.1", cpus=2), marks=pytest.mark.deep),
        GuestSpec(kernel="6.12", cpus=2, cpu_model="Skylake-Client"),
        # Without PTI a root of page tables may be any page there.
        GuestSpec(kernel="7.2"),
    ],
    ids=["5.10", "6.1 2cpus", "6.12 2cpus pti", "7.2"],
)
def test_asid_mode_is_exact(spec):
    """No function is trapped; what it counts as missed are threads that come and go between two changes."""
    with trappable(spec) as guest:
        outcome = measure(guest, "asid", every_workload(spec.kernel, 3))
    assert outcome.score.exact_of_processes, str(outcome.score)
    assert outcome.processes > 300


def test_diff_mode_sees_less_than_asid_mode():
    """The control: what system calls and marks are worth."""
    with trappable(GuestSpec()) as guest:
        outcome = measure(guest, "diff", [["vfork-exit", "20"], ["fork-exec", "20"]])
    rows = outcome.score.rows
    assert rows["fork"].missed + rows["exec"].wrong > 0
    assert rows["fork"].false == rows["exec"].false == rows["end"].false == 0
    assert outcome.missed >= rows["fork"].missed
