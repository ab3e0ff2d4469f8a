"""Tests of saejax.training.log."""

import fcntl
import io
import json
import math
import os
import pathlib
import pty
import select
import struct
import subprocess
import sys
import tempfile
import termios

from absl.testing import absltest, parameterized
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from saejax import errors
from saejax.training import log, metrics_file


def events(folder: pathlib.Path) -> list[event_pb2.Event]:
  """All events in the order of their files, checksums checked."""
  found = []
  for path in sorted((folder / log.EVENTS).iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      (head,) = struct.unpack("<I", data[8:12])
      body, data = data[12 : 12 + length], data[12 + length :]
      (tail,) = struct.unpack("<I", data[:4])
      data = data[4:]
      assert head == masked_crc32c(struct.pack("<Q", length))
      assert tail == masked_crc32c(body)
      found.append(event_pb2.Event.FromString(body))
  return found


def visible_scalars(folder: pathlib.Path) -> list[tuple[int, str, float]]:
  """What TensorBoard shows: a START drops what earlier files had from it on."""
  shown: list[tuple[int, str, float]] = []
  for event in events(folder):
    if event.HasField("session_log"):
      shown = [s for s in shown if s[0] < event.step]
    for value in event.summary.value:
      shown.append((event.step, value.tag, round(value.simple_value, 6)))
  return shown


class FilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )

  def open(self, **kwargs) -> log.RunLog:
    opened = log.RunLog(self.folder, **{"stream": io.StringIO(), **kwargs})
    self.addCleanup(opened.close)
    return opened

  def write(self, steps, *, step=0, value=0.0):
    with log.RunLog(self.folder, step=step, stream=io.StringIO()) as opened:
      for s in steps:
        opened.record(s, 10 * s, {"a": {"loss": s + value}, "b": {"l0": 4}})

  def lines(self):
    return (self.folder / log.METRICS).read_text().splitlines()

  def test_a_record_is_one_strict_line_with_all_its_parts(self):
    self.write([3])
    (line,) = map(json.loads, self.lines())
    self.assertEqual(line["kind"], "train")
    self.assertEqual((line["step"], line["tokens"]), (3, 30))
    self.assertEqual(line["members"], {"a": {"loss": 3.0}, "b": {"l0": 4.0}})
    self.assertCountEqual(
      line["timing"], ["time", "seconds", "tokens_per_second", "wait_share"]
    )

  def test_non_finite_values_are_text_in_the_file_and_floats_again(self):
    values = {"x": math.nan, "y": math.inf, "z": -math.inf, "w": 1e-300}
    with self.open() as opened:
      opened.record(1, 1, {"a": values})

    def refuse(constant):
      raise AssertionError(f"{constant} is not JSON")

    (line,) = self.lines()
    members = json.loads(line, parse_constant=refuse)["members"]
    self.assertEqual(members["a"]["x"], "NaN")
    self.assertEqual(members["a"]["z"], "-Infinity")
    (record,) = log.read(self.folder)
    self.assertTrue(math.isnan(record["members"]["a"]["x"]))
    self.assertEqual(record["members"]["a"]["y"], math.inf)
    self.assertEqual(record["members"]["a"]["w"], 1e-300)

  def test_a_record_is_on_disk_before_record_returns(self):
    opened = self.open()
    opened.record(1, 1, {"a": {"loss": 2.0}})
    self.assertLen(log.read(self.folder), 1)
    self.assertEqual(visible_scalars(self.folder), [(1, "a/loss", 2.0)])

  def test_resuming_leaves_each_step_once_in_both_files(self):
    self.write([1, 2, 3, 4])
    self.write([3, 4, 5], step=2, value=0.5)
    self.assertEqual(
      [(r["step"], r["members"]["a"]["loss"]) for r in log.read(self.folder)],
      [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5), (5, 5.5)],
    )
    losses = [s for s in visible_scalars(self.folder) if s[1] == "a/loss"]
    self.assertEqual(
      [(step, value) for step, _, value in losses],
      [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5), (5, 5.5)],
    )

  def test_kept_lines_are_not_rewritten(self):
    self.write([1, 2, 3])
    before = self.lines()
    self.write([3], step=2)
    self.assertEqual(self.lines()[:2], before[:2])

  def test_a_run_that_starts_anew_has_no_old_records(self):
    self.write([1, 2, 3])
    self.write([1])
    self.assertEqual([r["step"] for r in log.read(self.folder)], [1])

  @parameterized.parameters(b'{"step": 3, "tok', b"\0\0\0\n", b"\xff\xfe")
  def test_a_torn_last_line_is_dropped(self, torn):
    self.write([1, 2])
    with open(self.folder / log.METRICS, "ab") as f:
      f.write(torn)
    self.assertLen(log.read(self.folder), 2)
    self.write([3], step=2)
    self.assertEqual([r["step"] for r in log.read(self.folder)], [1, 2, 3])

  def test_the_runs_own_time_adds_up_over_resumes(self):
    self.write([1])
    path = self.folder / log.METRICS
    (record,) = metrics_file.parse(path).records
    record["timing"]["seconds"] = 1000.0
    del record["sum"]
    path.write_bytes(metrics_file.line(record, "")[0])
    self.write([2], step=1)
    seconds = [r["timing"]["seconds"] for r in log.read(self.folder)]
    self.assertBetween(seconds[1], 1000.0, 1060.0)

  def test_kinds_are_told_apart_in_both_files(self):
    with self.open() as opened:
      opened.record(1, 1, {"a": {"loss": 1.0}})
      opened.record(1, 1, {"a": {"nmse": 0.5}}, kind="held_out")
    self.assertEqual(
      [r["kind"] for r in log.read(self.folder)], ["train", "held_out"]
    )
    self.assertEqual(
      visible_scalars(self.folder),
      [(1, "a/loss", 1.0), (1, "a/held_out/nmse", 0.5)],
    )

  def test_a_full_disk_is_an_input_error_with_what_to_do(self):
    script = """
import io, resource, sys
from saejax import errors
from saejax.training import log
opened = log.RunLog(sys.argv[1], stream=io.StringIO())
opened.record(1, 1, {"a": {"loss": 1.0}})
resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
try:
  for step in range(2, 9):
    opened.record(step, 1, {"a": {"loss": 1.0}})
except errors.InputError as e:
  print(e)
"""
    done = subprocess.run(
      [sys.executable, "-c", script, str(self.folder)],
      capture_output=True,
      text=True,
      timeout=60,
      env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    self.assertRegex(
      done.stdout, "^run_dir=.*room for metrics; free space.*\n$"
    )
    self.assertEmpty(done.stderr)
    self.assertEqual(log.read(self.folder)[0]["step"], 1)

  def test_a_folder_that_is_a_file_is_an_input_error(self):
    path = self.folder / "file"
    path.touch()
    with self.assertRaisesRegex(errors.InputError, "run_dir"):
      log.RunLog(path)


class ScreenTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )

  def terminal(self, columns: int):
    ours, theirs = pty.openpty()
    fcntl.ioctl(
      theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0)
    )
    stream = os.fdopen(theirs, "w")
    self.addCleanup(os.close, ours)
    self.addCleanup(stream.close)
    return ours, stream

  def read_terminal(self, ours: int) -> str:
    shown = b""
    while select.select([ours], [], [], 0.2)[0]:
      shown += os.read(ours, 100_000)
    return shown.decode()

  def show(self, stream, steps=(0, 10, 20), **kwargs):
    with log.RunLog(
      self.folder, total_steps=1000, stream=stream, **kwargs
    ) as opened:
      opened.record(
        1, 1, {"a": {"loss": 0.25, "l0": 8, "dead": 0.5}, "b": {"loss": 0.75}}
      )
      for step in steps:
        with opened.waiting():
          pass
        opened.progress(step, 2048 * step, force=True)
      opened.saved()
      opened.progress(steps[-1], 2048 * steps[-1], force=True)

  def test_plain_lines_say_everything(self):
    stream = io.StringIO()
    self.show(stream)
    first, *_, last = stream.getvalue().splitlines()
    self.assertIn("no checkpoint yet", first)
    self.assertRegex(
      last,
      r"^step 20/1,000 \(2%\)  \S+ tokens/s  ETA \S+  loss 0.5  L0 8"
      r"  dead 50.0%  data wait \d+%  checkpoint 0s ago$",
    )
    self.assertNotIn("\r", stream.getvalue())
    self.assertNotIn("\x1b", stream.getvalue())

  def test_plain_lines_come_at_intervals(self):
    stream = io.StringIO()
    with log.RunLog(
      self.folder, stream=stream, interval_seconds=1000.0
    ) as opened:
      for step in range(100):
        opened.progress(step, step)
    self.assertLen(stream.getvalue().splitlines(), 1)

  @parameterized.parameters(1, 20, 40, 80, 200)
  def test_a_terminal_has_one_line_that_never_wraps(self, columns):
    ours, stream = self.terminal(columns)
    self.show(stream, steps=(0, 10, 123_456))
    shown = self.read_terminal(ours)
    *redrawn, end = shown.split("\r")[1:]
    self.assertEqual(end, "\n")  # the terminal's own carriage return before it
    self.assertLen(redrawn, 4)
    for line in redrawn:
      self.assertEndsWith(line, "\x1b[K")
      self.assertLess(len(line.removesuffix("\x1b[K")), columns)
      self.assertNotIn("\n", line)

  def test_a_narrow_terminal_drops_whole_fields(self):
    ours, stream = self.terminal(40)
    self.show(stream)
    shown = self.read_terminal(ours).split("\r")
    self.assertRegex(shown[2], r"^step 10/1,000 \(1%\)  \S+ tokens/s\x1b\[K$")

  def test_a_line_of_its_own_stands_above_the_progress(self):
    ours, stream = self.terminal(60)
    with log.RunLog(self.folder, stream=stream) as opened:
      opened.progress(1, 1, force=True)
      opened.line("hello")
    shown = self.read_terminal(ours)
    self.assertIn("\r\x1b[Khello\r\nstep 1", shown)

  def test_a_broken_pipe_does_not_end_the_run(self):
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    self.addCleanup(stream.close)
    os.close(reader)
    self.show(stream)
    self.assertLen(log.read(self.folder), 1)

  def test_a_closed_stream_does_not_end_the_run(self):
    stream = io.StringIO()
    stream.close()
    self.show(stream)
    self.assertLen(log.read(self.folder), 1)

  def test_a_closed_terminal_does_not_end_the_run(self):
    ours, theirs = pty.openpty()
    stream = os.fdopen(theirs, "w")
    self.addCleanup(stream.close)
    os.close(ours)
    self.show(stream)
    self.assertLen(log.read(self.folder), 1)

  def test_a_process_whose_reader_left_exits_with_zero(self):
    script = """
import sys
from saejax.training import log
with log.RunLog(sys.argv[1], total_steps=9) as opened:
  sys.stdin.read()
  for step in range(1, 9):
    opened.progress(step, step, force=True)
"""
    process = subprocess.Popen(
      [sys.executable, "-c", script, str(self.folder)],
      stdin=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    process.stderr.close()
    process.stdin.close()
    self.assertEqual(process.wait(timeout=60), 0)


if __name__ == "__main__":
  absltest.main()
