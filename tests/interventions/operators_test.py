"""saejax/interventions/operators.py: what each operator makes of activations."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from jax.tree_util import Partial

from saejax import errors
from saejax.interventions import operators
from saejax.models import edits, taps
from saejax.models import model as model_lib
from saejax.sae import activations, initial, prep
from saejax.sae.prep import Affine
from tests.models import golden

SITE = "layers.0.resid_post"


class OperatorsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    case = "llama_gqa_tied"
    self.model = model_lib.load(golden.folder(self.create_tempdir(), case))
    want = golden.expected(case)
    self.ids, self.mask = jnp.asarray(want["ids"]), jnp.asarray(want["mask"])
    self.h = taps.read(self.model, self.ids, self.mask, [SITE])[SITE]
    self.sae = self.of_prep(
      Affine(centre=jnp.full((self.model.d,), 0.5), scale=jnp.asarray(2.0))
    )

  def of_prep(self, own):
    return initial.init(
      jax.random.key(0),
      d=self.model.d,
      n=3 * self.model.d,
      activation=activations.TopK(4),
      prep=own,
    )

  def at_site(self, edit):
    """The activations that an edit leaves; those it got are `self.h`."""
    found = {}

    def keep(h, context):
      self.h = h
      found["h"], _ = edits.prepared(edit)(h, context, None)
      return found["h"]

    taps.write(self.model, self.ids, self.mask, {SITE: edits.Edit(keep)})
    return np.asarray(found["h"])

  def test_splice_is_the_reconstruction(self):
    found = self.at_site(operators.splice(self.sae))
    np.testing.assert_allclose(found, self.sae(self.h), rtol=1e-6)

  def test_latents_that_stay_leave_the_very_same_bits(self):
    for own in (self.sae, self.of_prep(prep.RowLayerNorm())):
      found = self.at_site(operators.edited(own, lambda z: z))
      np.testing.assert_array_equal(found, self.h)

  def test_a_latent_moves_activations_along_its_direction(self):
    latent = int(jnp.argmax(self.sae.encode(self.h).sum(axis=(0, 1))))
    change = Partial(lambda v, z: z.at[..., latent].add(v), jnp.asarray(3.0))
    found = self.at_site(operators.edited(self.sae, change))
    moved = found - np.asarray(self.h)
    want = np.broadcast_to(3 * self.sae.direction(latent), moved.shape)
    np.testing.assert_allclose(moved, want, atol=1e-4)

  def test_without_the_error_it_is_the_decoded_latents(self):
    change = lambda z: 2 * z
    found = self.at_site(operators.edited(self.sae, change, keep_error=False))
    want = self.sae.decode(2 * self.sae.encode(self.h))
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)

  def test_zero_constant_and_projection(self):
    found = self.at_site(operators.zero())
    np.testing.assert_array_equal(found, 0 * self.h)
    v = jnp.arange(self.model.d, dtype=jnp.float32)
    found = self.at_site(operators.constant(v))
    np.testing.assert_array_equal(found, np.broadcast_to(v, found.shape))
    found = self.at_site(operators.projection(v, jnp.eye(self.model.d)[:2]))
    np.testing.assert_allclose(found[..., :2], self.h[..., :2], atol=1e-5)
    np.testing.assert_array_equal(
      found[..., 2:], np.broadcast_to(v[2:], found[..., 2:].shape)
    )

  def test_heads_are_joined(self):
    site = "layers.0.z"
    h = taps.read(self.model, self.ids, self.mask, [site])[site]
    self.assertEqual(h.ndim, 4)
    d = h.shape[2] * h.shape[3]
    sae = initial.init(
      jax.random.key(0), d=d, n=8, activation=activations.TopK(2)
    )
    for edit in (operators.splice(sae), operators.constant(jnp.ones(d))):
      logits = taps.write(self.model, self.ids, self.mask, {site: edit})
      self.assertTrue(np.isfinite(logits).all())

  def test_a_transcoder_is_refused(self):
    with self.assertRaisesRegex(errors.InputError, "target"):
      operators.splice(self.sae.replace(target_prep=prep.Identity()))


if __name__ == "__main__":
  absltest.main()
