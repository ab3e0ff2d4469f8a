"""saejax/evals/heads/head_attribution.py and head_paths.py: sums that must agree."""

import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.tree_util import Partial

from saejax import errors
from saejax.evals.heads import head_attribution, head_paths, rules
from saejax.models import edits, stack, taps
from saejax.models import model as model_lib
from saejax.sae import activations, prep
from tests import toy
from tests.models import golden

# Layer norms with biases; shared values, soft caps, windows, norms after W_O.
MODELS = ("gpt2", "gemma2_caps_windows")


@functools.cache
def loaded(case):
  with tempfile.TemporaryDirectory() as folder:
    return model_lib.load(golden.folder(folder, case))


def sae_of(model, seed=0, prep_=prep.Identity()):
  config = model.config
  return toy.sae(
    d=config.heads * config.head,
    n=20,
    activation=activations.ReLU(),
    prep_=prep_,
    seed=seed,
  )


class Base(parameterized.TestCase):
  def load(self, case):
    model = loaded(case)
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(3, model.vocabulary, (2, 7)), jnp.int32)
    return model, ids, jnp.ones(ids.shape, bool)


class AttributionTest(Base):
  @parameterized.parameters(*MODELS)
  def test_sums_over_heads_and_over_sources_are_the_pre_activation(self, case):
    # attn-sae, check 1.
    model, ids, mask = self.load(case)
    prep_ = toy.affine(sae_of(model).d)
    sae = sae_of(model, prep_=prep_)
    found = head_attribution.attribution(
      model, sae, 1, ids, mask, np.arange(sae.n)
    )
    z = taps.read(model, ids, mask, ["layers.1.z"])["layers.1.z"]
    x = z.reshape(*ids.shape, -1)
    found_pre = sae.forward(x, engine="dense").pre
    assert found_pre is not None
    pre = np.asarray(found_pre.a)
    np.testing.assert_allclose(found.a, pre, atol=1e-4)
    # The centre of the prep is a constant too.
    shift = np.asarray(sae.b_dec + prep_.centre / prep_.scale)
    linear = pre - np.asarray(sae.b_enc) + np.asarray(sae.W_enc) @ shift
    for part in (found.by_head, found.by_source):
      np.testing.assert_allclose(part.sum(axis=2), linear, atol=1e-4)
    self.assertLess(found.gap, 1e-5)

  @parameterized.parameters(*MODELS)
  def test_zeroed_values_of_a_source_take_away_its_contribution(self, case):
    # attn-sae, check 2: values do not change the pattern of their layer.
    model, ids, mask = self.load(case)
    sae, s = sae_of(model), 2
    rows = head_attribution.head_rows(sae, model.config.heads)

    @jax.jit
    def pre(factor):
      kept = []
      sites = {
        "layers.1.v": lambda v: v * factor[None, :, None, None],
        "layers.1.z": lambda z: kept.append(z) or z,
      }
      model.hidden(ids, mask, tap=stack.Edits(sites))
      return jnp.einsum("btkh,ikh->bti", kept[0], rows.W)

    change = np.asarray(pre(jnp.ones(7).at[s].set(0)) - pre(jnp.ones(7)))
    found = head_attribution.attribution(
      model, sae, 1, ids, mask, np.arange(sae.n)
    )
    np.testing.assert_allclose(change, -found.by_source[:, :, s], atol=1e-5)
    self.assertGreater(np.abs(change[:, s:]).max(), 1e-2)

  def test_shares_name_the_head_that_a_latent_is_of(self):
    sae = toy.sae(n=6, d=8)
    W = np.zeros((6, 8), np.float32)
    for i, head in enumerate((0, 1, 2, 3, 1)):
      W[i, 2 * head : 2 * head + 2] = 3, 4
    W[4, :2] = 5  # of two heads
    sae = sae.replace(decoder=sae.decoder.replace(W=jnp.asarray(W)))
    shares = head_attribution.head_shares(sae, 4)
    np.testing.assert_allclose(shares[:4], np.eye(4), atol=1e-6)
    ratio = 5 * 2**0.5
    want = [ratio / (5 + ratio), 5 / (5 + ratio), 0, 0]
    np.testing.assert_allclose(shares[4], want, rtol=1e-6)
    np.testing.assert_array_equal(shares[5], 0)
    found = head_attribution.survey(shares, count=2)
    self.assertEqual(found.shape, (4, 2))
    self.assertEqual(found[1].tolist(), [1, 4])
    alive = np.array([0, 0, 1, 1, 1, 1], bool)
    found = head_attribution.survey(shares, count=1, alive=alive)
    self.assertEqual(found[:, 0].tolist(), [4, 4, 2, 3])

  def test_other_widths_are_refused(self):
    with self.assertRaisesRegex(errors.InputError, "heads=3"):
      head_attribution.head_shares(toy.sae(d=8), 3)
    model, ids, mask = self.load("gpt2")
    sae = toy.sae(d=2 * model.config.heads)
    with self.assertRaisesRegex(errors.InputError, "sae="):
      head_attribution.attribution(model, sae, 0, ids, mask, [0])


