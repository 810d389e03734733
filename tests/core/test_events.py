import pytest

from live.core.events import ExitStatus


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (0, ExitStatus(code=0, signal=None, core=False)),
        (3 << 8, ExitStatus(code=3, signal=None, core=False)),
        (9, ExitStatus(code=None, signal=9, core=False)),
        (11 | 0x80, ExitStatus(code=None, signal=11, core=True)),
        (-1, ExitStatus(code=None, signal=127, core=True)),
    ],
)
def test_exit_status(raw, status):
    assert ExitStatus.from_kernel(raw) == status
