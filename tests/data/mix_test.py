"""Mixes of stores: shares, exact positions, what cannot be mixed."""

import json
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import loader, mix, order
from saejax.data.batches import StoreBatches, spread
from saejax.data.store import create
from saejax.errors import InputError


class MixTest(parameterized.TestCase):
  def store(self, name, rows, value, dtype=np.float32, d=4, **about):
    x = np.random.default_rng(value).normal(size=(rows, d)).astype(dtype)
    x[:, 0] = value
    columns = {"x": x, "doc": np.arange(rows) // 10}
    path = pathlib.Path(self.create_tempdir().full_path) / name
    sizes = {"bucket_rows": 256, "shard_rows": 128, "chunk_rows": 32}
    return create.write_store(path, columns, about=about, **sizes)

  def mix(self, *weights):
    return mix.Mix((self.store("a", 900, 1), self.store("b", 500, 2)), weights)

  @parameterized.parameters((1, 1), (3, 1), (0.1, 0.25), (1, 2, 3), (5, 1, 1))
  def test_shares_are_exact_up_to_rounding_and_never_fall(self, *weights):
    weights = tuple(int(100 * w) for w in weights)
    counts = np.array([order.shares(weights, r) for r in range(500)])
    np.testing.assert_array_equal(counts.sum(1), np.arange(500))
    self.assertGreaterEqual(np.diff(counts, axis=0).min(), 0)
    exact = np.arange(500)[:, None] * np.array(weights) / sum(weights)
    self.assertLess(np.abs(counts - exact).max(), len(weights))

  @parameterized.product(lanes=(1, 2), weights=((3, 1), (0.5, 1.5), ()))
  def test_batches_have_shares_and_stores_their_own_epochs(
    self, lanes, weights
  ):
    found = self.mix(*weights)
    arguments = {"batch_rows": 60, "seed": 0, "lanes": lanes, "epochs": 3}
    iterator = iter(loader.batches(found, **arguments))
    seen, states = [], []
    for batch in iterator:
      seen.append((batch["x"][:, 0], batch["row"]))
      states.append(iterator.get_state())
    value, row = map(np.concatenate, zip(*seen, strict=True))
    self.assertGreater(len(row), 3 * 1400 - 60 - 4 * 64)
    share = np.array(weights or (900, 500), float)
    share /= share.sum()
    for values, _ in seen:
      self.assertAlmostEqual((values == 1).sum(), 60 * share[0], delta=4)
    np.testing.assert_allclose(
      iterator.epochs,
      [(value == 1).sum() / 900, (value == 2).sum() / 500],
    )
    # Row numbers tell the stores apart; no row repeats within an epoch.
    np.testing.assert_array_equal(value == 2, row >= found.offsets[1])
    if lanes == 1:
      for number, rows in ((1, 900), (2, 500)):
        own = row[value == number]
        for i in range(0, len(own) - rows + 1, rows):
          self.assertLen(set(own[i : i + rows]), rows)
    again = iter(loader.batches(found, **arguments))
    again.set_state(json.loads(json.dumps(states[9])))
    for batch, (_, rows) in zip(again, seen[10:], strict=True):
      np.testing.assert_array_equal(batch["row"], rows)

  @parameterized.parameters(1, 4)
  def test_processes_share_a_mix_in_one_order(self, lanes):
    found = self.mix(2, 1)
    arguments = {"batch_rows": 64, "seed": 1, "lanes": lanes}
    one = [b["row"] for b in loader.batches(found, **arguments)]
    parts = [
      [
        b["row"]
        for b in loader.batches(
          found, process_index=i, process_count=4, **arguments
        )
      ]
      for i in range(4)
    ]
    for whole, *own in zip(one, *parts, strict=True):
      np.testing.assert_array_equal(np.concatenate(own), whole)

  def test_positions_of_other_mixes_are_refused(self):
    a, b = self.store("a", 900, 1), self.store("b", 500, 2)
    at = lambda *given: iter(
      loader.batches(mix.Mix(*given), batch_rows=20, seed=0)
    )
    state = at((a, b), (2, 1)).get_state()
    at((a, b), (4.0, 2.0)).set_state(state)  # equal shares
    for other, name in (
      (at((a, b), (1, 1)), "weights"),
      (at((b, a), (2, 1)), "stores"),
      (iter(loader.batches(a, batch_rows=20, seed=0)), "stores"),
    ):
      with self.assertRaisesRegex(InputError, f"position.{name}="):
        other.set_state(state)

  def test_the_identity_is_content_and_shares(self):
    a, b = self.store("a", 900, 1), self.store("b", 500, 2)
    same = {mix.Mix((a, b), w).content for w in ((2, 1), (0.2, 0.1))}
    self.assertLen(same, 1)
    others = {mix.Mix((a, b)).content, mix.Mix((b, a), (1, 2)).content}
    self.assertLen(same | others, 3)

  def test_moments_and_samples_are_those_of_the_mix(self):
    found = self.mix(3, 1)
    stores = [s.whole("x")["x"] for s in found.stores]
    share = np.array([0.75, 0.25])
    mean = share @ [x.mean(0) for x in stores]
    square = share @ [(x**2).mean(0) for x in stores]
    np.testing.assert_allclose(found.stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(
      found.stats["variance"], square - mean**2, rtol=1e-4, atol=1e-6
    )
    self.assertAlmostEqual(found.stats["mean_square"], square.sum(), places=4)
    sample = spread(found, 400)
    self.assertAlmostEqual((sample[:, 0] == 1).mean(), 0.75, delta=0.02)
    with StoreBatches(found, batch_rows=20, seed=0) as batches:
      self.assertLen(batches.sample(200)["x"], 200)

  def test_rows_are_traced_to_their_stores(self):
    found = self.mix(1, 1)
    (batch, *_) = loader.batches(found, batch_rows=50, seed=0)
    where = found.provenance(batch["row"])
    np.testing.assert_array_equal(where["store"] + 1, batch["x"][:, 0])
    for i, store in enumerate(found.stores):
      own = where["store"] == i
      rows = batch["row"][own] - found.offsets[i]
      np.testing.assert_array_equal(
        where["doc"][own], store.provenance(rows)["doc"]
      )
    np.testing.assert_array_equal(found.take(batch["row"])["x"], batch["x"])

  @parameterized.parameters(
    ((0, 1), "weights=0: must be positive"),
    ((1, -2), "weights=-2"),
    ((1, float("nan")), "weights=nan"),
    ((1, 2, 3), "weights=.*one per store"),
  )
  def test_weights_that_are_no_shares_are_refused(self, weights, text):
    with self.assertRaisesRegex(InputError, text):
      self.mix(*weights)

  def test_stores_that_differ_are_refused(self):
    a = self.store("a", 900, 1, model={"name": "m"})
    for other, text in (
      (self.store("b", 500, 2, d=5, model={"name": "m"}), "has d=5"),
      (self.store("b", 500, 2, np.float16, model={"name": "m"}), "float16"),
      (self.store("b", 500, 2, model={"name": "n"}), "has model="),
      (a, "twice"),
    ):
      with self.assertRaisesRegex(InputError, text):
        mix.Mix((a, other))

  def test_a_batch_that_repeats_rows_of_a_store_is_refused(self):
    found = self.mix(1, 9)
    with self.assertRaisesRegex(InputError, r"batch_rows=600.*store \(500\)"):
      loader.batches(found, batch_rows=600, seed=0)


if __name__ == "__main__":
  absltest.main()
