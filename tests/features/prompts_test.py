"""saejax/features/prompts.py: the latents of given texts, by brute force."""

import dataclasses

import numpy as np
from absl.testing import absltest

from saejax import errors
from saejax.data.text import subject
from saejax.features import prompts
from saejax.models import model as model_lib
from saejax.models import taps
from saejax.sae import activations
from tests import toy
from tests.features import stores
from tests.models import golden

SITE = "layers.0.resid_post"


class PromptsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = golden.folder(self.create_tempdir(), "llama_gqa_tied")
    self.model = model_lib.load(folder)
    self.sae = toy.sae(d=self.model.d, n=24, activation=activations.TopK(5))
    self.source = subject.Subject(
      d=self.model.d,
      encode=lambda text: np.array([int(i) for i in text.split()], np.int32),
      forward=lambda ids, mask: np.zeros(0),
      prefix=(1,),
      special=frozenset({1, 2}),
      drop_first=2,
      max_positions=12,
      meta={"site": {"name": SITE}},
    )

  def read(self, *texts, **more):
    return prompts.read(
      self.sae, self.model, self.source, stores.Words(), texts, **more
    )

  def test_latents_are_those_of_the_rows(self):
    ids = np.array([5, 6, 2, 7, 8])
    first, other = self.read("5 6 2 7 8", "9", strongest=2)
    self.assertEqual(first["tokens"], [" 5", " 6", " 2", " 7", " 8"])
    # The position after the prefix and special tokens are no rows.
    self.assertEqual(first["rows"], [False, True, False, True, True])
    whole = np.concatenate([[1], ids])[None].astype(np.int32)
    h = taps.read(self.model, whole, np.ones((1, 6), bool), [SITE])[SITE]
    z = np.asarray(self.sae.encode(h))[0, 1:]
    rows = [1, 3, 4]
    top = {int(i) for t in rows for i in np.argsort(-z[t])[:2]}
    for t, mine in enumerate(first["latents"]):
      want = sorted(top & set(np.flatnonzero(z[t])), key=lambda i: -z[t, i])
      want = want if t in rows else []
      self.assertEqual([one["latent"] for one in mine], want)
      np.testing.assert_allclose(
        [one["value"] for one in mine], z[t, want], rtol=1e-3
      )
    self.assertEqual(other["latents"], [[]])
    self.assertEqual(prompts.latents([first, other]), sorted(top))

  def test_outliers_are_no_rows(self):
    (found,) = self.read("5 6 7 8", limit=1e-3)
    self.assertEqual(found["rows"], [False] * 4)
    self.assertEqual(prompts.latents([found]), [])

  def test_texts_that_do_not_fit_are_refused(self):
    for text, message in (
      ("", "must have a token"),
      ("3 " * 12, "at most 11 tokens, .* it has 12"),
    ):
      with self.assertRaisesRegex(errors.InputError, "prompt=.*" + message):
        self.read(text)
    self.source = dataclasses.replace(self.source, d=self.sae.d + 1)
    with self.assertRaisesRegex(errors.InputError, "width of the SAE"):
      self.read("5")


if __name__ == "__main__":
  absltest.main()
