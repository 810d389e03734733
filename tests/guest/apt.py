"""Debian packages of any suite, through a private apt configuration.

The machine's own apt is only *read*: its sources say which mirror to ask, its configuration says which proxy
to use, its keyring says whom to trust. Lists, archives and pins are private to the lab's cache, so another
suite can be looked at without the machine ever knowing that suite. Signatures are always verified.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from . import cache
from .errors import FetchError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DEBIAN_SUITE = re.compile(
    r"(buster|bullseye|bookworm|trixie|forky|duke|sid|unstable|testing|stable|oldstable|oldoldstable)"
    r"(-updates|-backports|-proposed-updates)?"
)
_SECURITY_SUITE = re.compile(r"\w+(-security|/updates)")
_UNTRUSTED = re.compile(r"NO_PUBKEY|EXPKEYSIG|REVKEYSIG|Missing key|Signing key")
# Settings of the machine that must not reach the private apt: its paths, what runs after an update, extra
# indexes.
_NOT_INHERITED = re.compile(
    r"Dir\b|APT::Update::|DPkg::Post-Invoke|Acquire::IndexTargets|APT::Default-Release|CommandLine|Binary"
)
# What unpacked programs must take from the machine, or its dynamic linker and the C library would not match.
_MACHINES_OWN = re.compile(r"(libc6|libgcc-s1|gcc-\d+-base|libc-bin)=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrors:
    """Addresses of the Debian archives that the machine itself uses."""

    main: str
    security: str | None


def mirrors(etc: Path = Path("/etc/apt")) -> Mirrors:
    """Read the mirror addresses from the machine's apt sources (deb822 and one-line format).

    Raises FetchError if the machine has no Debian source.
    """
    main = security = None
    for uri, suite in _sources(etc):
        if _SECURITY_SUITE.fullmatch(suite) and "debian" in uri:
            security = security or uri
        elif _DEBIAN_SUITE.fullmatch(suite):
            main = main or uri
    if main is None:
        raise FetchError(
            f"no Debian mirror is named in the apt sources below {etc}: "
            "the lab needs a Debian machine, or one whose sources list a Debian suite"
        )
    return Mirrors(main=main, security=security)


def _sources(etc: Path) -> Iterator[tuple[str, str]]:
    """Every (URI, suite) of the machine's apt sources, in apt's own order."""
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    for file in files:
        try:
            text = file.read_text()
        except OSError:
            continue  # not there, or not ours to read: apt would skip it, too
        if file.suffix == ".list":
            yield from _one_line(text)
        elif file.suffix == ".sources":
            yield from _deb822(text)


def _one_line(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+(\S+)", line)
        if match:
            yield match[1], match[2]


def _deb822(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {
            key.lower(): value.split()
            for key, value in re.findall(r"(?m)^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza)
        }
        if "deb" in fields.get("types", ()) and fields.get("enabled", ["yes"]) != ["no"]:
            for uri in fields.get("uris", ()):
                for suite in fields.get("suites", ()):
                    yield uri, suite


class Apt:
    """apt as it would be on a machine whose sources list exactly *suites*.

    The security archive of a stable suite comes along by itself.
    """

    def __init__(self, *suites: str) -> None:
        self.suites = suites
        self.directory = cache.root() / "apt" / "+".join(suites)

    @cached_property
    def config(self) -> Path:
        """The private configuration file, after one ``apt-get update`` with it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with cache.locked(self.directory / "update"):
            return self._prepare()

    def _prepare(self) -> Path:
        config = self.directory / "apt.conf"
        config.write_text(self._configuration())
        keyring = self.directory / "keyring.gpg"
        done = self._update(config, keyring if keyring.exists() else KEYRING)
        if _UNTRUSTED.search(done) and "trixie" not in self.suites:
            # A newer suite is signed by keys that this machine's keyring may not know yet. A suite that it
            # does know carries the newer keyring as a package, verified by the older one: a chain, not a leap
            # of faith.
            newer = Apt("trixie").unpack("debian-archive-keyring")
            keyring.write_bytes((newer / KEYRING.relative_to("/")).read_bytes())
            done = self._update(config, keyring)
        if re.search(r"(?m)^(E|W|Err):? ?.*", done) and not self._has_lists():
            detail = next((line for line in done.splitlines() if re.match(r"E:|W:|Err", line)), "no answer")
            raise FetchError(
                f"the package lists of {', '.join(self.suites)} cannot be read from the mirror ({detail}): "
                "check the network or the machine's apt sources"
            )
        return config

    def _has_lists(self) -> bool:
        lists = [file.name for file in (self.directory / "lists").glob("*_Packages*")]
        return all(any(f"_dists_{suite}_" in name for name in lists) for suite in self.suites)

    def _configuration(self) -> str:
        for name in ("lists/partial", "archives/partial", "empty"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        inherited = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
        lines = [line for line in inherited.splitlines() if not _NOT_INHERITED.match(line)]
        own = {
            "Dir::State::lists": f"{self.directory}/lists/",
            "Dir::Cache": f"{self.directory}/",
            "Dir::Cache::archives": "archives/",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Dir::Etc::sourcelist": f"{self.directory}/sources.list",
            "Dir::Etc::sourceparts": f"{self.directory}/empty",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": f"{self.directory}/empty",
            "Dir::Etc::parts": f"{self.directory}/empty",
            "Dir::Etc::main": "/dev/null",
            "APT::Install-Recommends": "false",
            # The cache is in the user's own directory, which the _apt user may not enter.
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "30",
        }
        return "\n".join([*lines, *(f'{key} "{value}";' for key, value in own.items())]) + "\n"

    def _update(self, config: Path, keyring: Path) -> str:
        found = mirrors()
        option = f"[signed-by={keyring}] " if keyring.exists() else ""
        lines = [f"deb {option}{found.main} {suite} main" for suite in self.suites]
        release = self.suites[0]
        if found.security and release not in ("sid", "unstable"):
            lines.append(f"deb {option}{found.security} {release}-security main")
        (self.directory / "sources.list").write_text("\n".join(lines) + "\n")
        done = _run(["apt-get", "-q", "update"], config)
        return done.stdout + done.stderr

    def depends(self, package: str) -> list[str]:
        """Names that *package* depends on directly, alternatives included."""
        text = _run(["apt-cache", "depends", package], self.config).stdout
        return re.findall(r"(?m)^ [ |](?:Pre)?Depends: ([^<>\s]+)", text)

    def fetch(self, package: str, to: Path) -> Path:
        """Download *package* into the directory *to* and return the .deb file."""
        done = _run(["apt-get", "-q", "download", package], self.config, cwd=to)
        name = package.split("=", maxsplit=1)[0].split("/", maxsplit=1)[0]
        files = sorted(to.glob(f"{name}_*.deb"))
        if done.returncode or not files:
            raise FetchError(
                f"package {package} of {self.suites[0]} cannot be downloaded ({_last(done.stderr)}): "
                "check the network or the machine's apt sources"
            )
        return files[-1]

    def unpack_into(self, package: str, to: Path) -> None:
        """Download *package* and unpack its files below *to*; nothing is installed, no script of it runs."""
        deb = self.fetch(package, to)
        subprocess.run(["dpkg-deb", "-x", str(deb), str(to)], check=True)
        deb.unlink()

    def unpack(self, package: str) -> Path:
        """A cached directory with the files of *package*."""

        def build(work: Path) -> None:
            self.unpack_into(package, work)

        return cache.publish(cache.root() / "packages" / f"{package}.{self.suites[-1]}", build)

    def unpack_tree(self, name: str, packages: Sequence[str]) -> Path:
        """A cached directory with *packages* and all they need, to be run from there: see library_path()."""

        def build(work: Path) -> None:
            self.unpack_all([each for each in self.closure(packages) if not _MACHINES_OWN.match(each)], work)

        return cache.publish(cache.root() / "trees" / f"{name}.{self.suites[-1]}", build)

    def install(self, packages: Sequence[str], *, target: str) -> None:
        """Install *packages* from the suite *target* on this machine. Needs root."""
        command = ["apt-get", "-q", "install", "-y", "--no-install-recommends", "-t", target, *packages]
        # Waiting for dpkg's lock is apt's own job: another apt may be running on this machine.
        done = _run([*command, "-o", "DPkg::Lock::Timeout=600"], self.config)
        if done.returncode:
            raise FetchError(
                f"{' '.join(packages)} cannot be installed from {target} ({_last(done.stderr)}): "
                f"install QEMU 9 or newer by hand, or run as a user so that it is unpacked instead"
            )

    def closure(self, packages: Sequence[str]) -> list[str]:
        """*packages* and all they need, as ``name=version``: what apt would install on an empty machine."""
        nothing = self.config.with_name("no-packages")
        nothing.touch()
        command = [
            "apt-get",
            "-q",
            "-s",
            "install",
            "-t",
            self.suites[-1],
            "-o",
            f"Dir::State::status={nothing}",
        ]
        done = _run([*command, *packages], self.config)
        found = re.findall(r"(?m)^Inst (\S+) \((\S+) ", done.stdout)
        if not found:
            raise FetchError(
                f"{' '.join(packages)} cannot be had from {self.suites[-1]} ({_last(done.stderr)}): "
                "check the network or the machine's apt sources"
            )
        return [f"{name}={version}" for name, version in found]

    def unpack_all(self, packages: Sequence[str], to: Path) -> None:
        """Download *packages* and unpack their files below *to*, in one tree."""
        done = _run(["apt-get", "-q", "download", *packages], self.config, cwd=to)
        if done.returncode:
            raise FetchError(f"packages cannot be downloaded ({_last(done.stderr)}): check the network")
        for deb in sorted(to.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(deb), str(to)], check=True)
            deb.unlink()


def library_path(root: Path) -> str:
    """``LD_LIBRARY_PATH`` for programs of an unpacked tree."""
    places = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio")
    return ":".join(str(root / place) for place in places)


def _run(command: Sequence[str], config: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "APT_CONFIG": str(config),
        "LC_ALL": "C",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    try:
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FetchError(
            f"{command[0]} is missing: the lab fetches kernels with it, so use a Debian machine"
        ) from error


def _last(text: str) -> str:
    lines = (
        [line for line in text.splitlines() if line.startswith("E:")] or text.splitlines() or ["no message"]
    )
    return lines[0]
