"""The C compiler for the programs that run in the guest: the machine's, or one unpacked into the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from .apt import Apt, library_path
from .errors import FetchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """A command that compiles C, and the environment that it needs."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def compile(self, source: Path, binary: Path, flags: tuple[str, ...] = ()) -> None:
        """Compile *source*. Raises FetchError with what the compiler said."""
        environment = {**os.environ, **self.environment}
        command = [*self.command, *flags, "-o", str(binary), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise FetchError(f"{source.name} does not compile, install gcc and libc6-dev:\n{done.stderr}")

    def works(self) -> bool:
        """Tell whether it makes a static program: a compiler may be there, and the C library's files not."""
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory) / "probe.c"
            source.write_text(
                '#include <stdio.h>\n#include <linux/btf.h>\nint main(void) { return puts("") < 0; }\n'
            )
            try:
                self.compile(source, source.with_suffix(""), ("-static",))
            except (FetchError, OSError):
                return False
        return True


def find() -> Compiler:
    """Return what makes static programs: ``$CC``, gcc, cc, or Debian's gcc unpacked into the cache."""
    for name in (os.environ.get("CC"), "gcc", "cc"):
        if name and (path := shutil.which(name)) and (found := Compiler(command=(path,))).works():
            return found
    found = _unpacked()
    if not found.works():
        raise FetchError(
            "no C compiler works here: install gcc and libc6-dev, the guest's programs are compiled here"
        )
    return found


def _unpacked() -> Compiler:
    root = Apt("bookworm").unpack_tree("gcc", ["gcc", "libc6-dev"])
    binaries = root / "usr" / "bin"
    gcc = next(path for path in sorted(binaries.glob("x86_64-linux-gnu-gcc-[0-9]*")))
    return Compiler(
        command=(str(gcc), f"--sysroot={root}", f"-B{binaries}/"),
        environment={"LD_LIBRARY_PATH": library_path(root)},
    )
