"""Tests of benchmarks/sweep.py: both contenders train the same SAEs."""

from absl.testing import absltest, parameterized

from benchmarks import sweep
from saejax.errors import InputError


class SweepTest(parameterized.TestCase):
  @parameterized.parameters(*sweep.KINDS)
  def test_eight_runs_have_the_settings_of_the_members(self, kind):
    chosen = sweep.Config(steps=7)
    alone = sweep.jobs(chosen, kind, "alone")
    (job,) = sweep.jobs(chosen, kind, "sweep")
    self.assertLen({str(one) for one in alone}, 8)
    lists = {n: v for n, v in job.items() if isinstance(v, list)}
    for name, values in lists.items():
      self.assertEqual({one[name] for one in alone}, set(values))
    self.assertEqual({one["steps"] for one in [job, *alone]}, {7})
    self.assertEqual({one["seed"] for one in alone}, set(range(job["seeds"])))

  def test_ratios_are_of_one_round(self):
    row = lambda seconds, fvu: {
      "seconds": seconds,
      "processor_seconds": seconds,
      "peak_mb": 100.0,
      "device_mb": 0.0,
      "fvu": [fvu],
    }
    rounds = [
      {"alone": row(30.0, 0.5), "sweep": row(10.0, 0.5)},
      {"alone": row(80.0, 0.5), "sweep": row(40.0, 0.25)},
    ]
    alone, together = sweep.summary("seeds", rounds)
    self.assertEqual((alone["seconds"], together["seconds"]), (55.0, 25.0))
    self.assertEqual(together["ratio"], 2.5)
    self.assertEqual(together["difference"], 0.25)

  def test_an_unknown_kind_is_refused(self):
    with self.assertRaisesRegex(InputError, "kinds=widths: must be among"):
      sweep.Config(kinds=("widths",))


if __name__ == "__main__":
  absltest.main()
