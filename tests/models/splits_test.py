"""saejax/models/splits.py: two parts of a forward pass are the whole one."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.models import model as model_lib
from saejax.models import splits, taps
from tests.models import golden

CASES = ("bert", "gemma3_text_local_global", "gpt2", "gpt_neox_parallel")
POINTS = ("z", "mlp_out")


class SplitsTest(parameterized.TestCase):
  def load(self, case):
    model = model_lib.load(golden.folder(self.create_tempdir(), case))
    rng = np.random.default_rng(0)
    ids = rng.integers(3, model.vocabulary, (3, 7)).astype(np.int32)
    mask = np.ones(ids.shape, bool)
    mask[0, 5:] = mask[1, :2] = False
    return model, ids, mask

  def both(self, model, ids, mask, site):
    """The last hidden state with an edit, in a whole pass and in two parts."""
    edit = lambda h: 0.5 * h + 1
    whole = jax.jit(lambda m: taps.hidden(m, ids, mask, {site: edit}))(model)
    names = list(dict.fromkeys((splits.start(model, site), site)))
    found = taps.read(model, ids, mask, names)
    found[site] = edit(found[site])
    return np.asarray(whole), np.asarray(splits.hidden(model, ids, mask, found))

  @parameterized.parameters(*CASES)
  def test_every_family_continues_from_any_point_of_the_last_layer(self, case):
    model, ids, mask = self.load(case)
    for point in POINTS:
      layer = model.layers - 1
      site = taps.resolve(model, layer, point).name
      whole, parts = self.both(model, ids, mask, site)
      np.testing.assert_allclose(
        parts[mask], whole[mask], rtol=1e-5, atol=1e-5, err_msg=site
      )

  def test_scanned_layers_do_too_and_earlier_ones_are_not_in_the_program(self):
    model, ids, mask = self.load("llama_gqa_tied")
    for each in (model, model.scanned()):
      site = "layers.0.resid_post"
      whole, parts = self.both(each, ids, mask, site)
      np.testing.assert_allclose(parts[mask], whole[mask], rtol=1e-5, atol=1e-5)
    model = model.scanned()
    last = f"layers.{model.layers - 1}.resid_post"
    h = np.zeros((*ids.shape, model.d), np.float32)

    def flops(names):
      given = dict.fromkeys(names, h)
      program = splits._hidden.lower(model, ids, mask, given).compile()
      return (program.cost_analysis() or {})["flops"]

    self.assertLess(flops([last]), flops(["layers.0.resid_pre"]) / 2)

  @parameterized.parameters(
    ("layers.1.q", "layers.1.resid_pre"),
    ("layers.1.mlp_out", "layers.1.resid_mid"),
    ("blocks.1.hook_resid_post", "layers.1.resid_post"),
    ("embed", "embed"),
    ("final_norm", "final_norm"),
  )
  def test_the_start_is_the_residual_stream_before(self, site, start):
    model, _, _ = self.load("gpt2")
    self.assertEqual(splits.start(model, site), start)

  def test_parallel_layers_start_before_attention_and_no_site_is_refused(self):
    model, _, _ = self.load("gpt_neox_parallel")
    self.assertEqual(
      splits.start(model, "layers.0.mlp_out"), "layers.0.resid_pre"
    )
    with self.assertRaisesRegex(errors.InputError, "must be a layer"):
      splits.start(model, "layers.99.mlp_out")


if __name__ == "__main__":
  absltest.main()
