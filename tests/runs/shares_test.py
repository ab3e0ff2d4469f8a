"""Tests of saejax.runs.shares."""

from unittest import mock

import jax
from absl.testing import absltest

from saejax import machine
from saejax.runs import shares

TRACE = "/jax/core/compile/jaxpr_trace_duration"
COMPILE = "/jax/core/compile/backend_compile_duration"


class SharesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.now = 100.0
    clock = mock.patch.object(shares.time, "monotonic", lambda: self.now)
    start = mock.patch.object(
      shares.machine, "process_seconds", return_value=2.0
    )
    self.enter_context(clock)
    self.enter_context(start)

  def heard(self, event, seconds):
    """Time passes in the compiler, which reports it."""
    self.now += seconds
    jax.monitoring.record_event_duration_secs(event, seconds)

  def test_each_second_counts_once(self):
    with shares.Shares() as spent:
      self.now += 1
      with spent.during("train"):
        self.now += 4
        with spent.during("evaluate"):
          self.now += 8
        self.now += 16
      with spent.during("evaluate"):
        self.now += 32
      self.now += 64
      found = spent.seconds()
    self.assertEqual(found, {"set-up": 67, "train": 20, "evaluate": 40})

  def test_compiling_is_no_part_of_its_phase(self):
    with shares.Shares() as spent, spent.during("train"):
      self.now += 1
      self.heard(COMPILE, 10)
      self.now += 2
      self.heard("/jax/compilation_cache/cache_retrieval_time_sec", 5)
      found = spent.seconds()
    self.assertEqual(found, {"set-up": 2, "train": 8, "compile": 10})
    self.heard(COMPILE, 100)  # after it
    self.assertEqual(spent.seconds()["compile"], 10)

  def test_tracing_inside_tracing_counts_once(self):
    with shares.Shares() as spent, spent.during("train"):
      self.heard(TRACE, 3)
      self.heard(TRACE, 4)
      self.now += 5
      jax.monitoring.record_event_duration_secs(TRACE, 13)  # around all of it
      found = spent.seconds()
    self.assertEqual(found, {"set-up": 2, "train": 0, "compile": 13})

  def test_programs_that_compile_at_the_same_time_count_once(self):
    with shares.Shares() as spent, spent.during("train"):
      self.heard(COMPILE, 5)
      self.heard(COMPILE, 3)
      self.now += 2
      jax.monitoring.record_event_duration_secs(COMPILE, 9)  # since the first
      found = spent.seconds()
    self.assertEqual(found, {"set-up": 2, "train": 0, "compile": 10})


class ProcessTest(absltest.TestCase):
  def test_a_compilation_is_heard_and_the_sum_is_the_age_of_the_process(self):
    with shares.Shares() as spent, spent.during("train"):
      jax.jit(lambda x: x * 0.12345)(1.0).block_until_ready()
      before = machine.process_seconds()
      found = spent.seconds()
      after = machine.process_seconds()
    self.assertGreater(found["compile"], 0)
    # Each is rounded to hundredths.
    self.assertBetween(sum(found.values()), before - 0.05, after + 0.05)


if __name__ == "__main__":
  absltest.main()
