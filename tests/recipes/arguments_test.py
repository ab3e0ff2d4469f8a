"""Tests of saejax.recipes.arguments: every argument of every recipe."""

import dataclasses
import functools
import pathlib
import sys
import tempfile
import types
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import fields
from saejax.errors import InputError
from saejax.recipes import arguments, catalogue, common
from saejax.runs.config import SAEConfig
from saejax.sae import files
from saejax.training import loop
from saejax.training.parts import clipping
from tests import toy

D, N = 16, 64
RUN = {"dead_after_tokens": 1000, "steps": 100, "batch_rows": 64}
FOLDER = tempfile.TemporaryDirectory()

# Arguments that must be given, or whose default needs more latents.
BASE = {
  "": {"k": 4, "coefficient": 0.1, "frequency": 0.1},
  "gba": {"groups": 8},
  "msae": {"levels": 8},
  "adaptivek": {"min_k": 2, "max_k": 8},
  "layergroup": {"layers": 2},
}
# Another value, where the type does not give one, and what must hold beside it.
OTHER = {
  "k": (5, {}),
  "group_max.k": (8, {}),
  "k_aux": (3, {}),
  "k_start": (9, {}),
  "k_sparse.alpha": (2.0, {}),
  "phases": ((0.5, 0.5), {}),
  "feature_choice.alpha": (2.0, {"budget": "zipf"}),
  "feature_choice.beta": (2.0, {"budget": "zipf"}),
  "groups": (4, {}),
  "train_b_pre": (False, {}),
  "prefixes": ((8, N), {}),
  "matryoshka.weights": ((1.0, 2.0, 3.0, 4.0, 5.0), {}),
  "hierarchical_topk.weights": ((1.0, 2.0, 3.0, 4.0), {}),
  "atm.weights": ((0.5, 0.25, 0.25), {}),
  "msae.weights": ((4.0, 3.0, 2.0, 1.0), {}),
  "sampled": (3, {}),
  "sampled_power": (0.25, {"sampled": 3}),
  "sampled_shortest": (2, {"sampled": 3}),
  "sort_decay": (0.5, {}),
  "levels": ((2, 4), {}),
  "m": (4, {}),
  "q": (2, {}),
  "shared": (True, {"q": 2}),
  "points": (N + 1, {}),
  "scores": ((0.0, 5.0), {}),
  "target_l0": (5.0, {"penalty": "l0_target", "target_l0": 4.0}),
  "target_scope": ("row", {"penalty": "l0_target", "target_l0": 4.0}),
  "penalty": ("l0_target", {"target_l0": 4.0}),
  "tanh_scale": (2.0, {"penalty": "tanh"}),
  "tanh_rate": (0.5, {"penalty": "tanh_quadratic"}),
  "exponent": (0.25, {"penalty": "power"}),
  "timesteps": (7, {}),
  "layers": (3, {}),
  "scale": ((1.0, 2.0), {"scale": (1.0, 3.0), "layers": None}),
  "rate_warmup": (0.5, {}),
  "ranks": ("powers", {}),
  "init_from": (lambda: general(1), {}),
}
SETS = [
  (name, leaf.name)
  for name, method in catalogue.METHODS.items()
  for leaf in arguments.leaves(method.make)
]


@functools.cache
def general(seed: int) -> str:
  """The folder of a general SAE."""
  folder = f"{FOLDER.name}/{seed}"
  files.save(toy.sae(d=D, n=N, seed=seed), folder)
  return folder


def base(name: str) -> dict:
  """Arguments with which a recipe can be made at the size of these tests."""
  known = {leaf.name for leaf in arguments.leaves(name)}
  shared = {k: v for k, v in BASE[""].items() if k in known}
  given = {**shared, **BASE.get(name, {})}
  return given | {"init_from": general(0)} if "init_from" in known else given


def make(name: str, given: Mapping):
  given = {k: v for k, v in given.items() if v is not None}
  return arguments.make(name, d=D, n=N, arguments=given, **RUN)


def other(name: str, leaf: fields.Leaf) -> tuple[object, dict]:
  """Another value of an argument, and what must be set beside it."""
  short = leaf.name
  found = OTHER.get(f"{name}.{short}", OTHER.get(short))
  now = base(name).get(short, leaf.default)
  if found and (f"{name}.{short}" in OTHER or type(found[0]) is not type(None)):
    value, beside = found
    return (value() if callable(value) else value), beside
  if typing.get_origin(leaf.kind) is typing.Literal:
    return next(c for c in typing.get_args(leaf.kind) if c != now), {}
  if isinstance(now, bool):
    return not now, {}
  if isinstance(now, int):
    return now + 1, {}
  if isinstance(now, float):
    return now / 2 if now else 0.5, {}
  raise ValueError(f"say another value of {name}.{short}")


