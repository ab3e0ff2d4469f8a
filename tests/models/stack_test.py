"""saejax/models/stack.py: scanned layers are the same function, compiled once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.models import decoding, stack, taps
from saejax.models import model as model_lib
from tests.models import golden

CASES = (
  "bert",
  "gemma3_text_local_global",
  "gpt2_untied_scaled",
  "gpt_neox_parallel",
  "phi3_longrope",
  "qwen2_yarn_some_windows",
)


def deepened(model: model_lib.Model, times: int) -> model_lib.Model:
  """The model with its layers several times over, and other weights in each."""
  layers = tuple(
    jax.tree.map(lambda a, f=1 + 0.1 * i: a * f, layer)
    for i, layer in enumerate(model.params["layers"] * times)
  )
  changed = {"layers": len(layers)}
  if getattr(model.config, "windowed", ()):
    changed["windowed"] = model.config.windowed * times
  config = dataclasses.replace(model.config, **changed)
  return model.replace(params=model.params | {"layers": layers}, config=config)


class Base(parameterized.TestCase):
  def load(self, case, times=3):
    model = model_lib.load(golden.folder(self.create_tempdir(), case))
    want = golden.expected(case)
    ids, mask = jnp.asarray(want["ids"]), jnp.asarray(want["mask"])
    return deepened(model, times), ids, mask

  def assert_near(self, got, want):
    scale = float(jnp.abs(want).max())
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * scale)


class ScannedTest(Base):
  @parameterized.parameters(*CASES)
  def test_it_is_the_same_function_with_and_without_taps(self, case):
    model, ids, mask = self.load(case)
    names = ["layers.0.z", "layers.2.mlp_hidden", "layers.5.resid_post"]

    @jax.jit
    def everything(model):
      found = taps.read(model, ids, mask, names)
      edits = {"layers.3.mlp_out": jnp.zeros_like, "embed": lambda h: 2 * h}
      return found | {
        "output": model(ids, mask),
        "edited": taps.write(model, ids, mask, edits),
      }

    got, want = everything(model.scanned()), everything(model)
    for name, h in got.items():
      self.assert_near(h[mask], want[name][mask])
    changed = jnp.abs(want["edited"] - want["output"])[mask].max()
    self.assertGreater(float(changed), 1e-3)

  @parameterized.parameters(
    "gpt2_untied_scaled", "gemma2_caps_windows", "qwen3_dynamic"
  )
  def test_generation_works_on_scanned_layers(self, case):
    model, ids, _ = self.load(case)

    @functools.partial(jax.jit, static_argnames="last")
    def one_by_one(model, last):
      def step(cache, at):
        logits, cache = decoding.next_logits(model, cache, ids[:, at], at)
        return cache, logits

      cache = decoding.empty_cache(model, len(ids), last)
      return jax.lax.scan(step, cache, jnp.arange(last))[1].swapaxes(0, 1)

    last = ids.shape[1]
    whole = jax.jit(lambda model: model(ids, jnp.ones(ids.shape, bool)))
    self.assert_near(one_by_one(model.scanned(), last), whole(model))

  def test_a_plain_tap_sees_every_site_of_scanned_layers(self):
    model, ids, mask = self.load("llama_gqa_tied")
    names = []

    def tap(name, h):
      names.append(name)
      return h

    jax.eval_shape(lambda m: m.hidden(ids, mask, tap=tap), model.scanned())
    self.assertCountEqual(names, golden.sites(model.config))

  def test_programs_do_not_grow_with_the_number_of_layers(self):
    def equations(times, sites):
      model, ids, mask = self.load("gemma2_caps_windows", times)
      read = functools.partial(taps.read, sites=sites)
      text = jax.jit(read).lower(model.scanned(), ids, mask).as_text()
      return text.count("stablehlo.dot_general"), text.count("stablehlo.while")

    middle = (
      equations(2, ["layers.1.mlp_out"]),
      equations(16, ["layers.20.mlp_out"]),
    )
    # A layer is six products: those of weights and two of attention.
    self.assertEqual([dots for dots, _ in middle], [6 + 6, 6 + 6])
    self.assertEqual(equations(16, ["final_norm"]), (6, 1))

  def test_layers_after_the_last_site_are_not_computed(self):
    model, ids, mask = self.load("gemma2_caps_windows", 8)
    read = functools.partial(taps.read, sites=["layers.3.resid_post"])
    text = jax.jit(read).lower(model.scanned(), ids, mask).compile().as_text()
    loops = [line for line in text.splitlines() if " while(" in line]
    self.assertLen(loops, 1)
    self.assertIn('"known_trip_count":{"n":"3"}', loops[0])


class PartsTest(absltest.TestCase):
  def test_layers_with_taps_are_by_themselves(self):
    tap = stack.Edits({"layers.2.z": abs, "embed": abs, "layers.3.q": abs})
    want = [[0, 1], [2], [3], [4, 5, 6]]
    self.assertEqual(stack._parts(7, tap), want)
    self.assertEqual(stack._parts(3, stack.untouched), [[0, 1, 2]])
    self.assertEqual(stack._parts(3, lambda name, h: h), [[0], [1], [2]])

  def test_equal_values_stay_static_in_a_scan(self):
    l = jnp.asarray(1)
    self.assertIs(stack.pick((True, True), l), True)
    self.assertEqual(stack.pick((1.0, 2.0), 1), 2.0)
    self.assertEqual(float(stack.pick((1.0, 2.0), l)), 2.0)
    a, b = jnp.zeros(2), jnp.ones(2)
    self.assertIs(stack.choose(True, a, b), a)
    np.testing.assert_array_equal(stack.choose(l == 0, a, b), b)


if __name__ == "__main__":
  absltest.main()
