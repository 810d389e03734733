"""The contract of memory on a recording: as it was at an event where all of it was recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from live.core.memory import MemoryReader
from live.recording.opening import open_recording
from live.recording.past_memory import StateMemory
from live.recording.stepper import Frames
from live.testing import MemoryContract
from tests.recording.build import Lab


class TestPastMemory(MemoryContract):
    @pytest.fixture
    def memory(self, tmp_path: Path) -> Iterator[MemoryReader]:
        lab = Lab(tmp_path, Frames(start=True))
        lab.guest.task(1, b"init")
        lab.steps.attach()
        lab.writer.close()
        with open_recording(lab.path) as recording:
            memory = StateMemory(recording, recording.step(2))
            assert memory.complete
            yield memory
