"""Tests of saejax.training.parts.schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from saejax.training.parts import schedules


def factors(schedule, steps):
  return np.asarray(jax.vmap(schedule)(jnp.arange(steps, dtype=jnp.int32)))


class WarmupDecayTest(parameterized.TestCase):
  def test_rises_stays_and_falls_linearly(self):
    schedule = schedules.warmup_decay(20, warmup_steps=3, decay_fraction=0.25)
    want = [0.25, 0.5, 0.75] + [1.0] * 13 + [0.8, 0.6, 0.4, 0.2]
    np.testing.assert_allclose(factors(schedule, 20), want, rtol=1e-6)

  @parameterized.product(warmup=[0, 1, 50], decay=[0.0, 0.01, 0.5, 1.0])
  def test_no_step_of_the_run_has_a_rate_of_0(self, warmup, decay):
    schedule = schedules.warmup_decay(
      100, warmup_steps=warmup, decay_fraction=decay
    )
    found = factors(schedule, 100)
    self.assertGreater(found.min(), 0)
    self.assertLessEqual(found.max(), 1)

  def test_without_warmup_and_decay_is_constant(self):
    np.testing.assert_array_equal(factors(schedules.warmup_decay(10), 30), 1)

  def test_after_the_run_a_decayed_rate_stays_0(self):
    schedule = schedules.warmup_decay(10, decay_fraction=0.5)
    np.testing.assert_array_equal(factors(schedule, 15)[10:], 0)

  def test_decay_is_that_of_optax(self):
    ours = schedules.warmup_decay(40, decay_fraction=0.5)
    theirs = optax.linear_schedule(1.0, 0.0, 20, transition_begin=20)
    np.testing.assert_allclose(
      factors(ours, 40), [float(theirs(s)) for s in range(40)], atol=1e-6
    )

  def test_falls_to_the_end_asked_for(self):
    schedule = schedules.warmup_decay(20, decay_fraction=0.25, end=0.2)
    want = [1.0] * 16 + [0.84, 0.68, 0.52, 0.36] + [0.2] * 5
    np.testing.assert_allclose(factors(schedule, 25), want, rtol=1e-5)


class CosineWarmupTest(parameterized.TestCase):
  def test_rises_from_its_start_along_a_cosine(self):
    found = factors(schedules.cosine_warmup(8, start=0.2), 12)
    want = 0.6 - 0.4 * np.cos(np.pi * np.arange(9) / 8)
    np.testing.assert_allclose(found, [*want, 1, 1, 1], rtol=1e-5)


class RampTest(parameterized.TestCase):
  def test_rises_in_a_straight_line_and_stays(self):
    found = factors(schedules.ramp(3.0, 4), 6)
    np.testing.assert_allclose(found, [0, 0.75, 1.5, 2.25, 3, 3], rtol=1e-6)

  def test_without_steps_is_a_number(self):
    self.assertEqual(schedules.ramp(3.0, 0), 3.0)


class LearningRateTest(parameterized.TestCase):
  @parameterized.parameters((0.0, 1e-3), (-0.5, 5e-4), (-1.0, 2.5e-4))
  def test_is_a_power_of_n(self, exponent, rate):
    got = schedules.learning_rate_for(
      4096, base=1e-3, base_n=1024, exponent=exponent
    )
    self.assertAlmostEqual(got, rate)


if __name__ == "__main__":
  absltest.main()
