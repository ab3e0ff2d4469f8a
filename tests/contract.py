"""What every recipe must pass, on rows whose dictionary is known.

class ContractTest(absltest.TestCase):
  def test_batchtopk(self):
    contract.check(self, contract.Case(lambda: ..., floor=0.9))
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from saejax.sae import files
from saejax.sae.context import Batch, as_batch
from saejax.training import fit, sharding, sources, step
from saejax.training.checkpoint import Checkpoints
from saejax.training.members import Group
from saejax.training.recipe import Recipe, Record
from tests import compiled, toy

D, N, ROWS = 16, 32, 128
LAST = 8  # steps whose mean is the loss in the end
TRUTH = toy.dictionary(N, D)


def rows(i: Array) -> Array:
  """The planted rows of a step."""
  return toy.planted(toy.key(7, i), ROWS, TRUTH)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One recipe at the size of the contract: d 16, n 32, about 3 on a row.

  Attributes:
    make: the recipe.
    floor: that the mean over true directions of the best cosine must reach.
    draw: from the step to a batch.
    truth: directions to be found.
    steps, rate: of training.
    falls_to: the loss must end below this part of the first one.
    tolerance: of nmse, between the trained SAE in training and what users hold.
    stacked: whether members must be stacked.
    close: tolerance between ways of computing the same update.
  """

  make: Callable[[], Recipe]
  floor: float
  draw: Callable[[Array], Array | Batch] = rows
  truth: Array = dataclasses.field(default_factory=lambda: TRUTH)
  steps: int = 600
  rate: float = 5e-3
  falls_to: float = 0.7
  tolerance: float = 0.02
  stacked: bool = False
  close: float = 2e-4


def members(case: Case, count: int = 2):
  return [fit.member(seed, learning_rate=case.rate) for seed in range(count)]


def group(
  case: Case, *, stacked: bool, mesh=(1, 1, 1), count: int = 2
) -> Group:
  """The case's members."""
  recipe = case.make()
  return Group(
    lambda: recipe,
    members(case, count),
    mesh=sharding.make_mesh(mesh),
    stacked=stacked,
  )


def last(g, metrics):
  """The metrics of the last step, [members] each."""
  return {name: value[-1] for name, value in g.by_member(metrics).items()}


def lasting(recipe, metrics):
  """The loss without terms that are 0 until latents have died."""
  idle = {n: t.weight for n, t in recipe.terms.items() if t.active}
  return metrics["loss"] - sum(w * metrics[n] for n, w in idle.items())


def check(test, case: Case) -> None:
  """Everything that one device can show; failures name the claim."""
  recipe = case.make()
  first = as_batch(case.draw(jnp.asarray(0, jnp.int32)))

  with test.subTest("abstract init"):
    abstract = jax.eval_shape(
      lambda: step.init_state(recipe, jax.random.key(0), sample=first)
    )
    for leaf in jax.tree.leaves(abstract.sae):
      test.assertEqual(leaf.dtype, jnp.float32)

  g = group(case, stacked=case.stacked)
  start = g.init(first)
  copy = lambda states: jax.tree.map(jnp.array, states)
  states, early, _ = g.run_drawn(copy(start), case.draw, 0, 1)
  early = last(g, early)
  with test.subTest("no recompile on the second step"), compiled.nothing(test):
    states, *_ = g.run_drawn(states, case.draw, 1, 4)

  with test.subTest("exact resume"):
    want, *_ = g.run_drawn(copy(states), case.draw, 4, 6)
    with tempfile.TemporaryDirectory() as folder:
      again = restored(folder, states)
      got, *_ = g.run_drawn(again, case.draw, 4, 6)
    toy.assert_trees_equal(got, want)

  with test.subTest("vmap equals loop"):
    # Early, before rounding has grown. Coupled members have one way only.
    if not case.stacked:
      other = group(case, stacked=True)
      ways = [
        w.member_states(w.run_drawn(w.init(first), case.draw, 0, 3)[0])
        for w in (g, other)
      ]
      for one, two in zip(*ways, strict=True):
        toy.assert_trees_close(
          one.sae, two.sae, rtol=case.close, atol=case.close
        )

  states, late, _ = g.run_drawn(states, case.draw, 4, case.steps)
  # Some losses differ from step to step by what they draw.
  ends, late = lasting(recipe, g.by_member(late))[-LAST:], last(g, late)
  trained = g.member_states(states)
  saes = g.finished(g.trained(states), sources.Drawn(case.draw, case.steps))
  with test.subTest("finite"):
    for metrics in (early, late):
      for name, value in metrics.items():
        test.assertTrue(np.isfinite(value).all(), f"{name}: {value}")
    for leaf in jax.tree.leaves([state.sae for state in trained]):
      if jnp.issubdtype(leaf.dtype, jnp.floating):
        test.assertTrue(np.isfinite(leaf).all())
  with test.subTest("loss falls"):
    ratio = np.mean(ends, axis=0) / lasting(recipe, early)
    test.assertLess(ratio.max(), case.falls_to)
  with test.subTest("recovery"):
    cosines = [toy.best_cosines(case.truth, s.W_dec).mean() for s in saes]
    test.assertGreater(np.mean(cosines), case.floor)
  with test.subTest("inference form equals training form"):
    fresh = as_batch(case.draw(jnp.asarray(10**6 + 1, jnp.int32)))
    for state, sae in zip(trained, saes, strict=True):
      own = nmse(state.sae, fresh, state)
      test.assertLess(abs(nmse(sae, fresh) - own), case.tolerance)
  with test.subTest("save and load"), tempfile.TemporaryDirectory() as folder:
    files.save(saes[0], f"{folder}/sae")
    loaded = files.load(f"{folder}/sae")
    toy.assert_trees_equal(loaded, saes[0])
    # In one program: operation by operation, each is compiled on its own.
    reconstruct = jax.jit(lambda sae: sae.reconstruct(fresh))
    np.testing.assert_array_equal(reconstruct(loaded), reconstruct(saes[0]))


