"""Hypervisors and outputs by name: ours, third-party ones, broken ones, and what a target means."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from live.cli.main import main
from live.core.errors import NoTarget, TargetError
from live.core.hypervisor import GuestInfo
from live.hypervisors import registry as hypervisors
from live.output import registry as outputs


class Toy:
    """What the entry points below lead to."""

    scheme, title = "toy", "a toy"

    def __init__(self, *guests):
        self._guests = guests

    def guests(self):
        return self._guests

    def attach(self, target):
        return self.scheme, target


TOY = Toy(GuestInfo(name="web"), GuestInfo(name="db", pid=77))
TWIN = Toy(GuestInfo(name="web"))
TWIN.scheme = "twin"


def entries(monkeypatch, registry, **values):
    known = registry.KNOWN
    found = {name: EntryPoint(name=name, value=value, group=known.group) for name, value in values.items()}
    monkeypatch.setattr(known, "packages", found)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(hypervisors.KNOWN, "built_in", {"none": "tests.test_registries:NONE"})
    entries(monkeypatch, hypervisors, toy="tests.test_registries:TOY")


class Silent(Toy):
    scheme = "none"

    def attach(self, target):
        raise NoTarget(f"there is no guest {target}")


NONE = Silent()


def test_a_scheme_leads_to_its_hypervisor(toy):
    assert hypervisors.schemes() == ("none", "toy")
    assert hypervisors.attach("toy:anything/at:all") == ("toy", "anything/at:all")
    assert hypervisors.attach("toy:") == ("toy", None)


def test_a_name_or_a_pid_is_enough_where_it_is_the_only_one(toy):
    assert hypervisors.attach("web") == ("toy", "web")
    assert hypervisors.attach("77") == ("toy", "77")
    with pytest.raises(NoTarget, match="there is no guest mail"):
        hypervisors.attach("mail")
    with pytest.raises(NoTarget, match=r"Several guests are running: toy:web, toy:db; name one"):
        hypervisors.attach(None)


def test_two_guests_of_one_name_are_told_apart(toy, monkeypatch):
    entries(monkeypatch, hypervisors, toy="tests.test_registries:TOY", twin="tests.test_registries:TWIN")
    with pytest.raises(
        NoTarget, match="Several guests are called web: toy:web, twin:web; name one of them as"
    ):
        hypervisors.attach("web")
    assert hypervisors.attach("twin:web") == ("twin", "web")


def test_the_only_guest_of_all_hypervisors_needs_no_name(toy, monkeypatch):
    entries(monkeypatch, hypervisors, twin="tests.test_registries:TWIN")
    assert hypervisors.attach(None) == ("twin", "web")


@pytest.mark.parametrize("where", ["tests.test_registries:MISSING", "no.such.package:X"])
def test_a_broken_package_is_a_sentence_and_hides_no_other(monkeypatch, where):
    entries(monkeypatch, hypervisors, toy="tests.test_registries:TOY", broken=where)
    with pytest.raises(TargetError, match=r"the hypervisor broken .* cannot be loaded .*remove its package"):
        hypervisors.hypervisor("broken")
    assert ("toy", "web") in [(one.scheme, info.name) for one, info in hypervisors.guests()]
    entries(monkeypatch, outputs, broken=where)
    with pytest.raises(TargetError, match=r"the output broken .* cannot be loaded .*remove its package"):
        outputs.output("broken")


class Failing(Toy):
    scheme = "failing"

    def guests(self):
        raise RuntimeError("no license")


FAILING = Failing()


def test_a_package_that_fails_is_told_of_and_hides_no_other(toy, monkeypatch, capsys):
    entries(
        monkeypatch,
        hypervisors,
        toy="tests.test_registries:TOY",
        failing="tests.test_registries:FAILING",
        broken="no.such.package:X",
    )
    told = []
    assert [info.name for _, info in hypervisors.guests(told.append)] == ["web", "db"]
    assert len(told) == 2
    assert "the hypervisor broken" in told[0]
    assert told[1].startswith("the hypervisor failing cannot list its guests (RuntimeError('no license'));")
    assert hypervisors.attach("web") == ("toy", "web")
    assert main(["vms"]) == 0
    out, err = capsys.readouterr()
    assert "web" in out
    assert "cannot list its guests" in err


def test_what_is_not_there_is_told_with_what_is():
    with pytest.raises(TargetError, match="there is no hypervisor magic; there are: qemu, process"):
        hypervisors.hypervisor("magic")
    with pytest.raises(TargetError, match="there is no output magic; there are: table, plain, ecs"):
        outputs.output("magic")


def test_ours_cannot_be_taken_over(monkeypatch):
    entries(monkeypatch, hypervisors, qemu="tests.test_registries:TOY")
    assert hypervisors.hypervisor("qemu").title == "QEMU"
    assert hypervisors.schemes() == ("qemu", "process")


@pytest.mark.parametrize("name", outputs.BUILT_IN)
def test_every_output_of_ours_can_be_made(name):
    assert callable(outputs.output(name))


@pytest.mark.parametrize("scheme", hypervisors.BUILT_IN)
def test_every_hypervisor_of_ours_is_what_its_scheme_says(scheme):
    assert hypervisors.hypervisor(scheme).scheme == scheme
