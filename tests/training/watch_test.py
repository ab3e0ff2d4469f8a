"""saejax/training/watch.py: records on held-out rows."""

import io
import pathlib

import jax
import numpy as np
from absl.testing import absltest

from saejax.data.batches import StoreBatches
from saejax.data.store import create
from saejax.training import log, loop
from tests.training import loop_test
from tests.training.loop_test import BATCH, MEMBERS


class HeldOutTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    x = np.random.default_rng(0).normal(size=(loop_test.ROWS, loop_test.D))
    self.store = create.write_store(
      self.folder / "store",
      {"x": x.astype(np.float32), "doc": np.arange(len(x)) // 100},
      bucket_rows=1024,
      shard_rows=512,
      chunk_rows=128,
    )
    self.seen = []

  def measured(self, forms):
    self.seen.append(forms)
    return [{"nmse": 0.5, "k": sae.activation.k} for sae, _ in forms]

  def train(self, name, eval_steps, *, killed_at=None, **keywords):
    batches = StoreBatches(self.store, batch_rows=BATCH, seed=0)
    if killed_at is not None:
      batches = loop_test.Interrupted(batches, killed_at, loop_test.kill)
    config = loop.TrainConfig(
      batch_rows=BATCH,
      checkpoint_steps=5,
      eval_steps=eval_steps,
      steps_per_dispatch=1,
      members="in_turn",
    )
    return loop.train(
      loop_test.recipe,
      MEMBERS,
      batches,
      config=config,
      folder=self.folder / name,
      total_steps=24,
      fingerprint={},
      stream=io.StringIO(),
      **keywords,
    )

  def records(self, name):
    return [
      (r["step"], r["tokens"], [m["k"] for m in r["members"].values()])
      for r in log.read(self.folder / name)
      if r["kind"] == "held_out"
    ]

  def test_they_change_no_bit_and_come_once_after_a_kill(self):
    plain = self.train("plain", 0, held_out=self.measured)
    self.assertEmpty(self.seen)
    with self.assertRaises(loop_test.Killed):
      self.train("a", 4, killed_at=13, held_out=self.measured)
    found = self.train("a", 4, held_out=self.measured)
    for one, other in zip(found, plain, strict=True):
      jax.tree.map(np.testing.assert_array_equal, one.sae, other.sae)
    ks = [dict(member.arguments)["k"] for member in MEMBERS]
    steps = [4, 8, 12, 16, 20, 24]
    self.assertEqual(self.records("a"), [(s, s * BATCH, ks) for s in steps])

  def test_there_are_eight_by_default_and_none_without_rows(self):
    self.train("b", None, held_out=self.measured)
    self.assertLen(self.seen, 8)
    self.assertEmpty(self.train("c", None) and self.records("c"))


if __name__ == "__main__":
  absltest.main()