def check_on_devices(test, case: Case, mesh: tuple[int, ...]) -> None:
  """A mesh gives the updates, metrics and statistics that one device gives.

  Weights start equal bit for bit; counts of tokens are equal.
  """
  first = as_batch(case.draw(jnp.asarray(0, jnp.int32)))
  batches = [as_batch(case.draw(jnp.asarray(i, jnp.int32))) for i in (0, 1)]
  starts, ends, found = [], [], []
  for shape in ((1, 1, 1), mesh):
    stacked = case.stacked or mesh[0] > 1
    g = group(case, stacked=stacked, mesh=shape, count=max(2, mesh[0]))
    states = g.init(first)
    starts.append(jax.device_get([s.sae for s in states]))
    for batch in batches:
      fields = {k: v for k, v in vars(batch).items() if v is not None}
      states, metrics, _ = g.run(states, [g.put(fields)])
      jax.block_until_ready(states)
    ends.append(jax.device_get([(s.sae, s.stats) for s in states]))
    found.append(g.by_member(metrics))
  toy.assert_trees_equal(starts[1], starts[0])
  toy.assert_trees_close(ends[1], ends[0], rtol=case.close, atol=case.close)
  for (_, got), (_, want) in zip(*reversed(ends), strict=True):
    counts = {k: v for k, v in want.items() if v.dtype.kind in "ib"}
    toy.assert_trees_equal({k: got[k] for k in counts}, counts)
  for name, want in found[0].items():
    np.testing.assert_allclose(
      found[1][name], want, rtol=case.close, atol=case.close, err_msg=name
    )
  np.testing.assert_array_equal(found[1]["dead"], found[0]["dead"])


def nmse(sae, batch: Batch, state=None) -> float:
  """Error over spread, in the frame; with a state, as in training."""
  around = {}
  if state is not None:
    around = {
      "stats": state.stats,
      "step": state.step,
      "key": jax.random.key(9),
    }
  return float(_nmse(sae, batch, around, train=state is not None))


@functools.partial(jax.jit, static_argnames="train")
def _nmse(sae, batch: Batch, around: dict, *, train: bool):
  out = sae.forward(batch, engine="dense", train=train, **around)
  spread = out.target - jnp.mean(out.target, axis=0)
  return jnp.sum((out.target - out.x_hat) ** 2) / jnp.sum(spread**2)


def restored(folder: str, states, like=None):
  """States after a checkpoint and back, placed as others are."""

  class Stream:
    def get_state(self):
      return {"at": 4}

    def set_state(self, state):
      del state

  with Checkpoints(folder, fingerprint={}) as checkpoints:
    checkpoints.save(4, {"members": states}, Stream())
    checkpoints.wait()
    like = {"members": states if like is None else like}
    return checkpoints.restore(like, Stream())[1]["members"]


def record(recipe: Recipe, sae, batch, *, engine="dense", **around) -> Record:
  """A pass of an SAE on a batch as the step would make it."""
  stats = around.pop("stats", {})
  forward = sae.forward(batch, engine=engine, stats=stats, **around)
  return Record(forward=forward, sae=sae, stats=stats, engine=engine)
