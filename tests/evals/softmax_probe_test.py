"""Tests of saejax.evals.dictionary.softmax_probe."""

import pathlib

import numpy as np
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file

from saejax.errors import InputError
from saejax.evals.dictionary import softmax_probe

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "geometry.safetensors"


class SoftmaxTest(parameterized.TestCase):
  @parameterized.parameters(1, 10)
  def test_scores_are_those_of_scikit_learn(self, l2):
    golden = load_file(GOLDEN)
    x, label = golden["lda_x"], golden["lda_label"]
    model, kinds = softmax_probe.fit(x, label, l2=l2, tolerance=1e-9)
    np.testing.assert_array_equal(kinds, np.arange(4))
    scores = model.score(x)
    scores -= scores.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(scores, golden[f"softmax_{l2}"], atol=1e-4)

  def test_classes_keep_their_names(self):
    x = np.array([[0.0], [0.1], [5.0], [5.1], [9.0]])
    label = np.array(["low", "low", "mid", "mid", "top"])
    model, kinds = softmax_probe.fit(x, label, l2=0.01)
    np.testing.assert_array_equal(kinds[model.score(x).argmax(axis=-1)], label)

  def test_refuses_labels_of_other_rows(self):
    with self.assertRaisesRegex(InputError, "^label=2: .*3 rows"):
      softmax_probe.fit(np.ones((3, 1)), np.array([0, 1]))
    with self.assertRaisesRegex(InputError, "^l2=0: "):
      softmax_probe.fit(np.ones((2, 1)), np.array([0, 1]), l2=0)


if __name__ == "__main__":
  absltest.main()
