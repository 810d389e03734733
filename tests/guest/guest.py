"""A real kernel in a real QEMU, as a context manager that cleans up after itself however it ends."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from . import cache, emulator, initramfs, kernels, truth
from .channel import Channel, Job, Result
from .errors import GuestError, GuestTimeout
from .monitor import Monitor
from .proc import ProcEntry
from .proc import parse as parse_proc
from .spec import GuestSpec
from .truth import Recorder

_CHUNK = 32 << 10
BOOT_TIMEOUT = 180.0


class Guest:
    """A running guest; create it with ``with Guest(GuestSpec(...)) as guest:``."""

    def __init__(
        self,
        spec: GuestSpec | None = None,
        *,
        kernel: kernels.Image | None = None,
        archive: Path | None = None,
    ) -> None:
        """*kernel* and *archive* (an initramfs) replace those that the spec names."""
        self.spec = spec or GuestSpec()
        self.kernel = kernel or kernels.fetch(self.spec.kernel)
        self.emulator = emulator.find(self.spec.qemu)
        self._initramfs = archive or initramfs.build(stress=self.spec.stress)
        self.boot_seconds = 0.0
        self._definitions: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._cleanup: weakref.finalize[Any, Any] | None = None

    # -- life

    def __enter__(self) -> Guest:
        self.launch()
        try:
            if not self.spec.paused:
                self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def launch(self) -> None:
        """Start QEMU, without waiting for the guest."""
        self._started = time.monotonic()
        self.directory, lock = _run_directory()
        self.monitor = self.directory / "monitor.sock"
        """A monitor (QMP) that is free for whoever is being tested; the lab has one of its own."""
        self._cleanup = weakref.finalize(self, _remove, self.directory, lock)
        ours, qemus = socket.socketpair()
        self._channel = Channel(lambda: self._spawn(qemus), self._diagnose)
        try:
            self._channel.open()
            qemus.close()
            if self.spec.monitor:
                self._monitor = Monitor(ours)
            else:
                ours.close()
        except (OSError, GuestError) as error:
            said = self._diagnose("QEMU did not start")
            self.close()
            raise GuestError(said) from error
        except BaseException:
            self.close()
            raise

    def wait_ready(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Wait until the guest takes commands."""
        if self.spec.state:
            while self.qmp("query-status")["status"] == "inmigrate":
                if time.monotonic() - self._started > timeout:
                    raise GuestTimeout(self._diagnose(f"{self.spec.state} was not read within {timeout:g} s"))
                time.sleep(0.01)
            self.cont()
            self._channel.booted()
        self._channel.wait_ready(timeout)
        self.boot_seconds = time.monotonic() - self._started

    def close(self) -> None:
        """End QEMU and remove everything that belongs to this guest. Harmless when repeated."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._channel.close()
            if hasattr(self, "_monitor"):
                self._monitor.close()
        if self._cleanup is not None:
            self._cleanup()

    def _spawn(self, monitor: socket.socket) -> None:
        """Start QEMU; runs in the channel's thread, because QEMU dies with the thread that started it."""
        agent = self._channel.guest_end
        # --pdeathsig: when pytest is killed, nothing of ours runs any more, and the kernel ends QEMU for us.
        command = ["setpriv", "--pdeathsig", "KILL", *self.emulator.command]
        command += self._arguments(agent.fileno(), monitor.fileno())
        with (self.directory / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **self.emulator.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(agent.fileno(), monitor.fileno()),
            )

    def _arguments(self, agent: int, monitor: int) -> list[str]:
        spec = self.spec
        backend = {
            "memfd": f"memory-backend-memfd,id=ram,size={spec.memory}M,share=on",
            # A directory: QEMU makes a file in it and unlinks it at once, so the next boot cannot find this
            # kernel in it.
            "file": f"memory-backend-file,id=ram,size={spec.memory}M,share=on,mem-path=/dev/shm",
            "private": f"memory-backend-ram,id=ram,size={spec.memory}M",
        }[spec.ram]
        arguments = ["-nodefaults", "-no-user-config", "-display", "none"]
        arguments += [
            "-machine",
            f"{spec.machine},memory-backend=ram",
            "-object",
            backend,
            "-m",
            f"{spec.memory}M",
        ]
        arguments += ["-accel", spec.accel, "-cpu", spec.cpu_model, "-smp", str(spec.cpus)]
        arguments += ["-kernel", str(self.kernel.vmlinuz), "-initrd", str(self._initramfs)]
        arguments += ["-append", spec.command_line()]
        arguments += [
            "-chardev",
            f"file,id=console,path={self.directory}/console.log",
            "-serial",
            "chardev:console",
        ]
        arguments += ["-chardev", f"socket,id=agent,fd={agent}", "-serial", "chardev:agent"]
        if spec.monitor:
            arguments += ["-chardev", f"socket,id=lab,fd={monitor}", "-mon", "chardev=lab,mode=control"]
            arguments += ["-qmp", f"unix:{self.monitor},server=on,wait=off"]
        for plugin in spec.plugins:
            arguments += ["-plugin", plugin]
        if not spec.reboot:
            arguments.append("-no-reboot")
        if spec.paused:
            arguments.append("-S")
        if spec.state:
            arguments += ["-incoming", f"file:{spec.state}"]
        return [*arguments, *spec.extra]

    # -- commands in the guest

    def start(self, command: str | list[str]) -> Job:
        """Start a command in the background: a shell line, or an argv, which starts exactly one process."""
        if isinstance(command, str):
            return self._channel.start(["/bin/sh", "-c", command], command)
        return self._channel.start(command, " ".join(command))

    def run(self, command: str | list[str], *, timeout: float = 60, check: bool = True) -> Result:
        """Run a command to its end. With *check*, raises CommandFailed unless its exit code is 0."""
        job = self.start(command)
        try:
            return job.wait(timeout, check=check)
        except (GuestTimeout, KeyboardInterrupt):
            job.kill()
            raise

    def push(self, source: Path | bytes, target: str) -> None:
        """Append a file's content to *target* in the guest (created, executable, if it is not there)."""
        data = source if isinstance(source, bytes) else source.read_bytes()
        for at in range(0, max(len(data), 1), _CHUNK):
            # One chunk at a time: the guest's tty drops what its buffers cannot take.
            self._channel.put(target, data[at : at + _CHUNK]).wait()

    def truth(self, *, events: Iterable[str] = (), buffer_kib: int = 8192) -> Recorder:
        """Record what really happens: ``with guest.truth() as recorder: ...``, then ``recorder.truth``.

        *events* are further trace events to record, for example ``raw_syscalls/sys_enter``; *buffer_kib* is
        per CPU.
        """
        return Recorder(self, self._kprobes(), events=events, buffer_kib=buffer_kib)

    def _kprobes(self) -> list[str]:
        if not self._definitions:
            offsets = self.run(["layout", *truth.members()]).output.split()
            self._definitions = truth.definitions(dict(zip(truth.members(), map(int, offsets), strict=True)))
        return self._definitions

    def proc_list(self) -> list[ProcEntry]:
        """The guest's own /proc, read in one pass; the process that reads it is left out."""
        job = self.start(["proclist"])
        return [entry for entry in parse_proc(job.wait().output) if entry.pid != job.pid]

    # -- QEMU

    @property
    def pid(self) -> int:
        """QEMU's process."""
        if self._process is None:
            raise GuestError("the guest does not run")
        return self._process.pid

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Execute a monitor command; ``_`` in argument names is ``-``."""
        return self._monitor.execute(
            command, {key.replace("_", "-"): value for key, value in arguments.items()}
        )

    def hmp(self, line: str) -> str:
        """Execute a line of the human monitor."""
        return str(self.qmp("human-monitor-command", command_line=line))

    def stop(self) -> None:
        self.qmp("stop")

    def cont(self) -> None:
        self.qmp("cont")

    def save(self, path: Path) -> None:
        """Stop the guest for good, and write its whole state: any number of guests can go on from it."""
        self.stop()
        self.qmp("migrate", uri=f"file:{path.absolute()}")
        while (status := self.qmp("query-migrate")["status"]) != "completed":
            if status == "failed":
                raise GuestError(self._diagnose(f"the guest's state could not be written to {path}"))
            time.sleep(0.05)

    def dump_elf(self, path: Path) -> Path:
        """Write guest memory as QEMU's ELF core."""
        self.qmp("dump-guest-memory", paging=False, protocol=f"file:{path.absolute()}")
        return path

    def dump_raw(self, path: Path) -> Path:
        """Write guest memory so that offsets in the file are guest-physical addresses; holes are sparse."""
        with path.open("wb") as out:
            for start, size in self.ram_segments():
                part = path.with_name(path.name + ".part")
                self.qmp("pmemsave", val=start, size=size, filename=str(part.absolute()))
                out.seek(start)
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out, 1 << 20)
                part.unlink()
        return path

    def ram_segments(self) -> list[tuple[int, int]]:
        """(guest-physical address, length) of RAM: what does not fit under the PCI hole starts at 4 GiB."""
        size = self.spec.memory << 20
        limit, low = (0xB0000000, 0x80000000) if "q35" in self.spec.machine else (0xE0000000, 0xC0000000)
        if size <= limit:
            return [(0, size)]
        return [(0, low), (1 << 32, size - low)]

    @property
    def console(self) -> str:
        """What the guest's kernel has said so far."""
        try:
            return (self.directory / "console.log").read_text(errors="replace")
        except OSError:
            return ""

    def _diagnose(self, sentence: str) -> str:
        """Complete an error: the panic in one line, and the end of the console and of QEMU's own messages."""
        console = self.console
        panic = re.search(r"Kernel panic - not syncing: (.*)", console)
        try:
            log = (self.directory / "qemu.log").read_text(errors="replace")
        except OSError:
            log = ""
        if panic:
            sentence += f": the guest's kernel panicked ({panic[1].strip()})"
        tail = "\n".join([*log.splitlines()[-10:], *console.splitlines()[-25:]])
        return f"kernel {self.kernel.release}, QEMU {self.emulator.version}: {sentence}\n{tail}".rstrip()


def _run_directory() -> tuple[Path, IO[str]]:
    """A directory of one guest's sockets and logs; also removes those whose owners were killed."""
    runs = cache.root() / "run"
    runs.mkdir(exist_ok=True)
    with cache.locked(runs / "sweep"):
        for old in runs.iterdir():
            if old.is_dir() and _abandoned(old):
                shutil.rmtree(old, ignore_errors=True)
        directory = Path(tempfile.mkdtemp(dir=runs, prefix="guest-"))
        lock = (directory / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    if len(os.fsencode(directory)) > 90:
        raise GuestError(
            f"the path {directory} is too long for a socket in it: set PSE_LAB_CACHE to a shorter one"
        )
    return directory, lock


def _abandoned(directory: Path) -> bool:
    try:
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _remove(directory: Path, lock: IO[str]) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    lock.close()
