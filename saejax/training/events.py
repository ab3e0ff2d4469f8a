"""A TensorBoard event file, written in the caller's thread.

`tensorboardX.SummaryWriter` writes in its own thread, where the error of a full
disk would be lost.
"""

import os
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import Any

import tensorboardX
from tensorboardX.proto import event_pb2, summary_pb2

# Protocol buffers create their classes at import, unseen by type checkers.
_proto: Any = event_pb2
_summary: Any = summary_pb2


class EventFile:
  """Scalars by tag, on disk when a call returns.

  Args:
    folder: folder of event files; created if missing.
    purge_step: TensorBoard drops records of earlier files from this step on.
  """

  def __init__(self, folder: pathlib.Path, purge_step: int):
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.iterdir()))  # distinguishes files of one second
    name = f"events.out.tfevents.{int(time.time())}.{number}"
    path = folder / f"{name}.{socket.gethostname()}.{os.getpid()}"
    self._writer = tensorboardX.RecordWriter(str(path))
    self._add(_proto.Event(file_version="brain.Event:2"), time.time())
    start = _proto.SessionLog(status=_proto.SessionLog.START)
    event = _proto.Event(session_log=start, step=purge_step)
    self._add(event, time.time())
    self._writer.flush()

  def scalars(self, step: int, now: float, tags: Mapping[str, float]) -> None:
    """Adds scalars of a step.

    Args:
      step: the step.
      now: time in seconds since 1970.
      tags: values by name.
    """
    values = [
      _summary.Summary.Value(tag=tag, simple_value=value)
      for tag, value in tags.items()
    ]
    summary = _summary.Summary(value=values)
    self._add(_proto.Event(summary=summary, step=step), now)
    self._writer.flush()

  def close(self) -> None:
    """Closes the file."""
    self._writer.close()

  def _add(self, event: Any, now: float) -> None:
    event.wall_time = now
    self._writer.write(event.SerializeToString())
