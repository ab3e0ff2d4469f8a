"""saejax/evals/core_compat.py: SAEBench's numbers, equal to 1e-4."""

import functools
import json
import types
from typing import Any
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors, models
from saejax.evals import core_compat
from saejax.models import tokenizer
from saejax.sae import activations
from tests import shared, toy
from tests.evals import core_cases

TOLERANCE = 1e-4
SITE = f"layers.{core_cases.LAYER}.resid_post"


@functools.cache
def model():
  return models.load(str(shared.path(core_cases.MODEL)))


def computed(name: str, golden: dict[str, Any]) -> core_compat.Reference:
  """Ours on SAEBench's windows."""
  read = {
    part: [np.asarray(batch, np.int32) for batch in batches]
    for part, batches in golden["windows"].items()
  }
  return core_compat.saebench(
    core_cases.saes()[name],
    model(),
    SITE,
    read["reconstruction"],
    read["variance"],
    golden["special"],
  )


def rounded(value: Any) -> Any:
  """JSON with 8 significant digits."""
  if isinstance(value, dict):
    return {key: rounded(one) for key, one in value.items()}
  if isinstance(value, list):
    return [rounded(one) for one in value]
  return float(f"{value:.8g}") if isinstance(value, float) else value


class GoldenTest(parameterized.TestCase):
  """tests/clients/make_core_golden.py wrote what SAEBench computed."""

  def setUp(self):
    super().setUp()
    self.golden = json.loads(core_cases.GOLDEN.read_text())

  @parameterized.parameters(*core_cases.saes())
  def test_every_number_is_saebench_s(self, name):
    want, got = self.golden["saes"][name], computed(name, self.golden)
    self.assertEqual(want["metrics"].keys(), got.metrics.keys())
    for category, values in want["metrics"].items():
      self.assertEqual(values.keys(), got.metrics[category].keys())
      for key, value in values.items():
        np.testing.assert_allclose(
          got.metrics[category][key], value, TOLERANCE, 1e-6, err_msg=key
        )
    for one, other in zip(got.details, want["details"], strict=True):
      self.assertEqual(one.keys(), other.keys())
      for key in one:
        np.testing.assert_allclose(
          one[key], other[key], TOLERANCE, TOLERANCE, err_msg=key
        )

  def test_windows_are_packed_as_saelens_does(self):
    words = tokenizer.load(shared.path(core_cases.MODEL))
    ids = [words.encode(text) for text in core_cases.DOCUMENTS]
    windows = list(
      core_compat.packed(ids, context=core_cases.CONTEXT, bos=words.bos)
    )
    read = self.golden["windows"]
    theirs = np.concatenate([*read["reconstruction"], *read["variance"]])
    self.assertGreater((theirs[:, 1:] == words.bos).sum(), 2)
    np.testing.assert_array_equal(windows[: len(theirs)], theirs)


class DefinitionTest(absltest.TestCase):
  """Rows far from 0, where the reference's variances differ from the variance."""

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.x = rng.normal(1.5, 1, (2, 3, 10, 8)).astype(np.float32)
    self.windows = rng.integers(0, 4, (2, 3, 10)).astype(np.int32)
    self.sae = toy.sae(
      d=8, activation=activations.TopK(4, "magnitude", "signed")
    )

  def measured(self):
    rows = iter(self.x)
    read = lambda model, ids, mask, sites: {sites[0]: next(rows)}
    with mock.patch.object(core_compat.taps, "read", read):
      special = np.array([2], np.int32)
      return core_compat._rows(
        self.sae, None, SITE, list(self.windows), special
      )

  def test_variances_are_those_of_the_reference(self):
    counted = self.windows != 2
    batches = [x[keep] for x, keep in zip(self.x, counted, strict=True)]
    self.assertNotEqual(*map(len, batches))
    error = [
      np.square(x - np.asarray(self.sae(x))).sum(axis=-1) for x in batches
    ]
    q = np.mean([np.square(x).mean() for x in batches])
    R = np.mean([e.mean() for e in error])
    legacy = [
      1 - e / np.square(x - x.mean(axis=0)).sum(axis=-1)
      for x, e in zip(batches, error, strict=True)
    ]
    got = self.measured()[0]["reconstruction_quality"]
    np.testing.assert_allclose(
      got["explained_variance"], 1 - R / (q * (8 - q)), 1e-4
    )
    np.testing.assert_allclose(
      got["explained_variance_legacy"], np.concatenate(legacy).mean(), 1e-4
    )
    every = np.concatenate(batches)
    fvu = np.concatenate(error).sum()
    fvu /= np.square(every - every.mean(axis=0)).sum()
    self.assertGreater(abs(got["explained_variance"] - (1 - fvu)), 0.05)

  def test_latents_below_zero_are_in_l0_alone(self):
    keep = self.windows != 2
    z = [
      np.asarray(self.sae.encode(x[k]))
      for x, k in zip(self.x, keep, strict=True)
    ]
    z = np.concatenate(z)
    metrics, latents = self.measured()
    self.assertEqual(metrics["sparsity"]["l0"], 4)
    np.testing.assert_allclose(
      metrics["sparsity"]["l1"], z.sum(axis=-1).mean(), 1e-4
    )
    np.testing.assert_allclose(
      latents["feature_density"], (z > 0).mean(axis=0), 1e-6
    )

  def test_an_encoder_and_no_text_are_refused(self):
    with self.assertRaisesRegex(errors.InputError, "encoder"):
      core_compat.saebench(
        self.sae,
        types.SimpleNamespace(causal=False, name="bert"),
        SITE,
        [],
        [],
        (),
      )
    with self.assertRaisesRegex(errors.InputError, "batch of windows"):
      core_compat.saebench(self.sae, model(), SITE, [], [], ())


if __name__ == "__main__":
  absltest.main()
