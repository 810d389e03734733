"""Real kernels: what `vol` prints of their memory is what they say of themselves."""

import json
import signal
import subprocess
import time

import pytest

from tests.accuracy.run import trappable
from tests.guest import KERNELS, Guest, GuestSpec
from tests.guest.apt import Apt
from tests.volplugins import matrix, scene
from tests.watch import Watch

pytestmark = pytest.mark.guest
PACKS = scene.packs()


@pytest.fixture(
    scope="module",
    params=[("6.1", "qemu64"), ("7.2", "max"), pytest.param(("5.10", "max"), marks=pytest.mark.deep)],
    ids="-".join,
)
def taken(request, guest_pool, tmp_path_factory):
    """(guest's truth, its RAM file, its ELF core, a later RAM file, and what ran between the two)."""
    kernel, cpu = request.param
    guest = guest_pool.get(GuestSpec(kernel=kernel, cpu_model=cpu))
    directory = tmp_path_factory.mktemp("images")
    scene.prepare(guest, bash=False)
    truth = scene.truth(guest)
    guest.stop()
    first = scene.copy_ram(guest, directory / "first.raw")
    core = guest.dump_elf(directory / "first.elf")
    guest.cont()
    new = guest.start(["sleep", "777"])
    pid = new.wait_pid()
    (victim,) = [one for one, comm in truth.users.items() if comm == "nc"]
    guest.run(f"kill -9 {victim}")
    later = scene.truth(guest)
    guest.stop()
    second = scene.copy_ram(guest, directory / "second.raw")
    guest.cont()
    new.kill()
    for one, comm in later.users.items():
        if comm in ("sleep", "nc"):
            guest.run(f"kill -9 {one} || true")
    return truth, later, first, core, second, pid, victim


@pytest.fixture
def vol(tmp_path, tmp_path_factory):
    symbols = tmp_path_factory.getbasetemp() / "symbols"

    def run(*arguments, pack=PACKS[0], **options):
        found = scene.vol(*map(str, arguments), cwd=tmp_path, symbols=symbols, pack=pack, **options)
        assert found.status == 0, found.errors
        return found

    return run


@pytest.mark.parametrize("pack", PACKS, ids=["installed", "checkout"][: len(PACKS)])
def test_pslist_without_a_symbol_table_is_the_guests_own_list(taken, vol, pack):
    truth, _, first, core, *_ = taken
    for image in (first, core):
        run = vol("-f", image, "linux.pslist", pack=pack)
        assert matrix.CHECKS["linux.pslist"](run, truth), run.rows


@pytest.mark.parametrize(
    "plugin", [name for name in matrix.CHECKS if name not in ("linux.bash", "linux.pslist")]
)
def test_stock_plugins(taken, vol, plugin):
    truth, _, first, *_ = taken
    run = vol("-f", first, plugin)
    assert matrix.CHECKS[plugin](run, truth), run.rows


def test_a_series_of_images(taken, vol):
    truth, later, first, _, second, pid, victim = taken
    run = vol("-f", first, "linux.pse", "--next", second)
    running = {row["PID"]: row["COMM"] for row in run.rows if row["REASON"] == "running"}
    assert running == truth.users
    changes = [row for row in run.rows if row["REASON"] != "running" and row["SEEN BY"] == "image"]
    started = [(row["PID"], row["COMM"], row["ARGS"]) for row in changes if row["EVENT"] == "start"]
    assert started == [(pid, "sleep", "sleep 777")]
    ended = [(row["PID"], row["COMM"], row["EXIT"]) for row in changes if row["EVENT"] == "end"]
    assert [(pid, comm) for pid, comm, _ in ended] == [(victim, "nc")]
    # Its task_struct may have been used again since; then how it died is unknown, never wrong.
    assert ended[0][2] in ("SIGKILL", None)
    assert set(running) - {victim} | {pid} == set(later.users)


