"""The launcher on small programs: prefixes, losses, signals, exit codes."""

import contextlib
import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from absl.testing import absltest, parameterized

from saejax import launching
from tests import shared

# A process does what its number says; one that waits ends by SIGTERM with 143.
PROGRAM = """
import os, signal, sys, time
flags = dict(a[2:].split("=") for a in sys.argv[1:] if a.startswith("--"))
number = int(flags["distributed.process"])
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
what = flags["do"].split(",")[number]
print("ready", number, flags["distributed.processes"], flush=True)
if what == "lose":
  os.kill(os.getpid(), signal.SIGKILL)
if what == "abort":  # as JAX's runtime does, after a while
  print("UNAVAILABLE: The following tasks are unhealthy:\\n0\\n7\\nx", flush=True)
  os.kill(os.getpid(), signal.SIGABRT)
if what == "wait":
  time.sleep(60)
sys.exit(int(what))
"""


class LaunchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.program = pathlib.Path(self.create_tempdir().full_path) / "program.py"
    self.program.write_text(PROGRAM)

  def launched(self, do: str, **settings) -> tuple[int, str]:
    """The exit code and what was said."""
    said = io.StringIO()
    chosen = launching.Config(processes=do.count(",") + 1, **settings)
    with contextlib.redirect_stderr(said):
      code = launching.launch([str(self.program), f"--do={do}"], chosen)
    return code, said.getvalue()

  @parameterized.parameters(
    ("0,0,0", 0),
    ("0,2", 2),  # refused
    ("1,75", 1),  # an error, which the other noticed
    ("lose,75", 75),
    ("143,143", 143),
  )
  def test_the_exit_code_is_that_of_what_failed_first(self, do, wanted):
    code, said = self.launched(do)
    self.assertEqual(code, wanted, said)
    count = do.count(",") + 1
    for number in range(count):
      self.assertIn(f"[{number}] ready {number} {count}\n", said)

  def test_a_lost_process_is_named_and_the_others_are_stopped(self):
    began = time.monotonic()
    code, said = self.launched("wait,lose,0", heartbeat_timeout_seconds=1)
    self.assertLess(time.monotonic() - began, 30)  # not the 60 of the wait
    self.assertEqual(code, launching.LOST)
    self.assertIn("process 1 was lost: SIGKILL\n", said)
    self.assertIn("process 2 is done\n", said)
    self.assertIn("process 0 is stopped, since another one failed\n", said)

  def test_what_the_runtime_lost_is_named(self):
    # The first process hangs.
    code, said = self.launched("wait,abort", heartbeat_timeout_seconds=1)
    self.assertEqual(code, launching.LOST)
    self.assertIn("process 1 was aborted, by JAX's runtime", said)
    for number in (0, 7):
      self.assertIn(f"\nprocess {number} was lost, by JAX's runtime\n", said)

  @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
  def test_a_signal_stops_all(self, number):
    script = shared.ROOT / "experiments" / "launch_local.py"
    command = [script, "--processes=2", "--", self.program, "--do=wait,wait"]
    with subprocess.Popen(
      [sys.executable, *map(str, command)],
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, "PYTHONPATH": str(shared.ROOT)},
    ) as started:
      said = ""
      while said.count("] ready") < 2:
        said += (line := started.stderr.readline())
        self.assertTrue(line, said)
      started.send_signal(number)
      said += started.stderr.read()
    self.assertEqual(started.returncode, 143, said)
    self.assertRegex(said, f"{signal.Signals(number).name}: stopping all")

  def test_a_command_is_needed_and_must_start(self):
    script = shared.ROOT / "experiments" / "launch_local.py"
    done = subprocess.run(
      [sys.executable, str(script), "--processes=2"],
      capture_output=True,
      text=True,
      env={**os.environ, "PYTHONPATH": str(shared.ROOT)},
    )
    self.assertEqual(done.returncode, 2)
    self.assertStartsWith(done.stderr, "command=: must follow after --")
    with self.assertRaisesRegex(ValueError, "command=no-such-program: cannot"):
      launching.launch(["no-such-program"], launching.Config())

  def test_each_process_has_its_devices(self):
    self.program.write_text(
      "import os\nprint(os.environ['JAX_PLATFORMS'], os.environ['XLA_FLAGS'])"
    )
    _, said = self.launched("0,0", devices=3)
    forced = "--xla_force_host_platform_device_count=3"
    self.assertLen(re.findall(f"cpu .*{forced}\n", said), 2)


if __name__ == "__main__":
  absltest.main()