def plain(thing):
  """A recipe as nested tuples that compare: closures and partials opened."""
  if isinstance(thing, functools.partial):
    return ("partial", *map(plain, (thing.func, thing.args, thing.keywords)))
  if isinstance(thing, types.FunctionType):
    cells = [cell.cell_contents for cell in thing.__closure__ or ()]
    given = (thing.__defaults__, thing.__kwdefaults__)
    return (thing.__module__, thing.__qualname__, plain(cells), plain(given))
  if isinstance(thing, types.MethodType):
    return (thing.__func__.__qualname__, plain(thing.__self__))
  if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
    names = [f.name for f in dataclasses.fields(thing)]
    values = [plain(getattr(thing, name)) for name in names]
    return (type(thing).__qualname__, *values)
  if isinstance(thing, Mapping):
    return tuple((key, plain(value)) for key, value in thing.items())
  if isinstance(thing, list | tuple):
    return tuple(map(plain, thing))
  if isinstance(thing, jax.Array | np.ndarray):
    return (str(thing.dtype), thing.shape, np.asarray(thing).tobytes())
  return thing


class EveryArgumentTest(parameterized.TestCase):
  @parameterized.parameters(*SETS)
  def test_another_value_makes_another_recipe(self, name, argument):
    (leaf,) = (a for a in arguments.leaves(name) if a.name == argument)
    value, beside = other(name, leaf)
    before = {**base(name), **beside}
    if argument == "penalty":
      before = base(name)
    after = {**base(name), **beside, argument: value}
    one, same, two = (make(name, given) for given in (before, before, after))
    self.assertEqual(plain(one), plain(same))
    self.assertNotEqual(plain(one), plain(two), f"{argument}={value!r}")

  @parameterized.parameters(*SETS)
  def test_it_is_documented_and_its_default_has_a_text(self, name, argument):
    (leaf,) = (a for a in arguments.leaves(name) if a.name == argument)
    self.assertNotEmpty(leaf.comment)
    self.assertNotIn("\n", leaf.comment)
    if leaf.default is not fields.MISSING:
      text = fields.show(leaf.kind, leaf.default)
      self.assertEqual(fields.read(leaf.kind, text), leaf.default)

  def test_none_has_the_name_of_a_setting_of_the_run(self):
    settings = {f.name for f in dataclasses.fields(loop.TrainConfig)}
    settings |= {f.name for f in dataclasses.fields(SAEConfig)}
    settings |= set(common.Options.__annotations__)
    self.assertEmpty([s for s in SETS if s[1] in settings])

  @parameterized.parameters(
    *(
      (name, leaf.name)
      for name in catalogue.METHODS
      for leaf in arguments.leaves(name)
      if leaf.comment.startswith("fraction of the run")
    )
  )
  def test_durations_are_fractions_of_the_run(self, name, argument):
    for value in (-0.1, 1.5):
      with self.assertRaises(InputError) as caught:
        make(name, {**base(name), argument: value})
      self.assertEqual(caught.exception.field, argument)
      self.assertEqual(caught.exception.value, value)

  def test_names_that_are_no_choice_are_refused(self):
    for name, argument in SETS:
      (leaf,) = (a for a in arguments.leaves(name) if a.name == argument)
      kinds = [leaf.kind, *typing.get_args(leaf.kind)]
      if any(typing.get_origin(kind) is typing.Literal for kind in kinds):
        with self.subTest(f"{name}.{argument}"):
          with self.assertRaises(InputError) as caught:
            make(name, {**base(name), argument: "nonsense"})
          self.assertEqual(caught.exception.field, argument)

  @parameterized.parameters(
    *(
      (name, leaf.name, value)
      for name in catalogue.METHODS
      for leaf in arguments.leaves(name)
      for value in (-2, float("nan"))
      if {leaf.kind, *typing.get_args(leaf.kind)} & {int, float}
      and typing.get_origin(leaf.kind) is not tuple
      and (isinstance(value, int) or leaf.kind is float)
      and (isinstance(value, float) or leaf.name != "c")
    )
  )
  def test_numbers_out_of_their_range_are_refused(self, name, argument, value):
    beside = OTHER.get(f"{name}.{argument}", OTHER.get(argument, (0, {})))[1]
    with self.assertRaises(InputError) as caught:
      make(name, {**base(name), **beside, argument: value})
    self.assertIn(argument, caught.exception.field)


