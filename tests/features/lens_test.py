"""saejax/features/lens.py: the logit lens of directions."""

import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors, models
from saejax.features import lens
from tests import toy
from tests.models import drawn


class LensTest(parameterized.TestCase):
  def model(self, family):
    folder = pathlib.Path(self.create_tempdir().full_path, family)
    return models.load(drawn.folder(folder, drawn.settings(family)))

  @parameterized.parameters("llama", "gemma2", "gpt2")
  def test_it_is_the_head_of_the_normed_direction(self, family):
    model = self.model(family)
    v = np.asarray(toy.rows(5, 32, seed=4)) * np.array([[1e-3, 1, 9, 1, 1]]).T
    norm = model.params["norm"]
    if family == "gpt2":
      centred = v - v.mean(axis=1, keepdims=True)
      normed = centred / v.std(axis=1, keepdims=True) * np.asarray(norm.gain)
    else:
      size = np.sqrt(np.mean(v**2, axis=1, keepdims=True))
      normed = v / size * (model.config.norm_offset + np.asarray(norm))
    want = normed @ np.asarray(model.head).T
    got = lens.logits(model, v)
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)
    with mock.patch.object(lens, "_LOGITS", 90):  # two rows at once
      top, high, bottom, low = lens.tokens(model, v, 3)
    for i, row in enumerate(got):
      order = np.argsort(row)
      self.assertEqual(top[i].tolist(), order[::-1][:3].tolist())
      self.assertEqual(bottom[i].tolist(), order[:3].tolist())
      np.testing.assert_allclose(high[i], row[top[i]], rtol=1e-4)
      np.testing.assert_allclose(low[i], row[bottom[i]], rtol=1e-4)

  def test_no_directions_have_no_tokens(self):
    found = lens.tokens(self.model("llama"), np.zeros((0, 32), np.float32), 3)
    self.assertEqual([a.shape for a in found], [(0, 3)] * 4)

  def test_models_that_cannot_read_them_are_refused(self):
    with self.assertRaisesRegex(errors.InputError, "width of the SAE, 16"):
      lens.check(self.model("llama"), 16)
    with self.assertRaisesRegex(errors.InputError, "language head"):
      lens.check(self.model("bert"), 32)


if __name__ == "__main__":
  absltest.main()
