"""saejax/evals/words/contrast.py: scores in closed form, and planted subjects."""

import dataclasses
import json

import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.words import contrast

R, N = 6, 64
SUBJECTS = ("ice", "ice", "sand", "sand", "wind", "wind")


def means(mean, tokens=None):
  tokens = np.full(len(mean), 10) if tokens is None else tokens
  return contrast.Means(np.asarray(mean, float), np.asarray(tokens))


def planted(s, *, seed=0, noise=0.1):
  """Latent 3 of "ice", 5 of "sand" and 7 of "wind": s in story1, 0 in story2."""
  rng = np.random.default_rng(seed)
  V1, V2 = np.abs(noise * rng.standard_normal((2, R, N)))
  latent = np.array([3, 3, 5, 5, 7, 7])
  V1[np.arange(R), latent], V2[np.arange(R), latent] = s, 0
  return means(V1), means(V2), latent


class ContrastTest(parameterized.TestCase):
  def test_a_change_of_one_latent_scores_n_minus_1_over_root_n(self):
    V = np.abs(np.random.default_rng(0).standard_normal((1, N)))
    changed = V.copy()
    changed[0, 9] += 0.3
    found = contrast.contrast(means(V), means(changed), ["ice"])
    self.assertAlmostEqual(found.scores.contrastive[0], (N - 1) / np.sqrt(N))
    record = found.record()
    self.assertAlmostEqual(record["contrastive_by_root_n"], (N - 1) / N)
    self.assertEqual(record["independent"], 0)  # one row is its own mean
    self.assertEqual(found.latent.tolist(), [9])

  def test_scale_and_order_of_latents_do_not_matter(self):
    first, second, _ = planted(2.0)
    want = contrast.contrast(first, second, SUBJECTS).record()
    order = np.random.default_rng(1).permutation(N)
    for change in (lambda V: 7.3 * V, lambda V: V[:, order]):
      found = contrast.contrast(
        means(change(first.mean)), means(change(second.mean)), SUBJECTS
      ).record()
      for name, value in want.items():
        self.assertAlmostEqual(found[name], value, msg=name)

  def test_scores_rise_with_the_strength_of_planted_latents(self):
    scores = []
    for s in (0.3, 0.6, 1.5, 4.0):
      first, second, latent = planted(s)
      found = contrast.contrast(first, second, SUBJECTS)
      scores.append(found.record()["interpretability"])
    self.assertEqual(found.latent.tolist(), latent.tolist())
    self.assertEqual(scores, sorted(scores))
    self.assertGreater(scores[-1], scores[0] + 1)
    self.assertLess(scores[-1], (N - 1) / np.sqrt(N))

  def test_exchanging_the_stories_leaves_the_contrast_unchanged(self):
    first, second, _ = planted(1.0)
    turn = np.arange(R) % 2 == 0  # of every second row
    turned = [
      means(np.where(turn[:, None], a.mean, b.mean))
      for a, b in ((first, second), (second, first))
    ]
    a = contrast.contrast(first, second, SUBJECTS)
    b = contrast.contrast(*turned, SUBJECTS)
    for name in ("contrastive", "independent", "interpretability"):
      np.testing.assert_allclose(
        getattr(a.scores, name), getattr(b.scores, name)
      )

  def test_a_dense_latent_raises_the_compat_score_alone(self):
    first, second, _ = planted(1.0)
    plain = contrast.contrast(first, second, SUBJECTS)
    for size in (20.0, 40.0):
      V1, V2 = first.mean.copy(), second.mean.copy()
      V1[:, 40] += size
      V2[:, 40] += size
      found = contrast.contrast(means(V1), means(V2), SUBJECTS)
      np.testing.assert_allclose(
        found.scores.independent, plain.scores.independent
      )
      self.assertGreater(
        found.compat.independent.min(), plain.compat.independent.max() + 1
      )

  def test_the_mean_of_both_stories_is_weighted_by_tokens(self):
    V1, V2 = np.array([[4.0, 0, 0], [0, 0, 0]]), np.zeros((2, 3))
    few, many = np.array([1, 1]), np.array([3, 1])
    found = contrast.contrast(means(V1, few), means(V2, many), ["a", "b"])
    # I is (1, 0, 0) and 0, so I_bar is (1/2, 0, 0).
    np.testing.assert_allclose(found.shift, [[0.5, 0, 0], [-0.5, 0, 0]])

  def test_responsible_latents_are_those_of_their_subject(self):
    first, second, _ = planted(3.0)
    first.mean[:, 60:], second.mean[:, 60:] = 0, 0  # never active
    found = contrast.contrast(first, second, SUBJECTS)
    self.assertEqual(found.subjects, ("ice", "sand", "wind"))
    for subject, latent in zip(found.subjects, (3, 5, 7), strict=True):
      self.assertEqual(found.latents_of(subject, 1).tolist(), [latent])
      place = found.subjects.index(subject)
      self.assertEqual(found.shift[place].argmax(), latent)
    self.assertEqual(found.responsible[60:].tolist(), [-1] * 4)
    everyone = [found.latents_of(s, N) for s in found.subjects]
    self.assertEqual(sorted(np.concatenate(everyone)), list(range(60)))
    np.testing.assert_allclose(found.shift.sum(axis=0), 0, atol=1e-12)
    with self.assertRaisesRegex(InputError, "^subject=rain.*ice, sand, wind"):
      found.latents_of("rain")

  def test_equal_latents_everywhere_score_0(self):
    V = np.full((2, N), 0.1)
    found = contrast.contrast(means(V), means(V), ["a", "b"]).record()
    self.assertEqual(found["interpretability"], 0)
    self.assertAlmostEqual(found["independent_compat"], 0)


