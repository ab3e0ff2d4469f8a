"""kill -9 at random moments of a harvest, each followed by the same command."""

import pathlib
import random
import subprocess
import sys
import time

from absl.testing import absltest

from saejax.data import harvest
from tests import shared
from tests.data import tiny

KILLS = 4
SECONDS_A_FORWARD = 0.02


class HarvestKillTest(absltest.TestCase):
  def test_the_store_is_that_of_an_undisturbed_harvest_byte_for_byte(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    corpus = tiny.corpus(folder / "corpus")
    harvest.harvest(tiny.config(corpus, folder / "whole"), source=tiny.source())
    command = [sys.executable, "-m", "tests.data.tiny", str(corpus)]
    command += [str(folder / "killed"), str(SECONDS_A_FORWARD)]
    moments = random.Random(0)
    killed = 0
    while True:
      process = subprocess.Popen(
        command, cwd=shared.ROOT, stdout=subprocess.PIPE
      )
      with process, process.stdout as output:
        if killed < KILLS:
          # 26 forward batches make the training store.
          for _ in range(moments.randint(1, 6)):
            output.readline()
          time.sleep(moments.uniform(0, 3 * SECONDS_A_FORWARD))
          process.kill()
        output.read()
      if process.returncode == 0:
        break
      killed += 1
    self.assertGreaterEqual(killed, 2)
    self.assertEqual(
      tiny.files(folder / "killed"), tiny.files(folder / "whole")
    )


if __name__ == "__main__":
  absltest.main()