class AblationTest(Base):
  def test_latents_at_one_token_are_0_and_the_error_is_kept(self):
    model, ids, mask = self.load("gpt2")
    sae, site = sae_of(model), "layers.1.z"
    z = taps.read(model, ids, mask, [site])[site]
    x = z.reshape(*ids.shape, -1)
    latents = sae.encode(x)
    live = np.flatnonzero(np.asarray(latents[0, 3]) > 0)[:2]
    rows = jnp.zeros(ids.shape, bool).at[:, 3].set(True)

    @jax.jit
    def run(edit):
      return taps.write(model, ids, mask, {site: edit})

    zeroed = lambda which: run(head_attribution.zeroed(sae, which, rows))
    got = zeroed(live)
    lost = jnp.einsum("bl,ld->bd", latents[:, 3, live], sae.W_dec[live])
    want = x.at[:, 3].add(-lost).reshape(z.shape)
    same = run(edits.Edit(Partial(lambda want, h, context: want, want)))
    np.testing.assert_allclose(got, same, atol=1e-5)
    clean = zeroed(np.array([sae.n]))  # none
    np.testing.assert_array_equal(got[:, :3], clean[:, :3])
    measure = lambda logits: logits[:, 3, 5] - logits[:, 3, 6]
    effects = head_attribution.ablation_effects(
      model, sae, site, ids, mask, rows=rows, latents=live, measure=measure
    )
    self.assertEqual(effects.shape, (2, 2))
    other = measure(zeroed(live[1:]))
    np.testing.assert_allclose(effects[1], measure(clean) - other, atol=1e-5)
    self.assertGreater(np.abs(effects).max(), 1e-4)


class RuleTest(parameterized.TestCase):
  def test_specificity_and_sensitivity(self):
    z = np.array([0.0, 2.0, 3.0, 0.5, 0.0])
    rule = np.array([1, 1, 1, 0, 0], bool)
    found = rules.rule_scores(z, rule)
    self.assertAlmostEqual(found.specificity, 2 / 3)
    self.assertAlmostEqual(found.sensitivity, 2 / 3)
    found = rules.rule_scores(z, rule, threshold=1)
    self.assertEqual((found.specificity, found.active), (1, 2))
    self.assertEqual(rules.rule_scores(0 * z, rule).specificity, 0)
    with self.assertRaisesRegex(errors.InputError, "rule"):
      rules.rule_scores(z, rule & False)

  @parameterized.parameters(True, False)
  def test_shuffled_heads_are_the_null_of_a_rule(self, planted):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((400, 5, 3)).astype(np.float32)
    W = np.zeros((4, 15), np.float32)
    W[0, 3:6] = 1, -1, 2  # reads head 1
    sae = toy.sae(n=4, d=15, activation=activations.ReLU(), pre_bias=False)
    encoder = sae.encoder.replace(W=jnp.asarray(W), b=jnp.zeros(4))
    sae = sae.replace(encoder=encoder)
    rule = z[:, 1] @ W[0, 3:6] > 0 if planted else rng.random(400) < 0.5
    found = rules.head_shuffle(sae, z, 0, rule, count=19)
    for name in ("specificity", "sensitivity"):
      if planted:
        self.assertEqual(found[name].observed, 1)
        self.assertLess(found[name].mean, 0.6)
        self.assertEqual(found[name].p, 0.05)
      else:
        self.assertBetween(found[name].mean, 0.4, 0.6)
        self.assertGreater(found[name].p, 0.05)
    with self.assertRaisesRegex(errors.InputError, "several heads"):
      rules.head_shuffle(sae, z[:, :1], 0, rule)


