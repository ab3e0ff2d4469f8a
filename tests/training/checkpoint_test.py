"""Tests of saejax.training.checkpoint."""

import json
import pathlib
import shutil
import tempfile
import warnings

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jaxtyping import Array

from saejax import errors
from saejax.training import checkpoint

PRINT = {"recipe": "topk", "sae": {"n": 64, "k": 4}, "environment": {"cpus": 2}}


class Member(flax.struct.PyTreeNode):
  """Every kind of leaf that a state of training has."""

  step: Array
  W: Array
  alive: Array
  words: Array
  half: Array
  none: Array | None
  key: Array
  opt: optax.OptState
  name: str = flax.struct.field(pytree_node=False, default="a")


def member(seed: int, n: int = 64, d: int = 8) -> Member:
  key = jax.random.key(seed)
  W = jax.random.normal(key, (n, d))
  return Member(
    step=jnp.int32(seed),
    W=W.at[0, 0].set(jnp.nan).at[0, 1].set(-0.0),
    alive=W[:, 0] > 0,
    words=jnp.full((2,), 2**32 - 1, jnp.uint32),
    half=W.astype(jnp.bfloat16),
    none=None,
    key=jax.random.split(key, 3),
    opt=optax.chain(optax.clip(1.0), optax.adam(1e-3)).init({"W": W}),
  )


def state(n: int = 64) -> tuple[Member, ...]:
  return member(1, n), member(2, n)


def bits(tree):
  """The tree's leaves as raw bytes, so that NaN and -0.0 count."""
  as_numpy = [
    np.asarray(jax.random.key_data(x))
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    else np.asarray(x)
    for x in jax.tree.leaves(tree)
  ]
  return [(x.dtype, x.shape, x.tobytes()) for x in as_numpy]


def temporary_folder(test: absltest.TestCase) -> str:
  return test.enter_context(tempfile.TemporaryDirectory())


def abstract(tree):
  return jax.eval_shape(lambda: tree)


def batches():
  source = grain.MapDataset.range(100).shuffle(seed=1).to_iter_dataset()
  return iter(source.batch(5))


class CheckpointTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(temporary_folder(self)) / "checkpoints"

  def open(self, fingerprint=None, **kwargs) -> checkpoint.Checkpoints:
    opened = checkpoint.Checkpoints(
      self.folder, fingerprint=fingerprint or PRINT, **kwargs
    )
    self.addCleanup(opened.close)
    return opened

  def save(self, step, state, iterator=None) -> None:
    with checkpoint.Checkpoints(self.folder, fingerprint=PRINT) as opened:
      opened.save(step, state, iterator)

  def steps(self) -> list[int]:
    return sorted(int(p.name.split("-")[0]) for p in self.folder.iterdir())

  @parameterized.parameters(True, False)
  def test_state_comes_back_bit_for_bit(self, from_abstract):
    saved = state()
    self.save(7, saved)
    template = abstract(saved) if from_abstract else state()
    step, restored = self.open().restore(template)
    self.assertEqual(step, 7)
    self.assertEqual(bits(restored), bits(saved))
    self.assertEqual(jax.tree.structure(restored), jax.tree.structure(saved))

  def test_an_empty_folder_restores_nothing(self):
    self.assertIsNone(self.open().restore(abstract(state())))
    self.assertIsNone(self.open().last())
    self.assertIsNone(self.open().best())

  def test_iterator_goes_on_with_the_next_batch(self):
    iterator = batches()
    for _ in range(3):
      next(iterator)
    checkpoints = self.open()
    checkpoints.save(3, state(), iterator)
    expected = [next(iterator).tolist() for _ in range(5)]
    checkpoints.wait()
    resumed = batches()
    self.open().restore(abstract(state()), resumed)
    self.assertEqual([next(resumed).tolist() for _ in range(5)], expected)

  def test_a_state_donated_right_after_the_save_is_saved_as_it_was(self):
    step = jax.jit(
      lambda x: jax.tree.map(lambda a: a * 1.5 + 1, x), donate_argnums=0
    )
    x = {"a": jnp.ones((1000, 1000)), "b": jnp.zeros((3_000_000,))}
    x = step(x)
    checkpoints = self.open()
    for i in range(6):
      expected = bits(jax.tree.map(jnp.copy, x))
      checkpoints.save(i, x)
      for _ in range(4):
        x = step(x)
      checkpoints.wait()
      _, restored = checkpoints.restore(abstract(x))
      self.assertEqual(bits(restored), expected)

  def test_the_last_and_the_best_are_kept(self):
    checkpoints = self.open()
    metrics = [0.9, 0.5, 0.7, None, float("nan"), 0.6]
    kept = []
    for step, metric in enumerate(metrics):
      checkpoints.save(step, {"x": jnp.float32(step)}, metric=metric)
      checkpoints.wait()
      kept.append(self.steps())
    self.assertEqual(kept, [[0], [1], [1, 2], [1, 3], [1, 4], [1, 5]])
    reopened = self.open()
    self.assertEqual(reopened.last()[:2], (5, 0.6))
    self.assertEqual(reopened.best()[:2], (1, 0.5))
    template = {"x": jnp.float32(0)}
    self.assertEqual(reopened.restore(template)[1]["x"], 5)
    self.assertEqual(reopened.restore(template, step=1)[1]["x"], 1)

  def test_only_the_last_is_kept_where_the_best_is_not_wanted(self):
    checkpoints = self.open(keep_best=False)
    for step, metric in enumerate([0.1, 0.5, 0.7]):
      checkpoints.save(step, {"x": jnp.float32(0)}, metric=metric)
    checkpoints.wait()
    self.assertEqual(self.steps(), [2])

  def test_the_same_step_may_be_saved_again(self):
    checkpoints = self.open()
    checkpoints.save(3, {"x": jnp.float32(1)}, metric=0.5)
    checkpoints.save(3, {"x": jnp.float32(2)}, metric=0.4)
    checkpoints.wait()
    self.assertLen(list(self.folder.iterdir()), 1)
    _, restored = self.open().restore({"x": jnp.float32(0)})
    self.assertEqual(restored["x"], 2)

  def test_going_on_from_an_earlier_step_gives_up_the_later_ones(self):
    checkpoints = self.open()
    checkpoints.save(10, {"x": jnp.float32(10)}, metric=0.5)
    checkpoints.save(20, {"x": jnp.float32(20)}, metric=0.6)
    self.assertEqual(checkpoints.restore({"x": jnp.float32(0)}, step=10)[0], 10)
    checkpoints.save(15, {"x": jnp.float32(15)}, metric=0.7)
    checkpoints.wait()
    self.assertEqual(self.steps(), [10, 15])
    self.assertEqual(self.open().last().step, 15)

  def test_an_absent_step_is_refused_with_those_there(self):
    checkpoints = self.open()
    checkpoints.save(3, {"x": jnp.float32(1)})
    with self.assertRaisesRegex(errors.InputError, r"step 4; choose.*\[3\]"):
      checkpoints.restore({"x": jnp.float32(1)}, step=4)

  def test_another_recipe_is_refused_and_nothing_touched(self):
    self.save(1, state())
    leftover = self.folder / "2.orbax-checkpoint-tmp"
    leftover.mkdir()
    before = sorted(self.folder.rglob("*"))
    other = {**PRINT, "sae": {"n": 64, "k": 8}}
    with self.assertRaises(errors.InputError) as caught:
      checkpoint.Checkpoints(self.folder, fingerprint=other)
    self.assertEqual(caught.exception.field, "run_dir")
    self.assertIn("sae.k=4 (now 8)", str(caught.exception))
    self.assertIn("choose another run_dir", str(caught.exception))
    self.assertEqual(sorted(self.folder.rglob("*")), before)

  @parameterized.parameters(
    ({"recipe": "topk"}, "sae.n=64"),
    ({**PRINT, "seed": 1}, "seed=absent"),
    ({**PRINT, "layers": [{"at": 3}]}, r"layers=absent \(now \[{'at': 3}\]\)"),
  )
  def test_missing_and_added_settings_are_refused(self, other, message):
    self.save(1, {"x": jnp.float32(1)})
    with self.assertRaisesRegex(errors.InputError, message):
      self.open({"environment": PRINT["environment"], **other})

  def test_a_difference_inside_a_list_is_named_by_its_place(self):
    with checkpoint.Checkpoints(
      self.folder, fingerprint={"members": [{"k": 4}, {"k": 8}]}
    ) as opened:
      opened.save(1, {"x": jnp.float32(1)})
    with self.assertRaisesRegex(errors.InputError, r"members.1.k=8 \(now 9\)"):
      self.open({"members": [{"k": 4}, {"k": 9}]})

  def test_another_environment_warns_and_goes_on(self):
    self.save(1, {"x": jnp.float32(1)})
    other = {**PRINT, "environment": {"cpus": 8}}
    with self.assertWarnsRegex(UserWarning, r"environment.cpus=2 \(now 8\)"):
      checkpoints = self.open(other)
    self.assertEqual(checkpoints.restore({"x": jnp.float32(0)})[0], 1)

  def test_the_same_settings_do_not_warn(self):
    self.save(1, {"x": jnp.float32(1)})
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      self.open(json.loads(json.dumps(PRINT)))

  @parameterized.parameters(
    (lambda s: state(128), r"0.W=float32\[64, 8\] \(now float32\[128, 8\]\)"),
    (lambda s: s[:1], r"1.step=int32\[\] \(now absent\)"),
    (lambda s: (*s, s[0]), r"2.step=absent \(now int32\[\]\)"),
    (lambda s: jax.tree.map(jnp.isnan, s[0].W), "absent"),
  )
  def test_another_shape_is_refused_and_the_iterator_left(self, other, message):
    self.save(1, state(), batches())
    iterator = batches()
    with self.assertRaisesRegex(errors.InputError, message):
      self.open().restore(abstract(other(state())), iterator)
    self.assertEqual(iterator.get_state(), batches().get_state())

  def test_a_checkpoint_without_position_refuses_an_iterator(self):
    self.save(1, {"x": jnp.float32(1)})
    with self.assertRaisesRegex(errors.InputError, "position in the data"):
      self.open().restore({"x": jnp.float32(1)}, batches())

  def saved_twice(self) -> dict[str, bytes]:
    """Checkpoints 3 and 7; the files of 7 by name."""
    iterator = batches()
    with checkpoint.Checkpoints(self.folder, fingerprint=PRINT) as opened:
      opened.save(3, {"x": jnp.arange(100.0)}, iterator, metric=0.1)
      next(iterator)
      opened.save(7, {"x": jnp.arange(100.0) + 1}, iterator, metric=0.2)
    seven = self.folder / "7"
    paths = [p for p in seven.rglob("*") if p.is_file()]
    return {str(p.relative_to(seven)): p.read_bytes() for p in sorted(paths)}

  def restored(self) -> tuple[int, float, list[str]]:
    """Step, first number, and the lines that were said."""
    said: list[str] = []
    with self.open(say=said.append) as opened:
      step, state = opened.restore({"x": jnp.zeros(100)}, batches())
    return step, float(state["x"][0]), said

  def test_a_damaged_file_falls_back_to_the_checkpoint_before(self):
    rng = np.random.default_rng(0)
    whole = self.saved_twice()
    self.assertIn("sums.json", whole)
    self.assertTrue(any("process-0-of-1" in name for name in whole))
    self.assertEqual(self.restored(), (7, 1.0, []))
    for name, content in whole.items():
      for damage in ("flip", "append", "lost"):
        with self.subTest(name, damage=damage):
          for old in self.folder.glob("7*"):
            shutil.rmtree(old)
          for other, was in whole.items():
            path = self.folder / "7" / other
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(was)
          path = self.folder / "7" / name
          changed = bytearray(content)
          if damage == "flip" and content:
            changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
          else:
            changed += b"}"
          path.write_bytes(changed)
          if damage == "lost":
            path.unlink()
          step, first, said = self.restored()
          self.assertEqual((step, first), (3, 0.0))
          self.assertLen(said, 1)
          if damage == "lost" and name == "sums.json":
            self.assertIn("7 is incomplete (no sums.json)", said[0])
          else:
            self.assertIn(f"7 is damaged ({name} ", said[0])
            self.assertEndsWith(said[0], "resuming from step 3")

  def test_the_step_of_a_damaged_checkpoint_can_be_saved_again(self):
    self.saved_twice()
    (self.folder / "7" / "_CHECKPOINT_METADATA").write_text("{}")
    with self.open(say=str) as opened:
      self.assertEqual(opened.restore({"x": jnp.zeros(100)})[0], 3)
      opened.save(7, {"x": jnp.zeros(100) + 5}, batches(), metric=0.05)
    self.assertEqual(self.restored(), (7, 5.0, []))
    self.assertEqual([p.name for p in self.folder.iterdir()], ["7"])

  def test_where_every_checkpoint_is_damaged_nothing_starts_from_0(self):
    self.saved_twice()
    for step in ("3", "7"):
      (self.folder / step / "sums.json").write_text("{}")
    before = sorted(self.folder.rglob("*"))
    with self.assertRaisesRegex(errors.InputError, "no other is left") as found:
      self.open()
    self.assertIn(str(self.folder), str(found.exception))
    self.assertIn("to start from step 0", str(found.exception))
    self.assertEqual(sorted(self.folder.rglob("*")), before)

  def test_the_last_whole_checkpoint_when_damaged_refuses_by_name(self):
    self.save(1, {"x": jnp.arange(10_000.0)})
    for path in (p for p in self.folder.rglob("d/*") if p.is_file()):
      path.write_bytes(b"\0" * path.stat().st_size)
    for _ in range(2):  # not by starting from 0 at the second attempt either
      with self.assertRaisesRegex(errors.InputError, "/1: .*is damaged"):
        self.open().restore({"x": jnp.zeros(10_000)})

  def test_a_checkpoint_under_the_name_of_another_step_is_damaged(self):
    self.saved_twice()
    (self.folder / "7").rename(self.folder / "9")
    self.assertEqual(self.restored()[:2], (3, 0.0))

  def test_foreign_and_half_written_folders_are_not_checkpoints(self):
    self.save(1, {"x": jnp.float32(1)})
    (self.folder / "77").mkdir()
    (self.folder / "notes").mkdir()
    (self.folder / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (self.folder / "0.removed").mkdir()
    self.assertEqual(self.open().last().step, 1)
    self.assertEqual(
      {p.name for p in self.folder.iterdir()}, {"1", "77", "notes"}
    )


if __name__ == "__main__":
  absltest.main()
