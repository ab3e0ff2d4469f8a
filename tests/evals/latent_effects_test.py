"""saejax/evals/latent_effects.py: against passes written out, one at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.evals import latent_effects
from saejax.models import model as model_lib
from saejax.models import taps
from saejax.sae import activations, prep
from tests import toy
from tests.models import golden

SITE = "layers.0.resid_post"
W, T = 5, 10
FOUR = {"batch_windows": 4}  # one shape for all tests


def cases(path, case="llama_gqa_tied"):
  """A model, and windows of which some tokens are no rows or padding."""
  model = model_lib.load(golden.folder(path, case))
  rng = np.random.default_rng(0)
  ids = rng.integers(3, model.vocabulary, (W, T)).astype(np.int32)
  mask = np.arange(T) < np.array([10, 10, 7, 10, 8])[:, None]
  keep = mask & (np.arange(T) >= 2)
  row = np.where(keep, np.arange(W * T).reshape(W, T), -1)
  return model, latent_effects.Windows(ids, mask, keep, row, np.inf)


class LatentEffectsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.model, self.windows = cases(self.create_tempdir().full_path)

  def sae(self, own=prep.Identity(), activation=activations.TopK(4), scale=1.0):
    sae = toy.sae(d=self.model.d, n=24, activation=activation, prep_=own)
    W = sae.decoder.rows() * scale
    return sae.replace(decoder=sae.decoder.replace(W=W))

  def losses(self, edit):
    """Mean loss of the counted tokens of each window, written out."""
    w = self.windows
    own = lambda h: jnp.where(w.keep[..., None], edit(h), h)
    logits = taps.write(self.model, w.ids, w.mask, {SITE: own})
    log_p = jax.nn.log_softmax(logits)
    counted = w.keep[:, :-1] & w.mask[:, 1:]
    of_next = jnp.take_along_axis(
      log_p[:, :-1], jnp.asarray(w.ids)[:, 1:, None], axis=2
    )[..., 0]
    total = jnp.sum(jnp.where(counted, of_next, 0), 1)
    return -total / counted.sum(1).astype(np.float32)

  def at_z(self, sae, factor, added):
    """Loss with latents z factor + added, the error kept."""

    def edit(h):
      out = sae.forward(h)
      z = out.latents.dense()
      undo = lambda z: sae.prep.undo(z @ sae.W_dec, out.statistics)
      return h + undo(z * factor + added) - undo(z)

    return self.losses(edit)

  @parameterized.parameters(
    (prep.RowLayerNorm(), activations.TopK(4)),
    (prep.Affine(centre=jnp.asarray(0.1), scale=jnp.asarray(2.0)),
     activations.ReLU()),
  )  # fmt: skip
  def test_numbers_are_those_of_passes_written_out(self, own, activation):
    sae = self.sae(own, activation)
    h = taps.read(self.model, self.windows.ids, self.windows.mask, [SITE])[SITE]
    z = np.where(self.windows.keep[..., None], sae.encode(h), 0)
    # Three latents of each window, of which one is never active.
    latents = np.argsort(-z.max(axis=1), axis=1)[:, [0, 1, -1]].reshape(-1)
    which = np.repeat(np.arange(W), 3)
    args = self.model, sae, SITE, self.windows, latents, which
    seen = []
    found = latent_effects.ablate(
      *args, batch_windows=4, progress=lambda *a: seen.append(a)
    )
    self.assertEqual(seen, [(4, 15), (8, 15), (12, 15), (15, 15)])
    a = latent_effects.attribute(*args, batch_windows=4)
    zeros, ones = jnp.zeros(z.shape), jnp.ones(sae.n)
    loss = jax.jit(lambda factor: self.at_z(sae, factor, zeros))
    # The loss of a window does not depend on another.
    total = lambda added: jnp.sum(self.at_z(sae, ones, added))
    slope = np.asarray(jax.jit(jax.grad(total))(zeros))
    clean = loss(ones)
    for p, (j, w) in enumerate(zip(latents, which, strict=True)):
      changed = loss(ones.at[j].set(0))
      self.assertAlmostEqual(
        found.change[p], float(changed[w] - clean[w]), delta=3e-6
      )
      np.testing.assert_allclose(
        found.value[p], z[w, :, j].max(), rtol=1e-5, atol=1e-5
      )
      want = z[w, :, j] * slope[w, :, j]
      np.testing.assert_allclose(a[p], want, rtol=1e-3, atol=1e-7)
    active = found.value > 0
    self.assertTrue(active[::3].all())
    self.assertGreater(np.abs(found.change[active]).min(), 1e-6)
    np.testing.assert_array_equal(a[:, :2], 0)  # tokens that are no rows
    never = z.max(axis=(0, 1))[latents] == 0
    np.testing.assert_array_equal(found.change[never], 0)

  def test_ablation_is_the_attribution_to_first_order(self):
    # What a latent writes is made smaller: the gap falls as its square.
    gaps = []
    for scale in (0.4, 0.2, 0.1):
      sae = self.sae(scale=scale)
      h = taps.read(self.model, self.windows.ids, self.windows.mask, [SITE])
      z = np.where(self.windows.keep[..., None], sae.encode(h[SITE]), 0)
      latents, which = z.max(axis=1).argmax(axis=1), np.arange(W)
      args = self.model, sae, SITE, self.windows, latents, which
      change = latent_effects.ablate(*args, **FOUR).change
      linear = -latent_effects.attribute(*args, **FOUR).sum(axis=1)
      gaps.append(np.abs(change - linear).sum())
      self.assertGreater(np.abs(change).sum(), gaps[-1])
    self.assertBetween(gaps[0] / gaps[1], 3, 5.5)
    self.assertBetween(gaps[1] / gaps[2], 3, 5.5)

  def test_rows_above_the_limit_of_the_norm_are_left_alone(self):
    sae = self.sae()
    found = dataclasses.replace(self.windows, limit=1e-3)
    latents, which = np.arange(W), np.arange(W)
    args = self.model, sae, SITE, found, latents, which
    change = latent_effects.ablate(*args, **FOUR).change
    np.testing.assert_array_equal(change, 0)
    a = latent_effects.attribute(*args, **FOUR)
    np.testing.assert_array_equal(a, 0)

  def test_other_models_and_transcoders_are_refused(self):
    args = SITE, self.windows, np.zeros(1, int), np.zeros(1, int)
    with self.assertRaisesRegex(errors.InputError, "width of the SAE, 8"):
      latent_effects.ablate(self.model, toy.sae(d=8), *args)
    transcoder = self.sae().replace(target_prep=prep.Identity())
    with self.assertRaisesRegex(errors.InputError, "transcoder"):
      latent_effects.attribute(self.model, transcoder, *args)


class EncoderTest(absltest.TestCase):
  def test_embeddings_have_a_cosine_and_no_attribution(self):
    model, found = cases(self.create_tempdir().full_path, "bert")
    sae = toy.sae(d=model.d, n=24, activation=activations.TopK(4))
    h = taps.read(model, found.ids, found.mask, [SITE])[SITE]
    z = np.where(found.keep[..., None], sae.encode(h), 0)
    latents, which = z.max(axis=1).argmax(axis=1), np.arange(W)
    args = model, sae, SITE, found, latents, which
    change = latent_effects.ablate(*args).change

    def embedding(edit):
      own = lambda h: jnp.where(found.keep[..., None], edit(h), h)
      h = taps.write(model, found.ids, found.mask, {SITE: own})
      e = np.asarray(h, np.float64) * found.mask[..., None]
      e = e.sum(axis=1)
      return e / np.linalg.norm(e, axis=-1, keepdims=True)

    for w, j in enumerate(latents):
      without = lambda h, j=j: h - sae.encode(h)[..., [j]] * sae.direction(j)
      want = 1 - (embedding(lambda h: h)[w] * embedding(without)[w]).sum()
      self.assertAlmostEqual(change[w], want, delta=1e-2 * want + 1e-9)
      self.assertGreater(want, 1e-6)
    with self.assertRaisesRegex(errors.InputError, "predicts the next token"):
      latent_effects.attribute(*args)


if __name__ == "__main__":
  absltest.main()
