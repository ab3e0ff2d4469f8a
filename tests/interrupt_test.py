"""Tests of saejax.interrupt, in processes of their own."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

from absl.testing import absltest, parameterized

from saejax import interrupt

ROOT = pathlib.Path(__file__).resolve().parent.parent

SCRIPT = f"""
import atexit, os, signal, sys, time, types
# A shell or nohup may have started these tests with signals ignored.
if sys.argv[1] != "ignored":
  signal.signal(signal.SIGHUP, signal.SIG_DFL)
  signal.signal(signal.SIGINT, signal.default_int_handler)
saejax = types.ModuleType("saejax")  # without __init__: starts in no time
saejax.__path__ = [{str(ROOT)!r} + "/saejax"]
sys.modules["saejax"] = saejax
from saejax import interrupt

if sys.argv[1] == "slow":
  interrupt.PATIENCE_SECONDS = 0.2

def ready():
  print("ready", flush=True)

if sys.argv[1] == "ignored":
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
if sys.argv[1] == "done":
  atexit.register(lambda: (ready(), time.sleep(0.5)))  # runs last
interrupt.install()
if sys.argv[1] == "done":
  sys.exit(0)
if sys.argv[1] in ("plain", "ignored"):
  ready()
  time.sleep(60)
if sys.argv[1] == "child":
  if os.fork() == 0:
    time.sleep(60)
    os._exit(0)
with interrupt.deferred():
  ready()
  while not interrupt.requested():
    time.sleep(0.01)
  time.sleep(float(sys.argv[2]))
  print("saved", flush=True)
"""


class InterruptTest(parameterized.TestCase):
  def start(self, *arguments, **kwargs) -> subprocess.Popen:
    process = subprocess.Popen(
      [sys.executable, "-c", SCRIPT, *arguments],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      **kwargs,
    )
    self.addCleanup(process.kill)
    self.assertEqual(process.stdout.readline(), "ready\n")
    return process

  def kill_all(self, group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(group, signal.SIGKILL)

  def end(self, process) -> tuple[int, str, list[str]]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err.splitlines()

  @parameterized.parameters(*interrupt.SIGNALS)
  def test_a_signal_is_one_line_and_its_exit_code(self, number):
    process = self.start("plain")
    process.send_signal(number)
    code, _, lines = self.end(process)
    self.assertEqual(code, 128 + number)
    name = signal.Signals(number).name
    self.assertEqual(lines, [f"{name}: stopped; repeat the command to resume"])

  def test_a_deferred_signal_lets_the_section_save(self):
    process = self.start("deferred", "0")
    process.send_signal(signal.SIGHUP)
    code, out, lines = self.end(process)
    self.assertEqual((code, out, lines), (128 + signal.SIGHUP, "saved\n", []))

  def test_a_long_save_is_acknowledged_once(self):
    process = self.start("slow", "1")
    process.send_signal(signal.SIGTERM)
    code, out, lines = self.end(process)
    self.assertEqual((code, out), (128 + signal.SIGTERM, "saved\n"))
    self.assertLen(lines, 1)
    self.assertIn("SIGTERM: saving, then stopping", lines[0])

  def test_a_second_signal_stops_at_once(self):
    process = self.start("deferred", "60")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, out, lines = self.end(process)
    self.assertEqual((code, out), (128 + signal.SIGINT, ""))
    self.assertIn("SIGINT: stopped immediately", lines[-1])

  @parameterized.parameters(*interrupt.SIGNALS)
  def test_a_script_that_is_done_exits_with_its_own_code(self, number):
    process = self.start("done")
    process.send_signal(number)
    self.assertEqual(self.end(process), (0, "", []))

  def test_what_was_ignored_stays_ignored(self):
    process = self.start("ignored")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    self.assertIsNone(process.poll())
    process.send_signal(signal.SIGTERM)
    self.assertEqual(self.end(process)[0], 128 + signal.SIGTERM)

  def test_a_signal_to_a_forked_child_is_not_taken_for_one_of_ours(self):
    process = self.start("child", "0.1", start_new_session=True)
    self.addCleanup(self.kill_all, process.pid)
    os.killpg(process.pid, signal.SIGTERM)
    code, out, lines = self.end(process)
    self.assertEqual((code, out, lines), (128 + signal.SIGTERM, "saved\n", []))

  def test_handlers_come_back_and_installing_twice_does_nothing(self):
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    with interrupt.installed():
      inside = signal.getsignal(signal.SIGTERM)
      self.assertNotEqual(inside, before[1])
      with interrupt.installed():
        pass
      self.assertIs(signal.getsignal(signal.SIGTERM), inside)
    after = [signal.getsignal(number) for number in interrupt.SIGNALS]
    self.assertEqual(after, before)

  def test_only_the_commands_install_handlers_and_do_so_before_jax(self):
    for path in (ROOT / "saejax").rglob("*.py"):
      if path.name not in ("command.py", "config.py", "interrupt.py"):
        self.assertNotIn("interrupt.install", path.read_text(), path)
    code = "import sys, saejax.command; print('jax' in sys.modules)"
    done = subprocess.run(
      [sys.executable, "-c", code],
      capture_output=True,
      text=True,
      cwd=ROOT,
      check=True,
    )
    self.assertEqual(done.stdout, "False\n")


if __name__ == "__main__":
  absltest.main()
