"""Tests of saejax.runs.config: a recipe's arguments as flags, and their grid."""

import contextlib
import dataclasses
import pathlib
import textwrap

import jax.numpy as jnp
from absl import flags
from absl.testing import absltest, parameterized

from saejax import config, fields, presets, usage
from saejax.errors import InputError
from saejax.recipes import arguments, catalogue
from saejax.runs import folder, grid
from saejax.runs.config import SAEConfig, sae_config
from saejax.sae import prep
from saejax.studies import scaling, train
from saejax.training import loop
from saejax.training.parts import clipping, schedules

GIVEN = ("--store=s", "--held_out=h")
OWN = '''
"""A recipe of a user."""
from saejax.recipes import row_sparse

def mine(d, n, k: int = 3, *, factor: float = 2.0, **options):
  """TopK with another rate.

  Args:
    k: active latents per row.
    factor: of nothing.
  """
  return row_sparse.topk(d, n, k, **options)
'''


def parsed(*args, module=train):
  """The config of a command line, as `config.run` makes it."""
  given = GIVEN if module is train else ()
  argv = presets.expanded(["program", *given, *args])
  values = flags.FlagValues()
  flags.DEFINE_string("flagfile", "", "", flag_values=values)
  config_cls = config.widened(module.Config, argv)
  config.define(config_cls, values)
  config.parse(
    argv, values, explain=lambda n: config.choices.explain(config_cls, n)
  )
  return config.from_flags(config_cls, values)


class FlagsTest(parameterized.TestCase):
  @parameterized.parameters(*catalogue.METHODS)
  def test_every_argument_is_a_flag_with_its_default_and_doc(self, name):
    config_cls = config.widened(train.Config, ["x", f"--sae.recipe={name}"])
    found = {leaf.name: leaf for leaf in fields.leaves(config_cls)}
    text = usage.text(config_cls, None, "train.py")
    for leaf in arguments.leaves(name):
      flag = found[f"sae.{leaf.name}"]
      self.assertEqual(flag.kind, tuple[leaf.kind, ...])
      self.assertEqual(flag.comment, leaf.comment)
      self.assertIn(f"\n  --sae.{leaf.name}=", text)
      if leaf.default is fields.MISSING:
        self.assertIs(flag.default, fields.MISSING)
        continue
      self.assertEqual(flag.default, (leaf.default,))
      shown = fields.show(flag.kind, flag.default)
      self.assertEqual(fields.read(flag.kind, shown), flag.default)
    for other in catalogue.METHODS:
      self.assertIn(f"\n  {other:<18} ", text)

  def test_the_default_is_topk_and_its_k_must_be_given(self):
    self.assertEqual(parsed("--sae.k=4").sae.recipe, "topk")
    with self.assertRaisesRegex(InputError, "^sae.k=: must be given"):
      parsed()

  @parameterized.parameters(
    (("--sae.recipe", "jumprelu"),),
    (("--sae.recipe=topk", "--sae.recipe=jumprelu"),),
    (("-sae.recipe=jumprelu",),),
  )
  def test_the_recipe_is_found_however_it_is_written(self, args):
    found = parsed("--sae.bandwidth", "0.01", "--sae.coefficient=1", *args)
    self.assertEqual(found.sae.recipe, "jumprelu")
    self.assertEqual(found.sae.fixed["bandwidth"], 0.01)

  def test_the_recipe_may_stand_in_a_nested_flagfile(self):
    path = pathlib.Path(self.create_tempdir().full_path)
    (path / "inner").write_text("--sae.recipe=gba\n--sae.groups=4\n")
    (path / "outer").write_text(f"--flagfile={path / 'inner'}\n")
    found = parsed(f"--flagfile={path / 'outer'}")
    self.assertEqual((found.sae.recipe, found.sae.groups), ("gba", (4,)))

  def test_a_preset_may_be_given_another_recipe(self):
    found = parsed("--preset=quickstart", module=scaling).sae
    self.assertEqual((found.recipe, found.k), ("topk", (4, 8, 16, 32)))
    other = parsed(
      "--preset=quickstart", "--sae.recipe=batchtopk", module=scaling
    ).sae
    self.assertEqual((other.recipe, other.k), ("batchtopk", (4, 8, 16, 32)))
    self.assertEqual(other.n, found.n)

  @parameterized.parameters(
    (
      "--sae.bandwidth=1",
      "is not an argument of topk; .*jumprelu, gemma_scope",
    ),
    ("--sae.nothing=1", "unknown flag"),
    ("--sae.k=4,4", "must be distinct"),
    ("--sae.k=many", "must be a whole number"),
  )
  def test_refused(self, flag, words):
    name, _, value = flag[2:].partition("=")
    given = () if name == "sae.k" else ("--sae.k=4",)
    with self.assertRaisesRegex(InputError, f"{name}={value}: .*{words}"):
      parsed(*given, flag)

  def test_an_unknown_recipe_is_refused(self):
    with self.assertRaisesRegex(InputError, "^--sae.recipe=no: must be one of"):
      parsed("--sae.recipe=no")
    with self.assertRaisesRegex(
      InputError, "^--sae.recipe=no:no: cannot be im"
    ):
      parsed("--sae.recipe=no:no")

  def test_a_recipe_of_ones_own_has_flags(self):
    where = pathlib.Path(self.create_tempdir().full_path)
    (where / "own_recipe_of_test.py").write_text(textwrap.dedent(OWN))
    with contextlib.chdir(where):
      name = "own_recipe_of_test:mine"
      found = parsed(f"--sae.recipe={name}", "--sae.factor=1.5,2").sae
    self.assertEqual(found.arguments, {"k": (3,), "factor": (1.5, 2.0)})
    made = grid.recipe(
      8, {"k": 2}, d=4, prep=None, sae=found, train=TRAIN, total_steps=10
    )
    self.assertEqual(made.name, "topk")

  def test_run_flags_and_identity_have_every_argument(self):
    before = parsed(
      "--sae.recipe=mc_then_fc",
      "--sae.k=4",
      "--sae.phases=(0.8,0.2),(0.5,0.5)",
      "--sae.k_aux=none,3",
    )
    path = pathlib.Path(self.create_tempdir().full_path) / "run.flags"
    config.write(path, before, omit=("run_dir",))
    for leaf in arguments.leaves("mc_then_fc"):
      self.assertIn(f"\n--sae.{leaf.name}=", path.read_text())
    again = parsed(f"--flagfile={path}")
    self.assertEqual(
      dataclasses.asdict(again),
      {**dataclasses.asdict(before), "run_dir": str(path.parent)},
    )
    found = folder.identity(before, {})["sae"]
    self.assertEqual(found["phases"], [[0.8, 0.2], [0.5, 0.5]])
    self.assertEqual(found["k_aux"], [None, 3])
    self.assertContainsSubset(
      [leaf.name for leaf in arguments.leaves("mc_then_fc")], found
    )