def test_the_order_of_a_series_does_not_matter(taken, vol):
    _, _, first, _, second, *_ = taken
    right = vol("-f", first, "linux.pse", "--next", second)
    wrong = vol("-f", second, "linux.pse", "--next", first)
    assert wrong.rows == right.rows
    assert "not in the order in which they were taken" in wrong.errors


def test_images_of_two_boots_are_refused(taken, guest_pool, vol, tmp_path):
    _, _, first, *_ = taken
    with Guest(GuestSpec(kernel="6.1")) as other:
        other.stop()
        foreign = scene.copy_ram(other, tmp_path / "other.raw")
    run = scene.vol(
        "-f", str(first), "linux.pse", "--next", str(foreign), cwd=tmp_path, symbols=tmp_path, pack=PACKS[0]
    )
    assert (run.status, run.rows) == (1, [])
    assert "is of another boot than" in run.errors


def test_pids_and_tree(taken, vol):
    truth, _, first, *_ = taken
    run = vol("-f", first, "linux.pse", "--pid", "1")
    assert [(row["PID"], row["COMM"], row["EVENT"]) for row in run.rows] == [(1, "init", "start")]
    tree = vol("-f", first, "linux.pse", "--tree", "--kernel-threads")
    depth = {row["PID"]: row["TreeDepth"] for row in tree.rows if row["EVENT"] == "start"}
    assert set(depth) >= set(truth.users) | set(matrix.lasting(truth.threads))
    assert depth[1] == depth[2] == 0
    assert all(
        depth[row["PID"]] == depth[row["PPID"]] + 1
        for row in tree.rows
        if row["EVENT"] == "start" and row["PPID"]
    )


def test_every_renderer_shows_every_process(taken, vol):
    truth, _, first, *_ = taken
    for renderer in ("quick", "csv", "json", "jsonl", "pretty", "rich"):
        run = vol("-f", first, "linux.pse", renderer=renderer)
        assert run.output.count("running") == len(truth.users), renderer


def test_programs_out_of_memory(taken, vol, tmp_path):
    """Every page of code that was in memory is the page of the file that the guest runs."""
    truth, _, first, *_ = taken
    (sleeper,) = [pid for pid, comm in truth.users.items() if comm == "sleep"]
    run = vol("-o", tmp_path, "-f", first, "linux.pse", "--dump", "--pid", sleeper)
    name, _, rest = run.rows[0]["File output"].partition(" ")
    dumped = (tmp_path / name).read_bytes()
    original = (Apt("bookworm").unpack("busybox-static") / "bin" / "busybox").read_bytes()
    code = range(0x1000, 0x180000, 0x1000)
    missing = [at for at in code if not any(dumped[at : at + 0x1000])]
    assert [
        at for at in code if at not in missing and dumped[at : at + 0x1000] != original[at : at + 0x1000]
    ] == []
    assert 0 < len(missing) < len(code)
    assert rest.endswith("pages missing)")


def test_the_timeline(taken, vol):
    truth, _, first, *_ = taken
    run = vol("-f", first, "timeliner", "--plugin-filter", "Pse")
    started = [row["Description"] for row in run.rows if row["Description"].endswith(" started")]
    assert len(started) == len(truth.users)


def test_a_live_guest(guest_pool, vol):
    guest = guest_pool.get(GuestSpec(kernel="6.1"))
    job = guest.start("while :; do sleep 0.4; done")
    try:
        url = f"qemu://{guest.monitor}"
        run = vol("-f", url, "linux.pse", "--new", "--count", "8", "--duration", "120")
        assert len(run.rows) == 8
        assert {row["COMM"] for row in run.rows if row["EVENT"] == "end"} >= {"sleep"}
        listed = vol("-f", url, "linux.pslist")
        assert {row["PID"] for row in listed.rows} >= {1, 2, job.wait_pid()}
        assert "is running: what is read changes" in listed.errors
    finally:
        job.kill()


