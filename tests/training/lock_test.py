"""Tests of saejax.training.lock."""

import os
import signal
import subprocess
import sys
import tempfile

from absl.testing import absltest

from saejax import errors
from saejax.training import lock

HOLDER = """
import sys, time
from saejax.training import lock
with lock.RunLock(sys.argv[1]):
  print("held", flush=True)
  time.sleep(60)
"""


class RunLockTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enter_context(tempfile.TemporaryDirectory())

  def start_holder(self) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
      [sys.executable, "-c", HOLDER, self.folder],
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    self.addCleanup(holder.wait)
    self.addCleanup(holder.stdout.close)
    self.addCleanup(holder.kill)
    self.assertEqual(holder.stdout.readline().strip(), "held")
    return holder

  def test_a_second_process_is_refused_and_told_who_holds_it(self):
    holder = self.start_holder()
    with self.assertRaises(errors.InputError) as caught:
      lock.RunLock(self.folder).acquire()
    self.assertEqual(caught.exception.field, "run_dir")
    self.assertIn(f"process {holder.pid} on ", str(caught.exception))
    self.assertIn("choose another folder", caught.exception.remedy)

  def test_a_refused_attempt_leaves_the_holder_named(self):
    holder = self.start_holder()
    for _ in range(2):
      with self.assertRaisesRegex(errors.InputError, str(holder.pid)):
        lock.RunLock(self.folder).acquire()

  def test_the_lock_of_a_killed_process_is_free(self):
    holder = self.start_holder()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.RunLock(self.folder):
      pass

  def test_two_locks_in_one_process_exclude_each_other(self):
    with lock.RunLock(self.folder), self.assertRaises(errors.InputError):
      lock.RunLock(self.folder).acquire()
    with lock.RunLock(self.folder):
      pass

  def test_the_lock_is_released_by_an_exception(self):
    with self.assertRaises(KeyError), lock.RunLock(self.folder):
      raise KeyError
    with lock.RunLock(self.folder):
      pass

  def test_the_folder_is_made(self):
    inner = os.path.join(self.folder, "a", "b")
    with lock.RunLock(inner):
      self.assertTrue(os.path.isdir(inner))

  def test_a_folder_that_cannot_be_made_names_its_field(self):
    path = os.path.join(self.folder, "file")
    with open(path, "w"):
      pass
    with self.assertRaises(errors.InputError) as caught:
      lock.RunLock(path, field="harvest.dir").acquire()
    self.assertEqual(caught.exception.field, "harvest.dir")


if __name__ == "__main__":
  absltest.main()
