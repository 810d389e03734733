"""Everything that can be done with a recording, for files that are none: `PseError` is the only way out."""

import os
import time

from live.core.errors import PseError
from live.recording.filters import find_event
from live.recording.opening import open_recording
from live.recording.past_memory import StateMemory
from live.recording.replay import Replay

LIMIT_S = 20


def consume(path):
    """Use all of a file; returns the error that ended it, None for a sound one."""
    directory = sorted(os.listdir(path.parent))
    began = time.monotonic()
    try:
        with open_recording(path) as recording:
            events = [one.event for one in recording.events()]
            replay = Replay(recording)
            replayed = [event for _, event in replay.events()]
            for step in recording.steps():
                if step.id % 7 == 2 or step.kind == "frame":
                    memory = StateMemory(recording, step, last_known=True)
                    for number in memory.nonzero():
                        memory.read(number << 12, 4096)
            if events:
                find_event(recording, "last")
                find_event(recording, "any:*")
            recording.end()
            return None if not replay.differences and events == replayed else "differs"
    except PseError as error:
        return error
    finally:
        assert time.monotonic() - began < LIMIT_S
        assert sorted(os.listdir(path.parent)) == directory
