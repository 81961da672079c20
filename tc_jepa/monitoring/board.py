"""TensorBoard's files of a run."""

from collections.abc import Mapping
import os
from pathlib import Path
import time

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from tc_jepa.storage.faults import writing

INTERVAL = 120  # seconds after which what was written can be read


class Board:
    """Writes scalars for TensorBoard into a new file of a folder, which may be in a bucket. Methods raise StorageFault.

    tensorboardX's SummaryWriter writes in a thread. An error of the disk ends that thread, and then the next calls wait
    for it without end.
    """

    def __init__(self, folder: Path, first: int):
        """TensorBoard will hide what earlier files have from step `first` on."""
        self._folder, self._flushed = folder, time.monotonic()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(os.path.join(folder, "events"))
            start = Event(step=first, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START))
            self._events.write_event(start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of a step by name."""
        with writing(self._folder):
            for name, value in values.items():
                self._events.write_event(Event(step=step, wall_time=time.time(), summary=summary.scalar(name, value)))
            if time.monotonic() - self._flushed > INTERVAL:
                self._events.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        with writing(self._folder):
            self._events.close()
