"""Tests of saejax.terminal; the status line is tested with its run's log."""

import contextlib
import math
import threading

from absl.testing import absltest, parameterized

from saejax import terminal


class UnitsTest(parameterized.TestCase):
  @parameterized.parameters(
    (0, "0"), (999, "999"), (999.5, "1.00k"), (9_994, "9.99k"),
    (9_996, "10.0k"), (99_960, "100k"), (23_600_000, "23.6M"),
    (1e21, "1000000P"), (math.inf, "unknown"), (math.nan, "unknown"),
  )  # fmt: skip
  def test_counts_have_three_digits(self, n, expected):
    self.assertEqual(terminal.count(n), expected)

  @parameterized.parameters(
    (0, "0 B"), (1_000, "1.00 kB"), (24e9, "24.0 GB"), (1.2e13, "12.0 TB")
  )
  def test_sizes_are_in_powers_of_thousand(self, n, expected):
    self.assertEqual(terminal.size(n), expected)

  @parameterized.parameters(
    (-1, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3599.6, "1h00m"),
    (86_399, "23h59m"), (86_400, "1d00h"), (math.inf, "unknown"),
  )  # fmt: skip
  def test_durations_have_two_units(self, seconds, expected):
    self.assertEqual(terminal.duration(seconds), expected)

  def test_preflight_says_all_its_numbers(self):
    text = terminal.preflight(
      rows=300_000,
      disk_bytes=230_400_000,
      parameters=23_600_000,
      seconds=400,
      memory_bytes=2_500_000_000,
      programs=3,
    )
    self.assertEqual(
      text,
      "preflight: 300,000 rows, 230 MB on disk, 23.6M parameters,"
      " about 6m40s and compiling up to 3 programs, 2.50 GB of memory",
    )

  def test_what_takes_long_is_said_once_and_what_does_not_is_not(self):
    said, heard = [], threading.Event()

    def say(text):
      said.append(text)
      heard.set()

    with terminal.busy("long", say, after_seconds=0.01):
      self.assertTrue(heard.wait(timeout=60))
    with terminal.busy("short", say, after_seconds=60):
      pass
    with contextlib.suppress(KeyError), terminal.busy("failed", say):
      raise KeyError
    self.assertEqual(said, ["long"])


if __name__ == "__main__":
  absltest.main()
