"""saejax/models/mesh.py: a model on a mesh is that on one device."""

import collections
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.models import checkpoint, decoding, edits, generate, mesh, taps
from saejax.models import model as model_lib
from tests.models import drawn, gguf_files, golden

DIVIDED, COPIED = ((1, 2), (2, 4)), ((2, 1), (8, 1))  # weights
COLLECTIVE = re.compile(
  r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
  r"(?:-start)?\("
)


def batch(model, rows=8):
  """Ids and mask, with padding on either side."""
  rng = np.random.default_rng(0)
  ids = rng.integers(0, model.vocabulary, (rows, 9)).astype(np.int32)
  mask = np.ones_like(ids, bool)
  mask[0, 6:] = mask[1, :2] = False
  return ids, mask


class Base(parameterized.TestCase):
  def folder(self, family, **settings):
    path = pathlib.Path(self.create_tempdir().full_path)
    return drawn.folder(path, drawn.settings(family) | settings)

  def assert_near(self, got, want, within=1e-5):
    want = np.asarray(want)
    atol = within * np.abs(want).max()
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=atol)


class AgreementTest(Base):
  @parameterized.parameters(
    *((family, DIVIDED) for family in drawn.SETTINGS),
    ("bert", COPIED),
    ("gemma3_text", COPIED),
    ("gpt2", COPIED),
  )
  def test_every_site_is_that_on_one_device(self, family, meshes):
    path = self.folder(family)
    alone = model_lib.load(path)
    ids, mask = batch(alone)
    sites = golden.sites(alone.config)
    want = taps.read(alone, ids, mask, sites)
    for shape in meshes:
      model = model_lib.load(path, mesh=mesh.make(shape))
      got = jax.block_until_ready(taps.read(model, ids, mask, sites))
      for site in sites:
        self.assert_near(got[site][mask], want[site][mask])

  @parameterized.parameters("gpt2", "gpt_neox", "qwen3")
  def test_a_layer_has_at_most_two_sums_and_no_other_exchange(self, family):
    model = model_lib.load(self.folder(family), mesh=mesh.make((2, 4)))
    given = [jnp.asarray(a) for a in batch(model)]
    hidden = jax.jit(lambda model, *given: model.hidden(*given))
    text = hidden.lower(model, *given).compile().as_text() or ""
    found = collections.Counter(COLLECTIVE.findall(text))
    # Parallel attention and MLP are summed together; one more where the rows of
    # the token table are divided.
    sums = 1 if family == "gpt_neox" else 2
    table = family != "gpt2"
    self.assertEqual(found, {"all-reduce": sums * model.layers + table})

  def test_each_device_holds_its_part(self):
    path = self.folder("llama")
    alone = model_lib.load(path)
    model = model_lib.load(path, mesh=mesh.make((2, 4)))
    held = lambda model: sum(
      x.addressable_shards[0].data.size
      for x in jax.tree.leaves(model.params["layers"])
    )
    self.assertLess(held(model), held(alone) / 4 * 1.1)

  def test_a_number_of_rows_that_the_mesh_does_not_divide(self):
    path = self.folder("llama")
    alone = model_lib.load(path)
    model = model_lib.load(path, mesh=mesh.make((2, 4)))
    ids, mask = batch(alone, rows=3)
    site = ["layers.1.mlp_hidden"]
    got, want = (taps.read(m, ids, mask, site)[site[0]] for m in (model, alone))
    self.assert_near(got[mask], want[mask])

  def test_other_devices_than_the_first(self):
    path = self.folder("gpt2")
    model = model_lib.load(path, mesh=mesh.make((1, 2), first=5))
    ids, mask = batch(model)
    got = taps.read(model, ids, mask, ["layers.1.z"])["layers.1.z"]
    self.assertEqual({d.id for d in got.devices()}, {5, 6})
    logits = model(ids, mask)  # not compiled
    self.assertEqual({d.id for d in logits.devices()}, {5, 6})

  def test_bfloat16_and_several_files(self):
    path = pathlib.Path(self.create_tempdir().full_path)
    drawn.folder(path, drawn.settings("qwen2"), files=3)
    alone = model_lib.load(str(path), dtype="bfloat16")
    model = model_lib.load(str(path), dtype="bfloat16", mesh=mesh.make((1, 2)))
    for got, want in zip(
      jax.tree.leaves(model.params), jax.tree.leaves(alone.params), strict=True
    ):
      self.assertEqual(got.dtype, jnp.bfloat16)
      if got.shape == want.shape:  # joint maps are in another order
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