class PathsTest(Base):
  @parameterized.parameters(*MODELS)
  def test_leaves_and_biases_sum_to_the_contribution_of_each_source(self, case):
    # attn-sae, check 3.
    model, ids, mask = self.load(case)
    saes = {l: sae_of(model, l, toy.affine(sae_of(model).d)) for l in (0, 1)}
    parent = head_attribution.attribution(model, saes[1], 1, ids, mask, [4, 7])
    observed = head_paths.observe(model, ids[0], 2)
    t, scale = 5, np.abs(parent.by_source[0]).max()
    for i, latent in enumerate((4, 7)):
      leaves = head_paths.trace(observed, saes, 1, latent, t, depth=0)
      for s in range(t + 1):
        own = sum(leaf.value for leaf in leaves if leaf.source == s)
        self.assertAlmostEqual(
          own, parent.by_source[0, t, s, i], delta=1e-4 * scale
        )
      self.assertEqual(
        {leaf.kind for leaf in leaves},
        {"embed", "mlp", "latent", "error", "bias"},
      )
      deep = head_paths.trace(observed, saes, 1, latent, t, depth=1, count=3)
      whole = sum(leaf.value for leaf in deep)
      linear = parent.a[0, t, i] - parent.c[i]
      self.assertAlmostEqual(whole, linear, delta=1e-4 * scale)
      self.assertLen({leaf.path for leaf in deep}, 4)
      plain = head_paths.trace(observed, {1: saes[1]}, 1, latent, t)
      whole = sum(leaf.value for leaf in plain)
      self.assertAlmostEqual(whole, linear, delta=1e-4 * scale)
      self.assertIn("attn", {leaf.kind for leaf in plain})

  def test_a_leaf_is_what_the_parent_loses_without_it(self):
    # With the norm's scale fixed, from the MLP's output to the pre-activation.
    model, ids, _ = self.load("gpt2")
    sae = sae_of(model)
    observed = head_paths.observe(model, ids[0], 2)
    leaves = head_paths.trace(observed, {1: sae}, 1, 3, 5)
    x, mlp = observed["layers.1.resid_pre"], observed["layers.0.mlp_out"]
    p = model.params["layers"][1]
    h = mlp[2] - mlp[2].mean()
    h = (
      h
      / np.sqrt(x[2].var() + model.config.eps)
      * np.asarray(p["norm_pre"].gain)
    )
    lost = np.split(h @ np.asarray(p["qkv"].W[:, 0]), 3)[2]
    rows = head_attribution.head_rows(sae, model.config.heads).W[3]
    heads = (lost.reshape(rows.shape) * np.asarray(rows)).sum(axis=-1)
    change = observed.pattern[1, :, 5, 2] @ heads
    (own,) = [
      leaf.value for leaf in leaves if leaf.kind == "mlp" and leaf.source == 2
    ]
    self.assertAlmostEqual(own, change, places=5)

  @parameterized.parameters(*MODELS)
  def test_logits_of_all_parts_sum_to_the_logit(self, case):
    model, ids, mask = self.load(case)
    at, tokens = np.array([3, 6]), np.array([4, 9])
    attribute = functools.partial(
      head_paths.logit_attribution, model, ids, mask, at=at
    )
    heads = [attribute(l, tokens=tokens, centred=False) for l in range(2)]
    self.assertEqual(heads[0].shape, (2, model.config.heads))
    # The rest of the residual stream has the rest of the logit.
    names = ["layers.0.attn_out", "layers.1.attn_out", "layers.1.resid_post"]
    tensors = taps.read(model, ids, mask, [*names, "final_norm"]).values()
    *written, last, out = (np.asarray(h)[np.arange(2), at] for h in tensors)
    final = head_paths.frozen_norm(model.config, model.params["norm"], last)
    r, bias = head_paths.pulled((final,), np.asarray(model.head[tokens]))
    rest = last - sum(written)
    for l in range(2):
      b = model.params["layers"][l]["out"].b  # of no head
      rest = rest + (0 if b is None else np.asarray(b))
    logit = np.einsum("bd,bd->b", out, np.asarray(model.head[tokens]))
    np.testing.assert_allclose(
      sum(h.sum(axis=-1) for h in heads),
      logit - bias - (r * rest).sum(axis=-1),
      atol=1e-4,
    )

  def test_centred_logits_are_less_the_mean_over_tokens(self):
    model, *_ = self.load("gpt2")
    count = model.vocabulary
    ids = jnp.broadcast_to(jnp.arange(3, 8, dtype=jnp.int32), (count, 5))
    at, tokens = np.full(count, 4), np.arange(count)
    raw, found = (
      head_paths.logit_attribution(
        model, ids, ids > 0, 1, at=at, tokens=tokens, centred=centred
      )
      for centred in (False, True)
    )
    np.testing.assert_allclose(found, raw - raw.mean(axis=0), atol=1e-6)

  def test_models_with_other_norms_are_refused(self):
    model, ids, _ = self.load("bert")
    with self.assertRaisesRegex(errors.InputError, "norm before attention"):
      head_paths.observe(model, ids[0], 2)
    model, ids, _ = self.load("gpt2")
    observed = head_paths.observe(model, ids[0], 1)
    with self.assertRaisesRegex(errors.InputError, "saes"):
      head_paths.trace(observed, {}, 0, 0, 0)


