"""The entropy of documents in batches, beside that of uniform draws."""

import io
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import loader, mixing
from saejax.data.batches import StoreBatches
from saejax.data.mix import Mix
from saejax.data.store import create
from saejax.recipes import row_sparse
from saejax.training import log, loop
from saejax.training.members import Member


class MixingTest(parameterized.TestCase):
  def store(self, rows=20_000, document=200, name="s", **changes):
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    sizes = {"bucket_rows": 4096, "shard_rows": 1024, "chunk_rows": 64}
    path = pathlib.Path(self.create_tempdir().full_path) / name
    columns = {"x": x, "doc": np.arange(rows) // document}
    return create.write_store(path, columns, **sizes | changes)

  @parameterized.parameters((200, 512), (20, 512), (200, 50))
  def test_uniform_draws_agree_with_drawing_from_all_rows(self, document, b):
    found = mixing.Mixing(self.store(document=document), b)
    docs = np.arange(20_000) // document
    random = np.random.default_rng(1)
    wanted = []
    for _ in range(50):
      keys = random.choice(docs, b, replace=False)
      p = np.unique(keys, return_counts=True)[1] / b
      wanted.append(-(p * np.log(p)).sum() / np.log(min(b, docs.max() + 1)))
    self.assertAlmostEqual(found.uniform, np.mean(wanted), delta=0.01)

  def test_shuffled_batches_reach_it_and_blocks_do_not(self):
    store = self.store()
    measure = mixing.Mixing(store, 512)
    (batch, *_) = loader.batches(store, batch_rows=512, seed=0)
    self.assertGreater(measure.entropy(batch["row"]), 0.98 * measure.uniform)
    ordered = self.store(shuffle_seed=None, name="ordered")
    measure = mixing.Mixing(ordered, 512)
    (batch, *_) = loader.batches(
      ordered, batch_rows=512, seed=0, window_chunks=1
    )
    self.assertLess(measure.entropy(batch["row"]), 0.8 * measure.uniform)

  def test_documents_of_a_mix_are_counted_by_store(self):
    stores = (self.store(2000, 100), self.store(2000, 200, name="b"))
    measure = mixing.Mixing(Mix(stores, (1, 1)), 400)
    # 20 documents with half of the rows, 10 with the others.
    wanted = 0.5 * (np.log(40) + np.log(20)) / np.log(30)
    self.assertAlmostEqual(measure.uniform, wanted, delta=0.02)

  @parameterized.parameters((None, True), (0, False))
  def test_runs_record_it_and_warn_once_where_it_is_low(self, seed, warned):
    store = self.store(shuffle_seed=seed)
    folder = pathlib.Path(self.create_tempdir().full_path) / "run"
    lines = io.StringIO()
    with StoreBatches(
      store, batch_rows=32, seed=0, window_chunks=1 if warned else 64
    ) as batches:
      loop.train(
        lambda k: row_sparse.topk(4, 8, k, dead_after_tokens=300),
        [Member(arguments=(("k", 2),), seed=0, learning_rate=1e-3)],
        batches,
        config=loop.TrainConfig(batch_rows=32),
        total_steps=450,
        folder=folder,
        stream=lines,
      )
    text = "entropy of documents"
    self.assertEqual(lines.getvalue().count(text), int(warned))
    found = [r for r in log.read(folder) if r["kind"] == "rows"]
    self.assertEqual([r["step"] for r in found], [1, 101, 201, 301, 401])
    rows = [r["members"]["rows"] for r in found]
    np.testing.assert_allclose(
      [r["epochs"] for r in rows], 32 * np.array([1, 101, 201, 301, 401]) / 2e4
    )
    ratio = np.mean([r["doc_entropy"] / r["doc_entropy_uniform"] for r in rows])
    self.assertEqual(ratio < mixing.LEAST, warned)


if __name__ == "__main__":
  absltest.main()