def test_a_live_guest_in_the_mode_that_is_asked_for(tmp_path, vol):
    with trappable(GuestSpec()) as guest:
        job = guest.start("while :; do sleep 0.4; done")
        url = f"qemu://{guest.monitor}"
        run = vol("-f", url, "linux.pse", "--mode", "asid", "--new", "--count", "8", "--duration", "60")
        assert "asid mode: Every process is seen before its first instruction" in run.errors
        assert {row["COMM"] for row in run.rows if row["EVENT"] == "end"} >= {"sleep"}
        options = {"cwd": tmp_path, "symbols": tmp_path / "symbols", "pack": PACKS[0]}
        refused = scene.vol("-f", url, "linux.pse", "--mode", "magic", **options)
        assert refused.status == 1
        assert "in magic mode; it can in: plugin, gdbstub, asid, diff, poll" in refused.errors
        job.kill()


def test_volatility_and_pse_watch_at_once_show_the_same_events(tmp_path):
    """Each through a monitor of its own, as a monitor serves one at a time."""
    second = tmp_path / "second.sock"
    monitor = ("-qmp", f"unix:{second},server=on,wait=off")
    with Guest(GuestSpec(extra=monitor)) as guest:
        # It is ended by Ctrl-C, to which a shell's background job is deaf, and what it starts is, too.
        command = ["env", "--default-signal=INT", *scene.command(PACKS[0])]
        command += ["-f", f"qemu://{second}", "linux.pse"]
        # Errors into nothing: whoever does not read them makes vol wait.
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path
        ) as vol:
            assert vol.stdout is not None
            first = next(line for line in vol.stdout if line.startswith("{"))
            with Watch(str(guest.monitor), "--mode", "poll") as watch:
                job = guest.start(["slow", "3"])
                program = job.wait_pid()
                job.wait()
                time.sleep(0.5)
            vol.send_signal(signal.SIGINT)
            lines = [first, *vol.stdout]
    assert vol.returncode == 0
    columns = ("EVENT", "REASON", "PID", "PPID", "COMM", "ARGS", "EXE", "EXIT")
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    by_vol = [tuple(row[name] for name in columns) for row in rows if row["PPID"] == program]
    by_watch = [shown(each) for each in watch.documents if each["process"]["parent"]["pid"] == program]
    assert by_vol == by_watch
    assert len(by_vol) == 3 * 5, "a start, the three events of an exec, and an end, three times"


def shown(document):
    """The document as Volatility's columns have it."""
    process, own = document["process"], document["pse"]
    status = process.get("exit_code")
    return (
        own["event"].removeprefix("Process").lower(),
        own["reason"],
        process["pid"],
        process["parent"]["pid"],
        process["name"],
        process["command_line"],
        process["executable"],
        None if status is None else str(status),
    )


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_ram_above_the_hole(vol, tmp_path, machine):
    with Guest(GuestSpec(kernel="6.12", memory=4096, machine=machine)) as guest:
        truth = scene.truth(guest)
        guest.stop()
        image = scene.copy_ram(guest, tmp_path / "ram")
    run = vol("-f", image, "linux.pslist")
    assert matrix.CHECKS["linux.pslist"](run, truth), run.rows
    assert "the hole below 4 GiB is not in it" in run.errors


def test_a_users_own_table_wins(taken, vol, tmp_path, tmp_path_factory):
    """A table of exactly this banner in a symbol directory is used, and ours is not even made."""
    _, _, first, *_ = taken
    vol("-f", first, "linux.pslist")
    made = tmp_path_factory.getbasetemp() / "symbols"
    empty = tmp_path / "empty"
    # A cache of its own: the user's index of banners may name a table of the same kernel from elsewhere.
    (tmp_path / "cache").mkdir()
    run = scene.vol(
        "--cache-path",
        str(tmp_path / "cache"),
        "-s",
        str(made),
        "-f",
        str(first),
        "--save-config",
        "config.json",
        "linux.pslist",
        cwd=tmp_path,
        symbols=empty,
        pack=PACKS[0],
    )
    assert run.status == 0, run.errors
    assert str(made) in (tmp_path / "config.json").read_text()
    assert list(empty.rglob("*.json")) == []


def test_the_lab_has_the_kernels():
    assert {"5.10", "6.1", "6.12", "7.2"} <= set(KERNELS)
