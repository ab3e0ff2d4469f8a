"""The loop: exact resume, what stops it, what it leaves behind."""

import dataclasses
import io
import json
import os
import pathlib
import signal
from functools import partial
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest

from saejax import interrupt
from saejax.data.batches import StoreBatches
from saejax.data.store import create
from saejax.errors import InputError
from saejax.kernels import dispatch
from saejax.kernels.fused_encode import batch
from saejax.recipes import batch_sparse, row_sparse
from saejax.sae import activations, budgets
from saejax.training import groups, log, loop, run_folder, sources
from saejax.training.members import Member
from saejax.training.recipe import Term
from tests import toy

D, N, ROWS, BATCH = 16, 64, 2_000, 64
MEMBERS = (
  Member(arguments=(("k", 2),), seed=0, learning_rate=3e-3),
  Member(arguments=(("k", 4),), seed=1, learning_rate=3e-3),
)
recipe = partial(row_sparse.topk, D, N, dead_after_tokens=300)


class Killed(Exception):
  """Stands for a kill: nothing after it runs."""


class Interrupted:
  """Batches that do something once, when a given one is asked for."""

  def __init__(self, batches, at: int, act):
    self._batches = batches
    self._left = at
    self._act = act

  def __next__(self):
    self._left -= 1
    if self._left == 0:
      self._act()
    return next(self._batches)

  def get_state(self):
    return self._batches.get_state()

  def set_state(self, state):
    self._batches.set_state(state)

  @property
  def fields(self):
    return self._batches.fields

  def sample(self, rows):
    return self._batches.sample(rows)


def kill():
  raise Killed


class LoopTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.x = np.random.default_rng(0).normal(size=(ROWS, D)).astype(np.float32)

  def store(self, x, name="store"):
    return create.write_store(
      self.folder / name,
      {"x": x, "doc": np.arange(len(x)) // 100},
      bucket_rows=1024,
      shard_rows=512,
      chunk_rows=128,
    )

  def batches(self, store):
    return StoreBatches(store, batch_rows=BATCH, seed=0)

  def train(self, name, batches, members=MEMBERS, steps=24, **kwargs):
    make = kwargs.pop("make", recipe)
    settings = {"batch_rows": BATCH, "checkpoint_steps": 5, "log_steps": 1}
    settings.update(kwargs.pop("config", {}))
    return loop.train(
      make,
      members,
      batches,
      config=loop.TrainConfig(**settings),
      folder=self.folder / name,
      total_steps=steps,
      fingerprint=kwargs.pop("fingerprint", {"recipe": "topk"}),
      stream=kwargs.pop("stream", io.StringIO()),
      **kwargs,
    )

  def scalars(self, name):
    records = log.read(self.folder / name)
    return [one["members"] for one in records if one["kind"] == "train"]

  def assert_same(self, found, expected):
    for a, b in zip(found, expected, strict=True):
      jax.tree.map(np.testing.assert_array_equal, a.sae, b.sae)

  def test_checkpoints_are_rated_in_the_training_form(self):
    make = lambda k: batch_sparse.mc_then_fc(
      D, 16, k, steps=24, phases=(0.5, 0.5), dead_after_tokens=10**6
    )
    rated = []
    (trained,) = self.train(
      "phases",
      self.batches(self.store(self.x)),
      members=MEMBERS[:1],
      make=make,
      metric=lambda forms: rated.append(forms) or 1.0,
    )
    self.assertLen(rated, 5)  # before the phase of thresholds too
    for ((sae, stats),) in rated:
      self.assertIsInstance(sae.activation, activations.Phased)
      self.assertIn(budgets.RANK, stats)
    toy.assert_trees_equal(rated[-1][0], (trained.trained, trained.stats))
    self.assertTrue(np.isfinite(trained.sae.activation.theta).all())

  def test_killed_and_repeated_ends_with_the_same_bits(self):
    store = self.store(self.x)
    for name, config, kills in (
      ("in_turn", {}, (1, 24)),
      ("stacked", {"members": "stacked"}, (7,)),
      ("several", {"steps_per_dispatch": 3}, (14,)),
      ("no divisor", {"steps_per_dispatch": 7, "checkpoint_steps": 5}, (14,)),
    ):
      with self.subTest(name):
        whole = self.train(f"{name}-a", self.batches(store), config=config)
        for at in kills:
          broken = Interrupted(self.batches(store), at, kill)
          with self.assertRaises(Killed):
            self.train(f"{name}-{at}", broken, config=config)
          again = self.train(f"{name}-{at}", self.batches(store), config=config)
          self.assert_same(again, whole)

  def test_the_cadence_of_checkpoints_is_kept_and_changes_no_bits(self):
    store = self.store(self.x)
    found = {}
    for cadence in (5, 24, 100):
      saved, save = [], run_folder.RunFolder.save

      def saving(self, step, *rest, saved=saved, save=save):
        saved.append(step)
        save(self, step, *rest)

      with mock.patch.object(run_folder.RunFolder, "save", saving):
        found[cadence] = self.train(
          str(cadence),
          self.batches(store),
          config={"checkpoint_steps": cadence, "steps_per_dispatch": 7},
        )
      due = [*range(cadence, 25, cadence), *[24] * (24 % cadence > 0)]
      self.assertEqual(saved, due if cadence <= 24 else [])
    self.assert_same(found[5], found[100])
    self.assert_same(found[24], found[100])

  def test_small_steps_are_many_in_a_call_and_large_ones_alone(self):
    source = sources.source_of(self.batches(self.store(self.x)))
    config = loop.TrainConfig(batch_rows=BATCH)
    group = groups.build(recipe, MEMBERS, source, config)
    many = lambda **more: groups.steps_at_once(
      group, 1000, dataclasses.replace(config, **more)
    )
    self.assertEqual(many(), 50)
    self.assertEqual(many(steps_per_dispatch=3), 3)
    self.assertEqual(groups.steps_at_once(group, 24, config), 24)
    middle, large = many(batch_rows=200_000), many(batch_rows=10**8)
    self.assertBetween(middle, 2, 49)
    self.assertEqual(large, 1)

  def test_steps_are_traced_under_the_setting_of_kernels(self):
    traced = set()

    def make(k):
      def told(record):
        traced.add(dispatch.current().kernels)
        return record.forward.latents.sum()

      terms = {"told": Term(fn=told, weight=0.0)}
      made = recipe(k)
      return dataclasses.replace(made, terms={**made.terms, **terms})

    store = self.store(self.x)
    for kernels in ("pallas", "xla"):
      traced.clear()
      config = {"kernels": kernels}
      self.train(
        kernels, self.batches(store), steps=2, make=make, config=config
      )
      self.assertEqual(traced, {kernels})
    self.assertEqual(dispatch.current().kernels, "auto")

  def test_on_an_accelerator_k_that_is_no_limit_alone_is_trained_in_turn(self):
    store = self.store(self.x)
    make = lambda k: dataclasses.replace(recipe(k), static_k=True)
    here = self.train("here", self.batches(store), steps=3, make=make)
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):
      there = self.train("there", self.batches(store), steps=3, make=make)
    self.assert_same(there, here)
    self.assertEqual([t.sae.activation.k for t in there], [2, 4])

  def test_metrics_have_each_step_once_after_a_kill(self):
    store = self.store(self.x)
    with self.assertRaises(Killed):
      self.train("a", Interrupted(self.batches(store), 14, kill))
    self.train("a", self.batches(store))
    steps = [record["step"] for record in log.read(self.folder / "a")]
    self.assertEqual(steps, list(range(1, 25)))

  def test_a_signal_saves_and_the_same_command_goes_on(self):
    store = self.store(self.x)
    single = {"steps_per_dispatch": 1}
    whole = self.train("a", self.batches(store), config=single)
    stop = partial(os.kill, os.getpid(), signal.SIGTERM)
    with interrupt.installed(), self.assertRaises(SystemExit) as caught:
      self.train("b", Interrupted(self.batches(store), 8, stop), config=single)
    self.assertEqual(caught.exception.code, 128 + signal.SIGTERM)
    saved = {p.name for p in (self.folder / "b" / "checkpoints").iterdir()}
    self.assertIn("7", saved)  # the next batch is read while a step runs
    self.assert_same(self.train("b", self.batches(store), config=single), whole)

  def test_training_leaves_the_handlers_of_signals_alone(self):
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    during = []
    look = lambda: during.extend(map(signal.getsignal, interrupt.SIGNALS))
    self.train("a", Interrupted(self.batches(self.store(self.x)), 2, look))
    self.assertEqual(during, before)

  def test_a_report_on_rows_that_cannot_be_written_does_not_hide_the_cause(
    self,
  ):
    x = self.x.copy()
    x[:] = np.nan
    (self.folder / "a" / "nonfinite.json").mkdir(parents=True)
    with self.assertRaisesRegex(
      loop.NonFiniteError,
      "step 0: rows of the batch are not finite; rows could",
    ):
      self.train("a", self.batches(self.store(x)))

  def test_non_finite_rows_stop_and_their_provenance_is_written(self):
    x = self.x.copy()
    x[777, 3] = np.nan
    store = self.store(x)
    batches = self.batches(store)
    bad = next(
      i for i in range(24) if not np.isfinite(next(batches)["x"]).all()
    )
    with self.assertRaisesRegex(loop.NonFiniteError, f"step {bad}: rows"):
      self.train("a", self.batches(store), provenance=store.provenance)
    report = json.loads((self.folder / "a" / "nonfinite.json").read_text())
    self.assertEqual(report["step"], bad)
    self.assertIn(7, report["provenance"]["doc"])
    saved = {int(p.name) for p in (self.folder / "a/checkpoints").iterdir()}
    self.assertEqual(max(saved), bad // 5 * 5)

  def test_non_finite_rows_can_be_skipped(self):
    x = self.x.copy()
    x[777, 3] = np.inf
    store = self.store(x)
    found = self.train("a", self.batches(store), config={"nonfinite": "skip"})
    for member in found:
      self.assertEqual(member.status, "ok")
      for leaf in jax.tree.leaves(member.sae):
        self.assertTrue(np.isfinite(leaf).all())

  def test_one_member_that_diverges_is_frozen_and_the_others_go_on(self):
    store = self.store(self.x)
    whole = self.train("a", self.batches(store))
    wild = Member(arguments=(("k", 4),), seed=1, learning_rate=1e38)
    run = partial(self.train, members=(MEMBERS[0], wild))
    found = run("b", self.batches(store))
    self.assertRegex(found[1].status, "diverged at step [0-9]+")
    for leaf in jax.tree.leaves(found[1].sae):
      self.assertTrue(np.isfinite(leaf).all())
    self.assertEqual(found[0].status, "ok")
    self.assert_same(found[:1], whole[:1])
    # And after a kill: it stays frozen, and the records are the same.
    with self.assertRaises(Killed):
      run("c", Interrupted(self.batches(store), 18, kill))
    said = io.StringIO()
    again = run("c", self.batches(store), stream=said)
    self.assert_same(again, found)
    self.assertEqual([m.status for m in again], [m.status for m in found])
    self.assertIn(f"{wild.name}: {again[1].status}, stays", said.getvalue())
    first, second = (self.scalars(name) for name in "bc")
    np.testing.assert_equal(second, first)
    failed = int(again[1].state.failed_step)
    self.assertEqual(first[-1][wild.name]["diverged_step"], failed)
    self.assertNotIn("diverged_step", first[-1][MEMBERS[0].name])

  def test_all_members_diverging_stops(self):
    store = self.store(self.x)
    wild = [
      Member(arguments=(("k", 2),), seed=s, learning_rate=1e38) for s in (0, 1)
    ]
    with self.assertRaisesRegex(loop.NonFiniteError, "no member's loss"):
      self.train("a", self.batches(store), wild)

  def test_best_checkpoint_is_kept_by_the_metric(self):
    store = self.store(self.x)
    ratings = iter([3.0, 1.0, 2.0, 5.0, 4.0])
    self.train("a", self.batches(store), metric=lambda saes: next(ratings))
    kept = {int(p.name) for p in (self.folder / "a/checkpoints").iterdir()}
    self.assertEqual(kept, {10, 24})

  def test_another_run_in_the_folder_is_refused_and_left_alone(self):
    store = self.store(self.x)
    self.train("a", self.batches(store))

    def files():
      paths = (self.folder / "a").rglob("*")
      return {p: p.stat().st_mtime_ns for p in paths if p.is_file()}

    before = files()
    for change in (
      {"fingerprint": {"recipe": "other"}},
      {"members": MEMBERS[:1]},
      {"steps": 30},
    ):
      with self.assertRaises(InputError) as caught:
        self.train("a", self.batches(store), **change)
      self.assertEqual(caught.exception.field, "run_dir")
    self.assertEqual(files(), before)

  def test_what_the_mesh_does_not_divide_is_refused(self):
    store = self.store(self.x)
    with self.assertRaises(InputError) as caught:
      self.train("a", self.batches(store), config={"mesh": (1, 1, 3)})
    self.assertEqual(caught.exception.field, "train.mesh")
    with self.assertRaises(InputError):
      self.train("a", self.batches(store), config={"mesh": (1, 1)})

  def test_a_limit_that_never_acts_or_always_is_reported(self):
    store = self.store(self.x)
    for name, clip, said in (
      ("never", 1e6, "never acted in 8 steps"),
      ("always", 1e-6, "acted in all 8 steps"),
      ("unit", "unit", ""),
    ):
      shown = io.StringIO()
      self.train(
        name,
        self.batches(store),
        make=partial(recipe, clip_norm=clip),
        steps=8,
        stream=shown,
      )
      lines = [t for t in shown.getvalue().splitlines() if "the limit on" in t]
      self.assertLen(lines, len(MEMBERS) if said else 0)
      for line in lines:
        self.assertIn(said, line)

  def test_steps_that_were_done_over_are_reported(self):
    store, shown = self.store(self.x), io.StringIO()
    make = partial(batch_sparse.batchtopk, D, 4 * N, dead_after_tokens=300)
    with mock.patch.multiple(batch, BATCH_BYTES=0, CANDIDATES=1):
      self.train(
        "redone",
        self.batches(store),
        make=make,
        members=MEMBERS[:1],
        steps=8,
        stream=shown,
      )
    self.assertRegex(shown.getvalue(), "100% of 8 steps were done over")

  def test_impossible_settings_are_refused(self):
    for setting in (
      {"batch_rows": 0},
      {"learning_rate": 0.0},
      {"learning_rate": float("nan")},
      {"decay_fraction": 1.5},
      {"clip_norm": -1.0},
      {"ema_decay": 1.0},
      {"checkpoint_steps": 0},
    ):
      with self.assertRaises(InputError) as caught:
        loop.TrainConfig(**setting)
      self.assertEqual([caught.exception.field], list(setting))


if __name__ == "__main__":
  absltest.main()