class MakeTest(parameterized.TestCase):
  def test_the_catalogue_names_an_argument_that_moves_l0(self):
    for name, method in catalogue.METHODS.items():
      known = [leaf.name for leaf in arguments.leaves(name)]
      self.assertIn(method.sweeps, [*known, ""], name)

  def test_an_argument_of_another_recipe_is_refused_with_those_that_have_it(
    self,
  ):
    with self.assertRaises(InputError) as caught:
      make("topk", {"k": 4, "theta": 0.1})
    self.assertEqual(caught.exception.field, "theta")
    self.assertContainsSubset(
      {"jumprelu,", "gemma_scope"}, str(caught.exception).split()
    )
    with self.assertRaisesRegex(InputError, "no recipe has it"):
      make("topk", {"k": 4, "thete": 0.1})

  def test_what_must_be_given_is_asked_for(self):
    with self.assertRaisesRegex(InputError, "k=: must be given for topk"):
      make("topk", {})

  def test_a_word_that_no_run_knows_is_refused(self):
    with self.assertRaisesRegex(InputError, "warmup_steps=3: is neither"):
      catalogue.METHODS["topk"].make(D, N, 4, warmup_steps=3, **RUN)

  @parameterized.parameters("topkk", "no.such:thing", "math:pi", "math:sqrt")
  def test_what_is_no_recipe_is_refused(self, name):
    with self.assertRaises(InputError) as caught:
      arguments.find(name)
    self.assertEqual(caught.exception.field, "recipe")

  def test_an_argument_that_no_flag_can_hold_is_named(self):
    def listed(d, n, q: list, **options):
      raise NotImplementedError

    def bare(d, n, q=None, **options):
      raise NotImplementedError

    for fn in (listed, bare):
      with self.assertRaisesRegex(
        InputError, f"recipe={fn.__name__}: its argument q cannot"
      ):
        arguments.leaves(fn)

  def test_a_recipe_of_ones_own_is_found_by_module_and_function(self):
    text = '''
from saejax.recipes import row_sparse

def mine(d, n, *, k: int, gain=2.0, **options):
  """A recipe.

  Args:
    k: active latents.
    gain: of something, said
      on two lines: with a colon.
  """
  return row_sparse.topk(d, n, k, **options)
'''
    with tempfile.TemporaryDirectory() as folder:
      pathlib.Path(folder, "my_recipes.py").write_text(text)
      sys.path.insert(0, folder)
      self.addCleanup(sys.path.remove, folder)
      self.addCleanup(sys.modules.pop, "my_recipes", None)
      k, gain = arguments.leaves("my_recipes:mine")
      recipe = arguments.make(
        "my_recipes:mine", d=D, n=N, arguments={"k": 3}, **RUN
      )
    self.assertEqual((k.kind, k.default), (int, fields.MISSING))
    self.assertEqual((gain.kind, gain.default), (float, 2.0))
    self.assertEqual(
      gain.comment, "of something, said on two lines: with a colon."
    )
    self.assertEqual(recipe.name, "topk")


class OptionsTest(parameterized.TestCase):
  def test_defaults_of_a_run_yield_to_the_recipes_own_and_to_what_is_said(self):
    fast = lambda step: jnp.asarray(2.0)
    run = {**RUN, "defaults": {"schedule": fast}}
    given = {"d": D, "n": N, "arguments": {"k": 4}}
    topk = arguments.make("topk", **given, **run)
    llama = arguments.make("llama_scope", **given, **run)
    self.assertEqual((topk.clip, topk.schedule), (clipping.Clip(), fast))
    self.assertEqual(llama.clip, clipping.Limit(1e-3))
    self.assertIsNot(llama.schedule, fast)
    said = {"clip_norm": 5.0, "schedule": fast}
    llama = arguments.make("llama_scope", **given, **run, **said)
    self.assertEqual((llama.clip, llama.schedule), (clipping.Limit(5.0), fast))

  def test_every_recipe_is_a_stage_of_boosting_or_has_a_prep_of_its_own(self):
    folder = general(0)
    for name in catalogue.METHODS:
      given = {"d": D, "n": N, "arguments": base(name)}
      try:
        recipe = arguments.make(name, **given, **RUN, residual_of=folder)
      except InputError as error:
        self.assertEqual((error.field, error.value), ("residual_of", folder))
        self.assertIn(name, ("layergroup", "ssae"))
        continue
      draw = functools.partial(recipe.init, sample=None)
      sae = jax.eval_shape(draw, jax.random.key(0))
      shapes = [leaf.shape for leaf in jax.tree.leaves(sae.prep)]
      self.assertIn((N, D), shapes, name)

  def test_arguments_that_are_saes_are_known(self):
    found = {name: arguments.saes(name) for name in catalogue.METHODS}
    self.assertEqual(
      {k: v for k, v in found.items() if v}, {"ssae": ("init_from",)}
    )

  def test_a_target_makes_a_transcoder_or_is_refused(self):
    target = {"target": common.Target(d=6)}
    for name in catalogue.METHODS:
      given = {"d": D, "n": N, "arguments": base(name)}
      try:
        recipe = arguments.make(name, **given, **RUN, **target)
      except InputError as error:
        self.assertEqual(error.field, "target")
        continue
      self.assertIn("target", recipe.needs)
      draw = functools.partial(recipe.init, sample=None)
      sae = jax.eval_shape(draw, jax.random.key(0))
      shapes = (sae.decoder.W.shape, sae.encoder.W.shape)
      self.assertEqual(shapes, ((N, 6), (N, D)), name)


if __name__ == "__main__":
  absltest.main()
