"""The loop on rows that are drawn on the device: resume, cadence, faults."""

import dataclasses
import io
import json
import os
import pathlib
import signal
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax import interrupt
from saejax.data import streams
from saejax.errors import InputError
from saejax.recipes import row_sparse, several
from saejax.training import groups, loop, run_folder, sources
from saejax.training.members import Member
from tests import toy

D, N, BATCH = 8, 32, 48
MEMBERS = tuple(
  Member(arguments=(("k", k),), seed=0, learning_rate=3e-3) for k in (2, 4)
)
recipe = partial(row_sparse.topk, D, N, dead_after_tokens=300)
X = np.random.default_rng(0).normal(size=(500, D)).astype(np.float32)
CONFIG = loop.TrainConfig(batch_rows=BATCH, checkpoint_steps=20, log_steps=10)


def drawn(x=X):
  draw = streams.array_draw({"x": x}, batch_rows=BATCH, seed=0, epochs=20)
  return sources.Drawn(draw, 110, arrays={"x": x})


class Killed(Exception):
  """Stands for a kill: nothing after it runs."""


class DrawnTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def train(self, name=None, rows=None, config=None, **more):
    config = dataclasses.replace(CONFIG, **(config or {}))
    return loop.train(
      more.pop("make", recipe),
      more.pop("members", MEMBERS),
      rows or drawn(),
      config=config,
      folder=name and self.folder / name,
      total_steps=more.pop("steps", 110),
      stream=io.StringIO(),
      **more,
    )

  def assert_same(self, found, expected):
    for one, two in zip(found, expected, strict=True):
      toy.assert_trees_equal((one.sae, one.trained), (two.sae, two.trained))

  def test_cadences_and_a_folder_change_no_bits(self):
    memory = self.train()
    for name, config in (
      ("a", {}),
      ("b", {"checkpoint_steps": 7, "log_steps": 3}),
      ("c", {"steps_per_dispatch": 13}),
    ):
      self.assert_same(self.train(name, config=config), memory)

  def test_killed_and_repeated_ends_with_the_same_bits(self):
    whole = self.train()
    save = run_folder.RunFolder.save

    def killing(self, step, *rest):
      save(self, step, *rest)
      if step == 60:
        raise Killed

    with (
      mock.patch.object(run_folder.RunFolder, "save", killing),
      self.assertRaises(Killed),
    ):
      self.train("a")
    lines = io.StringIO()
    again = loop.train(
      recipe,
      MEMBERS,
      drawn(),
      config=CONFIG,
      folder=self.folder / "a",
      total_steps=110,
      stream=lines,
    )
    self.assertIn("resuming from step 60", lines.getvalue())
    self.assert_same(again, whole)

  def test_a_run_shorter_than_the_cadence_saves_only_at_a_signal(self):
    config = {"checkpoint_steps": 500}
    whole = self.train("a", config=config)
    saved = self.folder / "a" / "checkpoints"
    self.assertFalse(saved.exists())
    self.assert_same(self.train("a", config=config), whole)
    with self.assertRaisesRegex(InputError, "holds a run with .*seed"):
      self.train("a", config=config, fingerprint={"seed": 1})

    stop = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    take = sources.Drawn.take

    def stopping(self, step, count, **more):
      if step == 50:
        stop()
      return take(self, step, count, **more)

    with (
      interrupt.installed(),
      mock.patch.object(sources.Drawn, "take", stopping),
      self.assertRaises(interrupt.Stopped),
    ):
      self.train("b", config=config)
    names = {p.name for p in (self.folder / "b" / "checkpoints").iterdir()}
    self.assertEqual(names, {"100"})
    self.assert_same(self.train("b", config=config), whole)

  def test_rows_that_are_not_finite_are_named_inside_a_dispatch(self):
    x = X.copy()
    x[123, 3] = np.nan
    order = streams.array_batches({"x": x}, batch_rows=BATCH, seed=0)
    bad = next(i for i in range(10) if 123 in order.order(i))
    where = lambda rows: {"tenth": rows // 10}
    with self.assertRaisesRegex(loop.NonFiniteError, f"step {bad}: rows"):
      self.train("a", drawn(x), provenance=where, sample=X)
    report = json.loads((self.folder / "a" / "nonfinite.json").read_text())
    self.assertEqual(report["step"], bad)
    self.assertEqual(report["rows"], order.order(bad).tolist())
    self.assertIn(12, report["provenance"]["tenth"])
    with self.assertRaises(loop.NonFiniteError) as caught:
      self.train(None, drawn(x), sample=X)
    self.assertEqual(
      (caught.exception.step, caught.exception.rows_ok), (bad, False)
    )
    found = self.train(None, drawn(x), config={"nonfinite": "skip"}, sample=X)
    self.assertEqual([own.status for own in found], ["ok", "ok"])

  def test_members_that_all_diverge_stop_the_run_or_are_returned(self):
    wild = [dataclasses.replace(m, learning_rate=1e38) for m in MEMBERS]
    with self.assertRaisesRegex(loop.NonFiniteError, "no member's loss"):
      self.train(members=wild)
    found = self.train(members=wild, all_frozen=True)
    for own in found:
      self.assertRegex(own.status, "diverged at step [0-9]+")
      self.assertTrue(np.isfinite(own.sae.W_dec).all())

  def test_every_step_is_observed_once_and_in_order(self):
    seen = []
    self.train(observe=lambda step, found: seen.append((step, found["loss"])))
    self.assertEqual([step for step, _ in seen], list(range(110)))
    self.assertEqual({loss.shape for _, loss in seen}, {(2,)})

  def test_drawn_rows_are_refused_on_a_mesh(self):
    with self.assertRaisesRegex(InputError, "train.mesh"):
      groups.check_source(drawn(), jax.sharding.AbstractMesh((2,), ("data",)))

  def test_coupled_members_of_several_arguments_are_several_stacks(self):
    make = lambda coefficient: several.mfr(
      D, N, 4, coefficient=coefficient, steps=12, dead_after_tokens=300
    )
    members = [
      Member(arguments=(("coefficient", c),), seed=seed, learning_rate=3e-3)
      for c in (0.01, 0.1)
      for seed in (0, 1)
    ]
    both = self.train("a", members=members, make=make, steps=12)
    self.assertLen(both, 4)
    for pair, own in ((both[:2], members[:2]), (both[2:], members[2:])):
      self.assert_same(self.train(members=own, make=make, steps=12), pair)
    stream = streams.array_batches(
      {"x": X}, batch_rows=BATCH, seed=0, epochs=20
    )
    read = self.train(members=members, make=make, steps=12, rows=stream)
    for one, two in zip(read, both, strict=True):
      toy.assert_trees_close(one.sae, two.sae, rtol=1e-4, atol=1e-5)


class SampleTest(absltest.TestCase):
  def test_samples_are_even_rows_or_whole_batches(self):
    even = X[np.linspace(0, 499, 50).astype(int)]
    np.testing.assert_array_equal(drawn().sample(50).x, even)
    source = sources.Drawn(lambda i: jnp.full((4, 2), i, jnp.float32), 9)
    self.assertEqual(source.fields, ("x",))
    np.testing.assert_array_equal(source.sample(9).x[::4, 0], [0, 4, 8])

  def test_the_position_is_kept(self):
    source = drawn()
    source.take(0, 7)
    other = drawn()
    other.set_state(json.loads(json.dumps(source.get_state())))
    self.assertEqual(other.get_state(), {"batches": 7})

  def test_batches_read_ahead_are_moved_once_and_do_not_count(self):
    moved = []

    class Group:
      def put(self, batch, parts):
        moved.append(batch["row"].tolist())
        return len(moved)

      def run(self, states, xs, *, most):
        return states, xs, np.zeros(1)

    order = streams.array_batches({"x": X}, batch_rows=100, seed=0)
    rows = [order.order(i).tolist() for i in range(5)]
    source, group = sources.Stream(order), Group()
    feed = source.take(0, 1)
    self.assertEqual(feed.run(group, None)[1], [1])
    source.ahead(2, group)
    source.ahead(2, group)  # they are there
    self.assertEqual(moved, rows[:3])
    self.assertEqual(source.get_state(), {"batches": 1})
    feed = source.take(1, 3)  # two of them, and one that was not read
    self.assertEqual(source.get_state(), {"batches": 4})
    self.assertEqual(feed.run(group, None)[1], [2, 3, 4])
    self.assertEqual([feed.rows(i).tolist() for i in range(3)], rows[1:4])
    source.ahead(2, group)  # the stream has one more: the end is a later error
    source.take(4, 1)
    with self.assertRaisesRegex(InputError, "ended after 5 batches"):
      source.take(5, 1)
    source.set_state({"batches": 3})
    source.ahead(1, group)
    self.assertEqual(source.get_state(), {"batches": 3})
    self.assertEqual(source.take(3, 1).rows(0).tolist(), rows[3])

  def test_errors_of_reading_ahead_belong_to_their_step(self):
    class Broken:
      fields, given = ("x",), 0

      def __next__(self):
        self.given += 1
        if self.given == 2:
          raise InputError("store", "s", "is damaged", "repair it")
        return {"x": X[:4]}

      def get_state(self):
        return self.given

    group = mock.Mock()
    source = sources.Stream(Broken())
    source.take(0, 1)
    source.ahead(1, group)
    self.assertEqual(source.get_state(), 1)
    with self.assertRaisesRegex(InputError, "is damaged"):
      source.take(1, 1)

  def test_a_stream_that_ends_early_says_when(self):
    stream = streams.array_batches({"x": X}, batch_rows=100, seed=0)
    with self.assertRaisesRegex(InputError, "the stream ended after 5 batches"):
      sources.Stream(stream).take(0, 6)


if __name__ == "__main__":
  absltest.main()
