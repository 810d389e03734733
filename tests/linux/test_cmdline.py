"""Command lines as the kernel's get_mm_cmdline() has them."""

import pytest

from live.linux.cmdline import CommandLine, Strings, command_line

START = 0x7FFC0000_0F00
ARGV = b"nginx\0-g\0daemon off;\0"
ENVIRONMENT = b"PATH=/bin\0HOME=/\0"


def read_from(memory, gap=None):
    def read(start, length):
        at = start - START
        assert length > 0
        if gap is not None and at >= gap:
            return b""
        return memory[max(at, 0) : min(at + length, gap if gap is not None else len(memory))]

    return read


def strings(argv=ARGV, environment=ENVIRONMENT, apart=0):
    end = START + len(argv)
    return Strings(START, end, end + apart, end + apart + len(environment))


TITLE = b"nginx: worker process is shutting down"


@pytest.mark.parametrize(
    ("memory", "at", "args"),
    [
        (ARGV + ENVIRONMENT, strings(), ("nginx", "-g", "daemon off;")),
        (TITLE + b"\0ME=/\0", strings(), (TITLE.decode(),)),
        # The environment was moved (prctl PR_SET_MM): what is behind the arguments is not it.
        (TITLE + b"\0ME=/\0", strings(apart=4096), (TITLE[: len(ARGV)].decode(),)),
        # Shorter than argv, and the rest is still there: no title, by the kernel's rule.
        (b"nginx: x\0" + ARGV[9:] + ENVIRONMENT, strings(), ("nginx: x", *ARGV[9:-1].decode().split("\0"))),
        (b"x" * 8192 + b"\0", strings(b"x" * 100, b"y" * 8000), ("x" * 4096,)),
        (b"a\xffb\0" + ENVIRONMENT, strings(b"a\xffb\0"), ("a\udcffb",)),
        (ENVIRONMENT, strings(b""), None),
    ],
    ids=["argv", "title", "apart", "short title", "a page", "no UTF-8", "none"],
)
def test_what_the_kernel_shows(memory, at, args):
    found = command_line(at, read_from(memory))
    assert (found.args, found.truncated) == (args, False)


def test_more_than_is_kept_is_cut_and_said():
    assert command_line(strings(), read_from(ARGV + ENVIRONMENT), 8) == CommandLine(ARGV[:8], True)
    assert command_line(strings(), read_from(ARGV + ENVIRONMENT), len(ARGV)) == CommandLine(ARGV, False)
    title = TITLE + b"\0ME=/\0"
    assert command_line(strings(), read_from(title), 10) == CommandLine(TITLE[:10], True)


def test_what_is_not_in_ram_is_said():
    assert command_line(strings(), read_from(ARGV + ENVIRONMENT, gap=7)) == CommandLine(ARGV[:7], True)
    assert command_line(strings(), read_from(TITLE + b"\0", gap=30)) == CommandLine(TITLE[:30], True)
    assert command_line(strings(), read_from(ARGV, gap=0)) == CommandLine(b"", True)


@pytest.mark.parametrize("end", [START - 1, 0, START + (1 << 63)])
def test_wild_addresses_cost_nothing(end):
    found = command_line(Strings(START, end, end, end), read_from(ARGV), 1 << 12)
    assert len(found.raw) <= 1 << 12
