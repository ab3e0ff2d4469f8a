"""Functions and Flax NNX modules as subjects: harvests, identity, refusals."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

import saejax
from saejax.data import harvest
from saejax.data.text import corpus as text
from saejax.data.text import own_models
from saejax.errors import InputError
from saejax.models import functions
from tests.data import tiny

VOCABULARY, D = 258, 8


def weights(seed=0):
  keys = jax.random.split(jax.random.key(seed), 2)
  return {
    "table": jax.random.normal(keys[0], (VOCABULARY, D)),
    "W": jax.random.normal(keys[1], (D, 2 * D)),
  }


def forward(params, ids, mask, tap):
  del mask
  h = tap("embed", params["table"][ids])
  h = tap("hidden", jax.nn.relu(h @ params["W"]))
  return tap("heads", h.reshape(*ids.shape, 4, -1)).sum(axis=-1)


class Block(nnx.Module):
  def __init__(self, rngs):
    self.linear = nnx.Linear(D, D, rngs=rngs)
    self.drop = nnx.Dropout(0.2, rngs=rngs)

  def __call__(self, h):
    return self.drop(h + jax.nn.relu(self.linear(h))), h.sum(axis=-1)


class Net(nnx.Module):
  def __init__(self, seed=0):
    rngs = nnx.Rngs(seed)
    self.table = nnx.Embed(VOCABULARY, D, rngs=rngs)
    self.blocks = nnx.List([Block(rngs) for _ in range(2)])

  def __call__(self, ids, mask):
    h = self.table(ids)
    for block in self.blocks:
      h, _ = block(h)
    return h * mask[..., None].astype(h.dtype)


def net(seed=0):
  found = Net(seed)
  found.eval()
  return found


def of_function(**changes):
  settings = {
    "params": weights(),
    "name": "mine",
    "site": "hidden",
    "vocabulary": VOCABULARY,
    "words": tiny.encode,
  }
  return own_models.from_function(forward, **(settings | changes))


def of_nnx(module=None, **changes):
  settings = {
    "name": "net",
    "site": "blocks.0",
    "vocabulary": VOCABULARY,
    "words": tiny.encode,
  }
  return own_models.from_nnx(module or net(), **(settings | changes))


class Harvests(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.corpus = tiny.corpus(self.folder / "corpus")

  def harvest(self, source, **changes):
    config = tiny.config(
      self.corpus, self.folder / "stores", drop_ids=(), **changes
    )
    return harvest.harvest(config, source=source)

  def assert_trains(self, store, held_out):
    _, metrics = saejax.fit(
      store,
      "topk",
      n=32,
      k=4,
      steps=20,
      batch_rows=64,
      held_out=held_out,
      progress=False,
    )
    self.assertTrue(np.isfinite(metrics.fvu))


class OwnModelsTest(Harvests):
  def test_a_function_is_harvested_and_trained_on(self):
    train, held_out = self.harvest(of_function())
    self.assertEqual((train.rows, train.d), (2_000, 2 * D))
    self.assertEqual(train.meta["model"]["name"], "mine")
    rows = tiny.everything(train)
    params = weights()
    want = jax.nn.relu(params["table"][rows["tok"]] @ params["W"])
    np.testing.assert_allclose(rows["x"], want, rtol=1e-5, atol=1e-5)
    documents = text.documents(str(self.corpus))
    for row in (0, 700, 1_999):
      ids = tiny.encode(documents[int(rows["doc"][row])])
      self.assertEqual(ids[rows["pos"][row]], rows["tok"][row])
    self.assert_trains(train, held_out)

  def test_a_module_is_harvested(self):
    train, _ = self.harvest(of_nnx())
    rows = tiny.everything(train)
    module = net()
    h = module.table(rows["tok"])
    want = h + jax.nn.relu(module.blocks[0].linear(h))
    np.testing.assert_allclose(rows["x"], want, rtol=1e-5, atol=1e-5)

  def test_other_weights_or_another_name_give_another_store(self):
    paths = {
      self.harvest(source)[0].path
      for source in (
        of_function(),
        of_function(params=weights(1)),
        of_function(name="other"),
        of_function(site="embed"),
        of_nnx(),
        of_nnx(net(1)),
      )
    }
    self.assertLen(paths, 6)
    again = self.harvest(of_function())[0].path
    self.assertIn(again, paths)

  def test_several_sites_and_joined_heads(self):
    found = of_function(site=("hidden", "heads"))
    self.assertEqual((found.d, found.sites), (2 * D, 2))
    ids = np.arange(6, dtype=np.int32).reshape(2, 3)
    x = found.forward(ids, np.ones((2, 3), bool))
    self.assertEqual(x.shape, (2, 3, 2, 2 * D))
    np.testing.assert_array_equal(x[:, :, 0], x[:, :, 1])
    with self.assertRaisesRegex(InputError, "site=embed, hidden.*one width"):
      of_function(site=("embed", "hidden"))

  def test_a_corpus_of_ids_needs_no_tokenizer(self):
    source = of_function(words=None)
    documents = [np.arange(i, i + 60) % VOCABULARY for i in range(60)]
    self.corpus = text.write_ids(self.folder / "ids.jsonl", documents)
    train, _ = self.harvest(source)
    self.assertEqual(train.rows, 2_000)
    self.assertIsNone(train.meta["tokenizer"])
    with self.assertRaisesRegex(InputError, "words=None.*ids:FILE"):
      source.encode("a text")

  def test_ids_outside_the_vocabulary_are_refused(self):
    wrong = of_function(words=lambda s: [VOCABULARY + len(s)])
    with self.assertRaisesRegex(
      InputError, r"words=.*vocabulary of mine.*use the tokenizer"
    ):
      self.harvest(wrong)
    documents = [[1, 2, VOCABULARY]] * 20
    self.corpus = text.write_ids(self.folder / "ids.jsonl", documents)
    with self.assertRaisesRegex(InputError, "harvest.corpus=.*id 258"):
      self.harvest(of_function())
    self.assertFalse((self.folder / "stores").exists())

  def test_a_point_that_is_not_there_lists_those_that_are(self):
    with self.assertRaisesRegex(
      InputError, "site.name=hiden: .*choose one of embed, hidden, heads"
    ):
      of_function(site="hiden")
    with self.assertRaisesRegex(InputError, r"blocks\.1\.linear:in"):
      of_nnx(site="blocks.2")

  def test_tensors_that_are_not_of_tokens_are_refused(self):
    with self.assertRaisesRegex(
      InputError, r"site.layout=blocks.0:1.*\(2, 1\)"
    ):
      of_nnx(site="blocks.0:1")

  def test_training_mode_is_refused(self):
    with self.assertRaisesRegex(InputError, "module=blocks.0.drop.*eval"):
      of_nnx(Net())


class TapsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.ids = jnp.arange(6).reshape(2, 3)
    self.mask = jnp.ones((2, 3), bool)

  def test_submodules_are_rewritten_and_the_module_is_left_alone(self):
    module = net()
    function, params = functions.from_nnx(module)
    run = lambda edits: functions.write(
      function, params, self.ids, self.mask, edits
    )
    np.testing.assert_allclose(
      run({}), module(self.ids, self.mask), rtol=1e-6, atol=1e-6
    )
    v = jnp.arange(8.0)
    h = functions.read(
      function, params, self.ids, self.mask, ["blocks.1:in", "blocks.0"]
    )
    np.testing.assert_array_equal(h["blocks.1:in"], h["blocks.0"])
    want, _ = module.blocks[1](h["blocks.0"] + v)
    for name in ("blocks.0", "blocks.1:in"):
      got = run({name: lambda h: h + v})
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    with self.assertRaisesRegex(ZeroDivisionError, "zero"):
      run({"blocks.0": lambda h: 1 // 0})
    self.assertIs(type(module.blocks[0]), Block)
    self.assertEqual(functions._HOOKS.get(None), None)

  def test_edits_of_another_shape_and_unknown_points_are_refused(self):
    params = weights()
    write = lambda edits: functions.write(
      forward, params, self.ids, self.mask, edits
    )
    with self.assertRaisesRegex(ValueError, "edit of embed must return"):
      write({"embed": lambda h: h[:, :1]})
    with self.assertRaisesRegex(ValueError, "edit of embed must return"):
      write({"embed": lambda h: h.astype(jnp.bfloat16)})
    with self.assertRaisesRegex(InputError, "site.name=nope.*embed, hidden"):
      write({"nope": lambda h: h})

  def test_a_tap_inside_a_transformation_is_refused(self):
    def inner(params, ids, mask, tap):
      return jax.jit(lambda h: tap("h", h) * 2)(params["table"][ids])

    with self.assertRaisesRegex(InputError, "site.name=h: .*outside of jit"):
      functions.read(inner, weights(), self.ids, self.mask, ["h"])

  def test_the_digest_is_of_values_and_paths(self):
    a = {"a": jnp.ones(3), "b": 2, "key": jax.random.key(0)}
    first = functions.digest(a)
    self.assertEqual(functions.digest(dict(a)), first)
    for other in (
      a | {"b": 3},
      a | {"a": jnp.ones(3, jnp.bfloat16)},
      a | {"key": jax.random.key(1)},
      {"c": a["a"], "b": 2, "key": a["key"]},
    ):
      self.assertNotEqual(functions.digest(other), first)
    with self.assertRaisesRegex(InputError, "params=.*object"):
      functions.digest({"a": object()})


if __name__ == "__main__":
  absltest.main()
