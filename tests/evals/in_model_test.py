"""saejax/evals/in_model.py and embeddings.py: losses with edits of a site."""

import types

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax import errors
from saejax.evals import embeddings, in_model
from saejax.interventions import operators
from saejax.models import model as model_lib
from saejax.models import taps
from tests.models import golden

SITE = "layers.0.resid_post"


def tokens(ids, mask, keep, doc):
  return types.SimpleNamespace(
    ids=ids, mask=mask, keep=keep, doc=np.broadcast_to(doc[:, None], ids.shape)
  )


class InModelTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    case = "llama_gqa_tied"
    self.model = model_lib.load(golden.folder(self.create_tempdir(), case))
    rng = np.random.default_rng(0)
    self.ids = rng.integers(3, self.model.vocabulary, (6, 12)).astype(np.int32)
    self.mask = np.arange(12) < rng.integers(5, 13, (6, 1))
    self.keep = self.mask & (np.arange(12) >= 2)
    self.doc = np.array([7, 7, 3, 4, 5, 3])
    self.edits = {
      "zero": operators.zero(),
      "half": lambda h: h / 2,
      "same": lambda h: h,
    }

  def batches(self, *parts):
    return [
      tokens(self.ids[p], self.mask[p], self.keep[p], self.doc[p])
      for p in parts
    ]

  def run_all(self, *parts, **options):
    batches = self.batches(*(parts or (slice(0, 6),)))
    return in_model.evaluate(self.model, SITE, self.edits, batches, **options)

  def reference(self, edit):
    """CE and KL of the counted tokens, written out, by window."""
    guarded = lambda h: jnp.where(self.keep[..., None], edit(h), h)
    clean = taps.write(self.model, self.ids, self.mask, {})
    other = taps.write(self.model, self.ids, self.mask, {SITE: guarded})
    p, q = (
      np.asarray(jax.nn.log_softmax(a), np.float64) for a in (clean, other)
    )
    ce, kl = [], []
    for b in range(6):
      at = [t for t in range(11) if self.keep[b, t] and self.mask[b, t + 1]]
      ce.append([-q[b, t, self.ids[b, t + 1]] for t in at])
      kl.append([(np.exp(p[b, t]) * (p[b, t] - q[b, t])).sum() for t in at])
    return ce, kl

  def test_losses_are_those_written_out(self):
    found = self.run_all()
    for name, edit in (("half", lambda h: h / 2), ("zero", lambda h: 0 * h)):
      ce, kl = self.reference(edit)
      np.testing.assert_allclose(
        found.mean(name), np.mean(np.concatenate(ce)), rtol=1e-5
      )
      np.testing.assert_allclose(
        found.mean(name, "kl"), np.mean(np.concatenate(kl)), rtol=1e-4
      )
      by_document = [sum(ce[i]) for i in (3, 4)]
      np.testing.assert_allclose(
        found.ce[found.names.index(name), 1:3], by_document, rtol=1e-5
      )

  def test_an_edit_of_nothing_recovers_everything_and_zero_nothing(self):
    found = self.run_all()
    self.assertEqual(found.mean("same"), found.mean("clean"))
    self.assertEqual(found.mean("same", "kl"), 0)
    for measure in in_model.MEASURES:
      self.assertEqual(found.recovered("same", measure), 1)
      self.assertEqual(found.recovered("zero", measure), 0)

  def test_batches_of_any_size_give_the_same_sums(self):
    whole = self.run_all()
    for parts in (
      [slice(0, 3), slice(3, 6)],
      [slice(i, i + 1) for i in range(6)],
    ):
      found = self.run_all(*parts)
      np.testing.assert_array_equal(found.documents, whole.documents)
      np.testing.assert_array_equal(found.tokens, whole.tokens)
      np.testing.assert_allclose(found.ce, whole.ce, rtol=1e-5)
      np.testing.assert_allclose(found.kl, whole.kl, rtol=1e-4, atol=1e-6)
    self.assertEqual(whole.documents.tolist(), [3, 4, 5, 7])
    self.assertEqual(
      int(whole.tokens.sum()),
      int((self.keep[:, :-1] & self.mask[:, 1:]).sum()),
    )
    np.testing.assert_allclose(
      whole.by_position["ce"].sum(axis=-1), whole.ce.sum(axis=-1)
    )

  def test_parts_merge(self):
    a, b = self.run_all(slice(0, 4)), self.run_all(slice(4, 6))
    whole = self.run_all(slice(0, 4), slice(4, 6))
    merged = a.merged(b)
    for name in ("documents", "tokens", "clean", "ce", "kl"):
      np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))

  def test_rows_above_the_limit_keep_their_activations(self):
    found = self.run_all(limit=0.0)
    self.assertEqual(found.mean("zero"), found.mean("clean"))

  def test_the_interval_of_a_difference(self):
    found = self.run_all()
    self.assertEqual(found.compare("half", "half").effect, 0)
    difference = found.compare("zero", "same", "kl")
    np.testing.assert_allclose(difference.effect, found.mean("zero", "kl"))
    self.assertLess(difference.low, difference.effect)
    self.assertGreater(difference.high, difference.effect)
    again = found.compare("zero", "same", "kl")
    self.assertEqual(difference, again)

  def test_the_increase_of_cross_entropy_has_the_interval_of_a_difference(self):
    record = self.run_all().record()
    self.assertEqual(record["same"]["ce_increase"], 0)
    self.assertEqual(record["same"]["ce_increase_interval"], [0, 0])
    zero, found = record["zero"], self.run_all().compare("zero", "same")
    self.assertAlmostEqual(zero["ce_increase"], found.effect)
    low, high = zero["ce_increase_interval"]
    width = found.high - found.low
    self.assertAlmostEqual(low, found.low, delta=0.1 * width)
    self.assertAlmostEqual(high, found.high, delta=0.1 * width)

  def test_no_tokens_and_no_site_are_refused(self):
    self.keep = np.zeros_like(self.keep)
    with self.assertRaisesRegex(errors.InputError, "followed by another"):
      self.run_all()
    with self.assertRaisesRegex(errors.InputError, "must be a layer"):
      in_model.evaluate(self.model, "layers.99.resid_post", {}, [])


class EmbeddingsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.model = model_lib.load(golden.folder(self.create_tempdir(), "bert"))
    rng = np.random.default_rng(0)
    ids = rng.integers(3, self.model.vocabulary, (10, 9)).astype(np.int32)
    mask = np.arange(9) < rng.integers(4, 10, (10, 1))
    self.batches = [
      tokens(ids[p], mask[p], mask[p], np.arange(10)[p])
      for p in (slice(0, 6), slice(6, 10))
    ]

  def test_an_edit_of_nothing_and_a_shuffle(self):
    edits = {"same": lambda h: h, "zero": operators.zero()}
    found = embeddings.evaluate(self.model, SITE, edits, self.batches)
    self.assertEqual(found.clean.shape[0], 10)
    np.testing.assert_allclose(
      np.linalg.norm(found.clean, axis=-1), 1, rtol=1e-5
    )
    np.testing.assert_allclose(found.cosine("same"), 1, rtol=1e-6)
    self.assertEqual(found.retrieval("same"), 1)
    self.assertLess(found.cosine("zero"), 1 - 1e-3)
    self.assertLess(found.retrieval("zero"), 1)
    batch = self.batches[0]
    h = self.model.hidden(batch.ids, batch.mask)
    mean = np.stack(
      [np.asarray(row[m]).mean(0) for row, m in zip(h, batch.mask, strict=True)]
    )
    want = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    np.testing.assert_allclose(found.clean[:6], want, atol=1e-5)

  def test_a_language_model_is_wanted(self):
    with self.assertRaisesRegex(errors.InputError, "encoder"):
      in_model.evaluate(self.model, SITE, {}, self.batches)


if __name__ == "__main__":
  absltest.main()
