"""Tests of saejax.studies.claims.causal, with a small model."""

import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest

from saejax.studies import arms
from saejax.studies.claims import causal, training
from saejax.studies.claims import claim as claims
from saejax.training.config import TrainConfig
from tests import shared

CONFIG = TrainConfig(steps=4, batch_rows=64, learning_rate=3e-3, warmup_steps=2)
ROWS = 1024
LAYERS = 2
OPTIONS = arms.options


def without_aux(config, rows):
  """Options of arms without the loss that takes half of the time to compile."""
  return {**OPTIONS(config, rows), "aux_weight": 0}


class MixedTest(absltest.TestCase):
  def test_tokens_come_once_for_each_layer_of_the_group_at_any_of_them(self):
    # A row says its token and its layer.
    token, layer = np.meshgrid(np.arange(600), np.arange(4), indexing="ij")
    x = np.stack([token, layer], axis=-1).astype(np.float32)
    rows = causal.mixed(x, x[:50], (1, 2, 3), seed=0, about={})
    np.testing.assert_array_equal(rows.train.x[:, 1] - 1, rows.train.cond)
    counts = np.bincount(rows.train.x[:, 0].astype(int))
    np.testing.assert_array_equal(counts, 3)
    np.testing.assert_allclose(np.bincount(rows.train.cond), 600, atol=80)
    held_out = rows.held_out
    np.testing.assert_array_equal(held_out.x[:, 1] - 1, held_out.cond)
    self.assertLen(np.unique(held_out.x, axis=0), 150)


class CausalClaimsTest(absltest.TestCase):
  def test_every_claim_is_measured_and_a_second_run_reads_what_is_there(self):
    model = str(shared.path("models/babyllama-105"))
    folder = pathlib.Path(self.create_tempdir().full_path)
    make = lambda: causal.points(
      folder, model, CONFIG, 2, rows=ROWS, layers=LAYERS
    )
    self.enter_context(mock.patch.object(arms, "options", without_aux))
    points, data = make()

    alone = causal.EACH
    together = ("one group", "topk", "tide")
    for name in (alone, *together, "text own", "text read"):
      count = LAYERS if name == alone else 1
      own = [p for p in points if p["arm"] == name]
      self.assertEqual([p["seed"] for p in own], [0, 1] * count, name)
      for p in own:
        self.assertEqual((p["n"], p["k"]), (causal.N, causal.K))
        self.assertLessEqual(p["l0"], causal.K)
    for p in points:
      if p["data"] == causal.OWN_TEXT_ROWS:
        self.assertBetween(p["shared"], 0, 1)
        self.assertBetween(p["fake"], 0, 1)
      else:
        self.assertGreaterEqual(p["worst_layer_fvu"], p["mean_layer_fvu"])
      if p["arm"] == alone:
        self.assertAlmostEqual(p["mean_layer_fvu"], p["fvu"], places=5)

    for claim in training.CLAIMS:
      if claim.group in data:
        found = claims.measured(claim, points, claim.group)
        self.assertEqual(found["seeds"], 2, claim)
        self.assertTrue(np.isfinite(found["effect"]), claim)
    self.assertEqual(
      {c.recipe for c in training.CLAIMS if c.group in data},
      {"layergroup", "tide", "faithful"},
    )

    files = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    self.assertEqual(make(), (points, data))
    now = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    self.assertEqual(now, files)


if __name__ == "__main__":
  absltest.main()
