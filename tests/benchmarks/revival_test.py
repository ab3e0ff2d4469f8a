"""Tests of benchmarks/revival.py: short runs of its cases."""

import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest

from benchmarks import revival

SETTINGS = revival.Config(steps=100, batch_rows=256)


class RevivalTest(absltest.TestCase):
  def test_dead_planted_latents_are_revived_but_those_never_positive(self):
    settings = revival.Config(steps=150, batch_rows=512)
    found = revival.planted(settings)["planted"]
    self.assertEqual(found["n"], 64)
    self.assertBetween(found["dead"], 4, 40)
    self.assertLess(found["fvu"], 0.9)

  def test_stored_rows_train_a_topk_and_a_transcoder(self):
    x = np.random.default_rng(0).normal(size=(4096, 64)).astype(np.float32)
    given = mock.patch.multiple(
      revival,
      reader=mock.Mock(open=pathlib.Path),
      batches=mock.Mock(spread=lambda path, count: x[:count]),
    )
    with given:
      found = revival.stored(SETTINGS)
    self.assertEqual([f["n"] for f in found.values()], [1024, 256])
    for case in found.values():
      self.assertBetween(case["fvu"], 0, 2)


if __name__ == "__main__":
  absltest.main()
