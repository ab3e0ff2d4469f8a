"""Tests of saejax.runs.stores: the progress of a harvest."""

import io
import sys
from unittest import mock

from absl.testing import absltest

from saejax.runs import stores


class Terminal(io.StringIO):
  def isatty(self):
    return True

  def lines(self) -> list[str]:
    """What is left on the terminal: later text of a line replaces earlier."""
    lines = self.getvalue().replace("\x1b[K", "").split("\n")
    return [line.split("\r")[-1] for line in lines if line]


class ProgressTest(absltest.TestCase):
  def test_the_last_line_of_each_store_is_kept(self):
    screen = Terminal()
    with (
      mock.patch.object(sys, "stderr", screen),
      stores._progress() as progress,
    ):
      for phase in ("train", "held_out"):
        for rows in (10, 20):
          state = {"phase": phase, "rows": rows, "rows_wanted": 20}
          state |= {"rows_per_second": 5.0, "dropped": {"outlier": 3}}
          progress(state | {"complete": rows == 20})
    train, held_out = screen.lines()
    self.assertStartsWith(train, "harvest train: 20/20 rows")
    self.assertStartsWith(held_out, "harvest held_out: 20/20 rows")
    self.assertIn("complete", train)


if __name__ == "__main__":
  absltest.main()
