"""saejax/data/streams.py: each row once, exact position, the same in a step."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import loader, streams
from saejax.data.store import create
from saejax.errors import InputError
from saejax.recipes import row_sparse
from saejax.training import fit, loop

ROWS, BATCH = 50, 8


def arrays(rows=ROWS):
  x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
  return {"x": x, "cond": np.arange(rows, dtype=np.int32) * 3}


def make(epochs: int | None = 1, rows=ROWS, seed=0, batch_rows=BATCH):
  return streams.array_batches(
    arrays(rows), batch_rows=batch_rows, seed=seed, epochs=epochs
  )


class ArrayBatchesTest(parameterized.TestCase):
  def test_an_epoch_gives_each_row_once_but_a_last_part_of_a_batch(self):
    stream = make()
    batches = list(stream)
    self.assertLen(batches, len(stream))
    self.assertLen(batches, ROWS // BATCH)
    row = np.concatenate([b["row"] for b in batches])
    self.assertEqual(row.dtype, np.int64)
    self.assertLen(set(row.tolist()), ROWS // BATCH * BATCH)

  def test_the_fields_of_a_row_stay_together(self):
    data = arrays()
    for batch in make(epochs=2):
      np.testing.assert_array_equal(batch["x"], data["x"][batch["row"]])
      np.testing.assert_array_equal(batch["cond"], 3 * batch["row"])

  def test_fields_are_named_for_the_check_of_a_recipe(self):
    self.assertEqual(make().fields, ("x", "cond"))

  def test_epochs_carry_the_remainder_and_have_orders_of_their_own(self):
    row = np.concatenate([b["row"] for b in make(epochs=4)])
    epochs = row.reshape(4, ROWS)
    for epoch in epochs:
      self.assertCountEqual(epoch.tolist(), range(ROWS))
    self.assertFalse((epochs[0] == epochs[1]).all())
    other = np.concatenate([b["row"] for b in make(epochs=4, seed=1)])
    self.assertFalse((row == other).all())

  def test_a_batch_may_be_larger_than_an_epoch(self):
    stream = make(epochs=5, rows=10, batch_rows=25)
    counts = np.bincount(next(stream)["row"], minlength=10)
    self.assertTrue(set(counts.tolist()) <= {2, 3})
    self.assertLen(list(stream), 1)

  def test_epochs_without_end(self):
    stream = make(epochs=None)
    self.assertLen(list(itertools.islice(stream, 40)), 40)
    with self.assertRaises(TypeError):
      len(stream)

  @parameterized.parameters(0, 1, 7, 18)
  def test_a_position_that_went_through_json_is_exact(self, at):
    one, other = make(epochs=3), make(epochs=3)
    for _ in range(at):
      next(one)
    other.set_state(json.loads(json.dumps(one.get_state())))
    rest, again = list(one), list(other)
    self.assertLen(rest, 18 - at)
    for a, b in zip(rest, again, strict=True):
      np.testing.assert_array_equal(a["row"], b["row"])
      np.testing.assert_array_equal(a["x"], b["x"])

  @parameterized.parameters(
    (None,), ({},), ({"batches": -1},), ({"batches": "1"},)
  )
  def test_a_position_of_something_else_is_refused(self, state):
    with self.assertRaisesRegex(ValueError, "batches"):
      make().set_state(state)

  @parameterized.parameters(
    ({"batch_rows": 0}, "train.batch_rows"),
    ({"batch_rows": ROWS + 1}, "train.batch_rows"),
    ({"epochs": 0}, "train.epochs"),
    ({"seed": -1}, "train.seed"),
  )
  def test_settings_out_of_range_are_refused(self, changes, field):
    for build in (streams.array_batches, streams.array_draw):
      settings = {"batch_rows": BATCH, "seed": 0, "epochs": 1} | changes
      with self.assertRaises(InputError) as caught:
        build(arrays(), **settings)
      self.assertEqual(caught.exception.field, field)

  @parameterized.parameters(
    ({"cond": np.zeros(3)},),
    ({"x": np.zeros((3, 2)), "row": np.zeros(3)},),
    ({"x": np.zeros((3, 2)), "score": np.zeros(4)},),
  )
  def test_fields_that_do_not_fit_are_refused(self, fields):
    with self.assertRaises(InputError) as caught:
      streams.array_batches(fields, batch_rows=2, seed=0)
    self.assertEqual(caught.exception.field, "batch")


class ArrayDrawTest(absltest.TestCase):
  def test_a_compiled_draw_gives_the_batches_of_the_iterator(self):
    data = arrays()
    draw = jax.jit(streams.array_draw(data, batch_rows=BATCH, seed=3, epochs=2))
    stream = streams.array_batches(data, batch_rows=BATCH, seed=3, epochs=2)
    for step, want in enumerate(stream):
      got = draw(jnp.int32(step))
      for name in ("x", "cond", "row"):
        np.testing.assert_array_equal(got[name], want[name])
    beyond = draw(jnp.int32(len(stream) + 3))
    again = draw(jnp.int32(3))
    np.testing.assert_array_equal(beyond["row"], again["row"])

  def test_an_order_beyond_32_bits_is_refused(self):
    with self.assertRaises(InputError) as caught:
      streams.array_draw(arrays(), batch_rows=BATCH, seed=0, epochs=2**30)
    self.assertEqual(caught.exception.field, "train.epochs")


class OneLayerTest(parameterized.TestCase):
  def x(self, rows=400, layers=4):
    x = np.arange(rows)[:, None] * 10.0 + np.arange(layers)[None]
    return np.repeat(x[..., None], 2, axis=-1).astype(np.float32)

  def stream(self, layers=(1, 2, 3), *, seed=0, epochs=2):
    data = {"x": self.x()}
    batches = streams.array_batches(data, batch_rows=40, seed=0, epochs=epochs)
    return streams.OneLayer(batches, layers, seed=seed)

  def test_each_row_comes_once_an_epoch_at_a_layer_of_the_group(self):
    batches = list(self.stream())
    row = np.concatenate([b["row"] for b in batches])
    cond = np.concatenate([b["cond"] for b in batches])
    x = np.concatenate([b["x"] for b in batches])
    self.assertCountEqual(row[:400].tolist(), range(400))
    np.testing.assert_array_equal(x[:, 0], row * 10 + cond + 1)
    self.assertEqual(cond.dtype, np.int32)
    first, second = (
      dict(zip(r, c, strict=True))
      for r, c in ((row[:400], cond[:400]), (row[400:], cond[400:]))
    )
    self.assertNotEqual(first, second)

  def test_layers_are_drawn_uniformly(self):
    # layergroup, check 3.
    stream = self.stream(epochs=20)
    cond = np.concatenate([b["cond"] for b in stream])
    share = np.bincount(cond, minlength=3) / len(cond)
    self.assertLen(cond, 8000)
    np.testing.assert_allclose(share, 1 / 3, atol=4 * np.sqrt(2 / 9 / 8000))

  def test_a_group_of_one_layer_gives_that_layer(self):
    # layergroup, check 2: singletons are the plain stream of their layer.
    plain = streams.array_batches(
      {"x": self.x()[:, 2]}, batch_rows=40, seed=0, epochs=2
    )
    for got, want in zip(self.stream((2,)), plain, strict=True):
      np.testing.assert_array_equal(got["x"], want["x"])
      np.testing.assert_array_equal(got["cond"], 0)

  def test_groups_draw_by_seeds_of_their_own(self):
    one, other = self.stream(seed=0), self.stream(seed=1)
    self.assertFalse((next(one)["cond"] == next(other)["cond"]).all())

  def test_a_position_that_went_through_json_is_exact(self):
    one, other = self.stream(), self.stream()
    for _ in range(7):
      next(one)
    other.set_state(json.loads(json.dumps(one.get_state())))
    for a, b in zip(one, other, strict=True):
      np.testing.assert_array_equal(a["x"], b["x"])

  def test_layers_that_are_not_there_are_refused(self):
    for layers in ((), (-1,)):
      with self.assertRaises(InputError):
        self.stream(layers)
    with self.assertRaisesRegex(ValueError, "more than 4"):
      next(self.stream((4,)))

  def test_a_draw_inside_a_program(self):
    x = self.x()
    found = jax.jit(streams.one_layer)(jax.random.key(0), x)
    want = x[np.arange(400), found["cond"]]
    np.testing.assert_array_equal(found["x"], want)
    self.assertEqual(set(found["cond"].tolist()), {0, 1, 2, 3})


class StackedTest(absltest.TestCase):
  def store(self, name, x, **changes):
    path = pathlib.Path(self.create_tempdir().full_path) / name
    sizes = {"bucket_rows": 256, "shard_rows": 128, "chunk_rows": 32}
    columns = {"x": x, "tok": changes.pop("tok", np.arange(len(x)))}
    return create.write_store(path, columns, **(sizes | changes))

  def test_stores_of_one_harvest_give_the_layers_of_each_row(self):
    x = np.arange(300, dtype=np.float32)[:, None]
    layers = [self.store(f"l{l}", x + 1000 * l) for l in range(3)]
    make = lambda: streams.Stacked(
      [iter(loader.batches(s, batch_rows=50, seed=1)) for s in layers], layers
    )
    one, other = make(), make()
    for batch in (next(one), next(one)):
      np.testing.assert_array_equal(batch["x"].shape, (50, 3, 1))
      np.testing.assert_array_equal(batch["x"][:, 2] - batch["x"][:, 0], 2000)
    other.set_state(json.loads(json.dumps(one.get_state())))
    for a, b in zip(one, other, strict=True):
      np.testing.assert_array_equal(a["x"], b["x"])

  def test_stores_of_other_tokens_are_refused(self):
    x = np.arange(300, dtype=np.float32)[:, None]
    tok = np.arange(300) % 7
    both = [self.store("a", x), self.store("b", x, tok=tok)]
    with self.assertRaisesRegex(InputError, "outlier_multiple=0"):
      streams.Stacked([], both)

  def test_streams_in_other_orders_are_refused(self):
    behind = [
      streams.array_batches(arrays(), batch_rows=BATCH, seed=s) for s in (0, 1)
    ]
    with self.assertRaisesRegex(ValueError, "same order"):
      next(streams.Stacked(behind))


class TrainingTest(absltest.TestCase):
  """The training loop and the training in memory take both as they are."""

  def recipe(self, k=2):
    return row_sparse.topk(4, 8, k, dead_after_tokens=1000)

  def train(self, folder, stream, steps):
    return loop.train(
      self.recipe,
      [fit.member(k=2)],
      stream,
      config=loop.TrainConfig(batch_rows=BATCH, checkpoint_steps=5),
      folder=folder,
      total_steps=steps,
      fingerprint={},
    )[0].sae

  def test_a_stopped_run_goes_on_to_the_same_weights(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    whole = self.train(folder / "whole", make(epochs=None), 12)
    stream, taken = make(epochs=None), []

    class Stopping:
      fields = stream.fields
      get_state = staticmethod(stream.get_state)
      set_state = staticmethod(stream.set_state)
      sample = staticmethod(stream.sample)

      def __next__(self):
        if len(taken) == 8:
          raise KeyboardInterrupt
        taken.append(next(stream))
        return taken[-1]

    with self.assertRaises(KeyboardInterrupt):
      self.train(folder / "stopped", Stopping(), 12)
    resumed = self.train(folder / "stopped", make(epochs=None), 12)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)

  def test_fit_takes_a_draw(self):
    draw = streams.array_draw(arrays(), batch_rows=BATCH, seed=0, epochs=2)
    _, states, _ = fit.fit(self.recipe(), draw, steps=3, members=[fit.member()])
    self.assertEqual(int(states[0].step), 3)


if __name__ == "__main__":
  absltest.main()