class MeansTest(absltest.TestCase):
  def test_means_are_over_the_tokens_given(self):
    rng = np.random.default_rng(0)
    texts = [
      rng.standard_normal((t, 5)).astype(np.float32) for t in (3, 32, 40)
    ]
    # A latent that is 1 at a zero input too, as padding would have.
    encode = lambda x: np.concatenate([x > 0, np.ones((len(x), 1))], axis=-1)
    found = contrast.means(encode, iter(texts))
    self.assertEqual(found.tokens.tolist(), [3, 32, 40])
    for mean, x in zip(found.mean, texts, strict=True):
      np.testing.assert_allclose(mean[:-1], (x > 0).mean(axis=0))
      self.assertEqual(mean[-1], 1)

  def test_stories_are_read_from_lines(self):
    row = {"subject": "ice", "story0": "", "story1": "Ice.", "story2": "Sun."}
    found = contrast.stories([json.dumps(row), "\n", json.dumps(row)])
    self.assertEqual(found, [contrast.Stories("ice", "Ice.", "Sun.")] * 2)
    del row["story2"]
    with self.assertRaisesRegex(InputError, "line 2: must have.*story2"):
      contrast.stories(["", json.dumps(row)])
    with self.assertRaisesRegex(InputError, "at least one row"):
      contrast.stories([])

  def test_refuses_what_cannot_be_compared(self):
    first, second, _ = planted(1.0)
    with self.assertRaisesRegex(InputError, "^second="):
      contrast.contrast(first, means(second.mean[:-1]), SUBJECTS)
    with self.assertRaisesRegex(InputError, "^subjects=5"):
      contrast.contrast(first, second, SUBJECTS[:-1])
    one = dataclasses.replace(first, mean=first.mean[:, :1])
    with self.assertRaisesRegex(InputError, "at least 2 latents"):
      contrast.contrast(one, one, SUBJECTS)
    with self.assertRaisesRegex(InputError, "^texts=none"):
      contrast.means(lambda x: x, [])
    with self.assertRaisesRegex(InputError, "^texts=text 1"):
      contrast.means(lambda x: x, [np.ones((2, 3)), np.ones((0, 3))])


if __name__ == "__main__":
  absltest.main()
