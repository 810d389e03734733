"""A recording as a source of guest memory and of steps: the file, and its pages as they were at each step."""

from __future__ import annotations

from live.adapters.recording.file import Recording
from live.adapters.recording.memory import ReplayMemory, StateMemory
from live.adapters.recording.opening import is_recording, open_recording

__all__ = ["Recording", "ReplayMemory", "StateMemory", "is_recording", "open_recording"]