class PatternsTest(Base):
  @parameterized.parameters(
    "gemma2_caps_windows", "gpt2", "bert", "gpt_neox_parallel"
  )
  def test_outputs_of_heads_are_patterns_times_values(self, case):
    model, ids, mask = self.load(case)
    mask = mask.at[1, 5:].set(False)
    pattern = taps.patterns(model, ids, mask, [1, 0])
    self.assertEqual(pattern.shape, (2, 2, model.config.heads, 7, 7))
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, rtol=1e-5)
    for own, l in zip(pattern, (1, 0), strict=True):
      names = [f"layers.{l}.v", f"layers.{l}.z"]
      v, z = taps.read(model, ids, mask, names).values()
      v = jnp.repeat(v, z.shape[2] // v.shape[2], axis=2)
      want = jnp.einsum("bkts,bskh->btkh", own, v)
      np.testing.assert_allclose(z, want, atol=1e-5)
    if model.causal:
      self.assertEqual(float(jnp.triu(pattern, 1).max()), 0)

  def test_a_tap_that_names_the_pattern_replaces_it(self):
    model, ids, mask = self.load("gemma2_caps_windows")
    kept = {}
    keep = lambda name: lambda h: kept.setdefault(name, h)
    eye = lambda p: jnp.broadcast_to(jnp.eye(7), p.shape)
    sites = {"layers.0.pattern": eye} | {f"layers.0.{p}": keep(p) for p in "vz"}
    hidden = lambda model: model.hidden(ids, mask, tap=stack.Edits(sites))
    jax.eval_shape(hidden, model)  # of layers in turn
    kept.clear()
    model.scanned().hidden(ids, mask, tap=stack.Edits(sites))
    shared = model.config.heads // model.config.key_heads
    np.testing.assert_allclose(
      kept["z"], jnp.repeat(kept["v"], shared, axis=2), atol=1e-6
    )

  def test_programs_without_it_are_as_before(self):
    model, ids, mask = self.load("gpt2")
    run = lambda *taps_: jax.make_jaxpr(
      lambda model: model.hidden(ids, mask, tap=stack.Edits(dict(taps_)))
    )(model)
    same = lambda h: h
    plain, other = run(), run(("layers.0.z", same))
    self.assertEqual(str(plain), str(other))
    self.assertNotEqual(str(plain), str(run(("layers.0.pattern", same))))

  def test_a_layer_that_is_not_there_is_refused(self):
    model, ids, mask = self.load("gpt2")
    with self.assertRaisesRegex(errors.InputError, "harvest.layer"):
      taps.patterns(model, ids, mask, [7])


if __name__ == "__main__":
  absltest.main()
