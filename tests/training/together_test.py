"""Tests of loop.together: turns, results, and what a stop or an error does."""

from absl.testing import absltest

from saejax import interrupt
from saejax.training import loop


class Run:
  """A run of some steps that notes what happens to it."""

  def __init__(self, turns, name, start, stop, pace=1, raises=None):
    self.turns, self.name, self.pace = turns, name, pace
    self.step, self.stop, self.raises = start, stop, raises or {}
    self.saved = self.closed = False

  def steps(self):
    try:
      while self.step < self.stop:
        try:
          yield self.step
        except interrupt.Stopped:
          self.saved = True
          raise
        if self.step in self.raises:
          raise self.raises[self.step]
        self.turns.append((self.name, self.step))
        self.step += self.pace
      return [self.name]
    finally:
      self.closed = True


class TogetherTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.turns = []

  def run_of(self, *arguments, **settings):
    return Run(self.turns, *arguments, **settings)

  def test_the_one_that_is_behind_goes_on(self):
    runs = [
      self.run_of("late", 4, 8),
      self.run_of("early", 0, 8, pace=2),
      self.run_of("done", 8, 8),
    ]
    found = loop.together([run.steps() for run in runs])
    self.assertEqual(found, [["late"], ["early"], ["done"]])
    self.assertEqual(self.turns[:2], [("early", 0), ("early", 2)])
    self.assertLen(self.turns, 8)
    steps = [step for _, step in self.turns]
    self.assertEqual(steps, sorted(steps))

  def test_a_stop_saves_the_others(self):
    stop = interrupt.Stopped(15)
    runs = [
      self.run_of("a", 0, 8, raises={2: stop}),
      self.run_of("b", 0, 8),
      self.run_of("c", 0, 1),
    ]
    with self.assertRaises(interrupt.Stopped) as raised:
      loop.together([run.steps() for run in runs])
    self.assertEqual(raised.exception.code, 128 + 15)
    self.assertEqual([run.saved for run in runs], [False, True, False])
    self.assertEqual([run.closed for run in runs], [True] * 3)

  def test_an_error_closes_the_others(self):
    runs = [
      self.run_of("a", 0, 8),
      self.run_of("b", 0, 8, raises={3: OSError("full")}),
    ]
    with self.assertRaisesRegex(OSError, "full"):
      loop.together([run.steps() for run in runs])
    self.assertEqual([run.closed for run in runs], [True, True])
    self.assertFalse(runs[0].saved)


if __name__ == "__main__":
  absltest.main()