TRAIN = loop.TrainConfig(batch_rows=8)


class GridTest(absltest.TestCase):
  def names(self, sae):
    return [member.name for member in grid.members(64, sae, TRAIN)]

  def test_k_and_seeds_name_members(self):
    sae = sae_config(k=[4, 8], seeds=2)
    self.assertEqual(
      self.names(sae), ["k4-seed0", "k4-seed1", "k8-seed0", "k8-seed1"]
    )

  def test_learning_rates_are_swept_by_factors(self):
    one, both = sae_config(k=4), sae_config(k=4, rates=(0.5, 2.0))
    self.assertEqual(self.names(both), ["k4-rate=0.5-seed0", "k4-rate=2-seed0"])
    (rate,) = {m.learning_rate for m in grid.members(64, one, TRAIN)}
    self.assertEqual(
      [m.learning_rate / rate for m in grid.members(64, both, TRAIN)],
      [0.5, 2.0],
    )
    self.assertNotIn("rates", one.decisive())  # as in earlier runs
    self.assertIn("rates", both.decisive())
    with self.assertRaisesRegex(InputError, "^rates=.*: must"):
      sae_config(k=4, rates=(0.0,))

  def test_arguments_that_are_swept_name_members(self):
    sae = sae_config("jumprelu", coefficient=[0.01, 0.03], bandwidth=[1e-3, 1])
    self.assertEqual(
      self.names(sae),
      [
        "coefficient=0.01-bandwidth=0.001-seed0",
        "coefficient=0.01-bandwidth=1-seed0",
        "coefficient=0.03-bandwidth=0.001-seed0",
        "coefficient=0.03-bandwidth=1-seed0",
      ],
    )
    tuples = sae_config("mc_then_fc", k=4, phases=[(0.8, 0.2), (0.5, 0.5)])
    self.assertEqual(
      self.names(tuples),
      ["k4-phases=0.8,0.2-seed0", "k4-phases=0.5,0.5-seed0"],
    )

  def test_a_recipe_without_k_has_members_of_seeds_alone(self):
    self.assertEqual(
      self.names(sae_config("relu_l1", coefficient=1)), ["seed0"]
    )

  def test_members_get_their_arguments(self):
    sae = sae_config(k=[4, 8], aux_weight=0.5)
    made = [
      grid.recipe(
        16,
        dict(m.arguments),
        d=8,
        prep=None,
        sae=sae,
        train=TRAIN,
        total_steps=10,
      )
      for m in grid.members(16, sae, TRAIN)
    ]
    self.assertEqual([r.terms["aux"].weight for r in made], [0.5, 0.5])
    self.assertEqual([r.init.keywords["activation"].k for r in made], [4, 8])

  def recipe(self, *flags):
    """The recipe of a command line for a run of 100 steps."""
    made = parsed(*flags)
    return grid.recipe(
      16,
      dict(made.sae.combinations[0]),
      d=8,
      prep=prep.Identity(),
      sae=made.sae,
      train=made.train,
      total_steps=100,
    )

  def test_schedule_and_clipping_are_the_methods_own_unless_given(self):
    rates = lambda r: [
      float(r.schedule(jnp.asarray(s))) for s in (0, 5, 50, 99)
    ]
    usual = schedules.warmup_decay(100, warmup_steps=10, decay_fraction=0.5)
    usual = [float(usual(jnp.asarray(s))) for s in (0, 5, 50, 99)]
    topk = self.recipe("--sae.recipe=topk", "--sae.k=4")
    self.assertEqual((rates(topk), topk.clip), (usual, clipping.Unit()))
    scope = ("--sae.recipe=gemma_scope", "--sae.coefficient=1")
    own = self.recipe(*scope)
    # A cosine from 0.1, and no decay at the end.
    self.assertAlmostEqual(rates(own)[0], 0.1, places=6)
    self.assertEqual(rates(own)[3], 1.0)
    self.assertEqual(own.clip, clipping.Unit())
    for name, clip in (
      ("llama_scope", clipping.Limit(1e-3)),
      ("k_sparse", clipping.Clip()),  # steps of SGD have the gradient's size
    ):
      made = self.recipe("--sae.recipe=" + name, "--sae.k=4")
      self.assertEqual(made.clip, clip)
    for flag in ("--train.warmup_steps=10", "--train.decay_fraction=0.5"):
      self.assertEqual(rates(self.recipe(*scope, flag)), usual)
    for flag, clip in (
      ("0.5", clipping.Limit(0.5)),
      ("off", clipping.Clip()),
      ("unit", clipping.Unit()),
    ):
      given = self.recipe(*scope, f"--train.clip_norm={flag}")
      self.assertEqual(given.clip, clip)

  def test_steps_are_given_or_those_of_the_epochs(self):
    self.assertEqual(dataclasses.replace(TRAIN, epochs=3).total_steps(80), 30)
    self.assertEqual(dataclasses.replace(TRAIN, steps=7).total_steps(80), 7)
    with self.assertRaisesRegex(InputError, "^epochs=2: .*beside steps"):
      loop.TrainConfig(steps=7, epochs=2)
    with self.assertRaisesRegex(InputError, "at most the 10 steps of the run"):
      dataclasses.replace(TRAIN, warmup_steps=11).total_steps(80)

  def test_what_no_recipe_has_is_refused(self):
    with self.assertRaisesRegex(InputError, "^bandwidth=1: topk has no such"):
      sae_config(k=4, bandwidth=1)
    with self.assertRaisesRegex(InputError, "^k=: must be given for topk"):
      sae_config()
    with self.assertRaisesRegex(InputError, "^k=: must be distinct values"):
      sae_config(k=[])
    with self.assertRaisesRegex(InputError, "^recipe=nothing: must be one of"):
      SAEConfig(recipe="nothing")


if __name__ == "__main__":
  absltest.main()
