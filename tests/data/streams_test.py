"""saejax/data/streams.py: each row once, exact position, the same in a step."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import streams
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
    _, states, _ = fit.fit(
      self.recipe(), draw, steps=3, members=[fit.member(k=2)]
    )
    self.assertEqual(int(states[0].step), 3)


if __name__ == "__main__":
  absltest.main()