class GgufTest(Base):
  def test_quantised_weights_on_a_mesh(self):
    path = str(gguf_files.GOLDEN)
    alone = model_lib.load(path)
    self.assertEqual(alone.config.key_heads % 2, 0)
    model = model_lib.load(path, mesh=mesh.make((2, 2)))
    ids, mask = batch(alone)
    sites = golden.sites(alone.config)
    want = taps.read(alone, ids, mask, sites)
    got = taps.read(model, ids, mask, sites)
    for site in sites:
      self.assert_near(got[site][mask], want[site][mask])

  def test_parts_are_those_of_the_whole(self):
    with checkpoint.at(gguf_files.GOLDEN).tensors() as tensors:
      for name, (handle, stored) in tensors.items():
        whole = handle.get_slice(stored)[:]
        rows = slice(whole.shape[0] // 2, None)  # whole heads
        part = handle.get_slice(stored)[rows]
        np.testing.assert_array_equal(part, whole[rows], name)
        if whole.ndim == 2:
          some = handle.get_slice(stored)[:, 5:27]
          np.testing.assert_array_equal(some, whole[:, 5:27], name)


class UseTest(Base):
  def load(self, family="llama", shape=(2, 4)):
    path = self.folder(family)
    return model_lib.load(path), model_lib.load(path, mesh=mesh.make(shape))

  @parameterized.parameters("llama", "gpt2")
  def test_generation_and_edits(self, family):
    alone, model = self.load(family)
    v = 0.3 * jnp.sin(jnp.arange(model.d, dtype=jnp.float32))
    push = edits.Edit(jax.tree_util.Partial(_pushed, v))
    run = functools.partial(
      generate.generate,
      prompts=[[1, 2, 3], [4], [5, 6]],
      max_tokens=6,
      temperature=1.0,
      edits={"layers.0.mlp_hidden": lambda h: 1.5 * h, "embed": push},
    )
    np.testing.assert_array_equal(run(model).ids, run(alone).ids)
    self.assertGreater(len(np.unique(run(alone).ids)), 1)

  def test_edits_of_a_whole_pass(self):
    alone, model = self.load("gemma2")
    ids, mask = batch(alone)
    change = {
      "layers.0.z": lambda z: z.at[:, :, 3].set(0),
      "layers.1.mlp_hidden": lambda h: 2 * h,
    }
    write = jax.jit(functools.partial(taps.write, edits=change))
    got, want = (write(m, ids, mask) for m in (model, alone))
    self.assert_near(got[mask], np.asarray(want)[mask])

  def test_scanned_layers(self):
    alone, model = self.load("gemma3_text")
    ids, mask = batch(alone)
    sites = ["layers.1.q", "layers.1.resid_post"]
    got = taps.read(model.scanned(), ids, mask, sites)
    want = taps.read(alone, ids, mask, sites)
    for site in sites:
      self.assert_near(got[site][mask], np.asarray(want[site])[mask])

  def test_the_cache_of_generation_is_divided(self):
    _, model = self.load()
    ids = jnp.ones((4, 1), jnp.int32)

    @jax.jit
    def step(model, ids):
      cache = decoding.empty_cache(model, 4, 16)
      return decoding.next_logits(model, cache, ids[:, 0], jnp.asarray(0))[1]

    keys = jax.block_until_ready(step(model, ids))[0].keys
    self.assertEqual(keys.addressable_shards[0].data.shape, (2, 1, 16, 8))


def _pushed(v, h, context):
  return jnp.where((context.step >= -1)[..., None], h + v, h)


class RefusalTest(Base):
  @parameterized.parameters(
    ({"num_key_value_heads": 2}, "2 heads of keys and values"),
    ({"intermediate_size": 42}, "42 entries of the MLP"),
    ({"num_attention_heads": 6, "num_key_value_heads": 6}, "6 heads"),
  )
  def test_sizes_that_the_mesh_does_not_divide(self, settings, part):
    path = self.folder("llama", **settings)
    with self.assertRaisesRegex(errors.InputError, part) as caught:
      model_lib.load(path, mesh=mesh.make((1, 4)))
    self.assertStartsWith(str(caught.exception), "harvest.mesh=(1, 4)")

  @parameterized.parameters(
    ((3, 4), 0, "12 devices"),
    ((1, 2), 7, "2 devices from number 7"),
    ((1, 1), -1, "from number -1"),
    ((2,), 0, "two sizes"),
    ((0, 2), 0, "at least 1"),
  )
  def test_meshes_that_do_not_exist(self, shape, first, part):
    with self.assertRaisesRegex(errors.InputError, part):
      mesh.make(shape, first=first)


if __name__ == "__main__":
  absltest.main()
