"""features/neuronpedia.py and delphi.py: what they write, also read by the tools."""

import json
import os
import pathlib
import subprocess
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from safetensors import numpy as safetensors

from saejax import errors, models
from saejax.data.text import neighbours
from saejax.features import activity, cards, correlations, delphi, neuronpedia
from saejax.sae import activations
from tests import structure_test, toy
from tests.features import stores
from tests.models import drawn

# Fields of NeuronpediaDashboardFeature and -Activation of SAEDashboard 0.8.0.
FEATURE = [
  "feature_index",
  "neuron_alignment_indices",
  "neuron_alignment_values",
  "neuron_alignment_l1",
  "correlated_neurons_indices",
  "correlated_neurons_l1",
  "correlated_neurons_pearson",
  "correlated_features_indices",
  "correlated_features_l1",
  "correlated_features_pearson",
  "neg_str",
  "neg_values",
  "pos_str",
  "pos_values",
  "frac_nonzero",
  "freq_hist_data_bar_values",
  "freq_hist_data_bar_heights",
  "logits_hist_data_bar_heights",
  "logits_hist_data_bar_values",
  "n_prompts_total",
  "n_tokens_in_prompt",
  "dataset",
  "activations",
  "decoder_weights_dist",
  "vector",
]
ACTIVATION = [
  "bin_min",
  "bin_max",
  "bin_contains",
  "tokens",
  "values",
  "qualifying_token_index",
]
CLIENT = structure_test.ROOT / "tests/clients/dashboard_client.py"


def client(kind, folder, out):
  """What a tool reads, or None without its environment."""
  python = os.environ.get("SAEJAX_DASHBOARD_CLIENTS")
  if not python:
    return None
  subprocess.run([python, CLIENT, kind, folder, out], check=True)
  return json.loads(pathlib.Path(out).read_text())


class ExportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.sae = toy.sae(d=stores.D, n=24, activation=activations.TopK(3))
    self.enter_context(
      mock.patch.object(
        neighbours, "tokenizer_of", lambda store: stores.Words()
      )
    )

  def store(self, shuffle_seed=None):
    return stores.store(self.folder / f"s{shuffle_seed}", shuffle_seed)

  def z(self, store):
    """Latents by row of the store, NaN where there is none."""
    columns = store.whole("x", "tok")
    z = np.full((stores.ROWS, self.sae.n), np.nan)
    z[columns["tok"]] = self.sae.encode(columns["x"])
    return z

  @parameterized.parameters(None, 0)
  def test_delphi_gets_every_value_at_its_token(self, shuffle_seed):
    store, out = self.store(shuffle_seed), self.folder / "out"
    count = delphi.write(out, self.sae, store, length=16, splits=3)
    z = self.z(store)
    files = sorted((out / "model.layers.2").glob("*.safetensors"))
    self.assertEqual(sorted(f.stem for f in files), ["0_7", "16_23", "8_15"])
    seen = np.zeros_like(z)
    for file in files:
      found = safetensors.load_file(file)
      start = int(file.stem.split("_")[0])
      self.assertEqual(found["locations"].dtype, np.uint16)
      self.assertEqual(found["activations"].dtype, np.float16)
      at = found["locations"].astype(int)
      order = np.lexsort([at[:, 2], at[:, 1], at[:, 0]])
      np.testing.assert_array_equal(order, np.arange(len(at)))
      token = found["tokens"][at[:, 0], at[:, 1]]
      seen[token, at[:, 2] + start] = found["activations"]
    np.testing.assert_allclose(seen, np.nan_to_num(z), rtol=1e-3, atol=1e-5)
    self.assertEqual(count, (seen != 0).sum())
    flat = found["tokens"].reshape(-1)
    kept = flat[flat != stores.END]
    np.testing.assert_array_equal(kept, np.flatnonzero(~np.isnan(z[:, 0])))
    # Documents are apart by the end of a text.
    first = np.flatnonzero(
      np.isin(flat, kept[np.diff(kept // 50, prepend=-1) > 0])
    )
    np.testing.assert_array_equal(flat[first[1:] - 1], stores.END)
    settings = json.loads((files[0].parent / "config.json").read_text())
    self.assertEqual(settings["model_name"], "toy")
    self.assertEqual(settings["cache_ctx_len"], 16)
    found = client("delphi", out, self.folder / "read.json")
    if found is not None:
      np.testing.assert_array_equal(np.reshape(found["tokens"], -1), flat)
      live = np.flatnonzero(seen.any(axis=0))
      self.assertEqual(sorted(map(int, found["latents"])), live.tolist())
      for latent, mine in found["latents"].items():
        token = [found["tokens"][s][t] for s, t, _ in mine["locations"]]
        np.testing.assert_allclose(
          mine["activations"], seen[token, int(latent)], rtol=1e-3
        )
        z = seen[:, int(latent)]
        tokens, values = mine["best"]
        best = tokens[int(np.argmax(values))]
        self.assertEqual(best, int(z.argmax()))
        self.assertAlmostEqual(mine["max"], z.max(), delta=1e-3 * z.max())
        self.assertAlmostEqual(mine["frequency"], (z != 0).sum() / flat.size)
        for words in mine["train"]:
          self.assertTrue(
            z[[int(w) for w in words if int(w) != stores.END]].any()
          )

  def test_delphi_gets_wide_numbers_where_they_are_needed(self):
    big = self.sae.replace(
      encoder=self.sae.encoder.replace(W=self.sae.encoder.W * 1e5)
    )
    out = self.folder / "out"
    delphi.write(out, big, self.store(), [4, 20], splits=1, module="m")
    found = safetensors.load_file(out / "m/0_23.safetensors")
    self.assertEqual(found["activations"].dtype, np.float32)
    self.assertTrue(np.isfinite(found["activations"]).all())
    self.assertEqual(set(found["locations"][:, 2].tolist()), {4, 20})
    with self.assertRaisesRegex(errors.InputError, "latents=24"):
      delphi.write(out, big, self.store(), [24])

  @parameterized.parameters(None, 0)
  def test_neuronpedia_gets_its_fields(self, shuffle_seed):
    store, out = self.store(shuffle_seed), self.folder / "out"
    b = np.array(self.sae.encoder.b)
    b[7] = -1e6  # dead
    sae = self.sae.replace(encoder=self.sae.encoder.replace(b=b))
    self.sae = sae
    count = neuronpedia.write(
      out,
      sae,
      store,
      activity.Choice(random=24),
      name="set",
      sizes=cards.Sizes(top=4, each=2, before=5, after=3),
      file_latents=10,
    )
    z = self.z(store)
    z = z[~np.isnan(z[:, 0])]
    live = np.flatnonzero(z.any(axis=0))
    self.assertEqual(count, len(live))
    skipped = json.loads((out / "skipped_indexes.json").read_text())
    self.assertEqual(
      skipped["skipped_indexes"], np.flatnonzero(~z.any(axis=0)).tolist()
    )
    files = [out / f"batch-{i}.json" for i in range(3)]
    found = [json.loads(file.read_text()) for file in files]
    features = [f for batch in found for f in batch["features"]]
    self.assertEqual([f["feature_index"] for f in features], live.tolist())
    self.assertEqual(found[0]["model_id"], "toy")
    self.assertEqual((found[0]["layer"], found[0]["sae_set"]), (2, "set"))
    pearson = np.corrcoef(z[:, live].T)
    np.fill_diagonal(pearson, -2)
    x = store.whole("x")["x"].astype(np.float64)
    for i, (latent, f) in enumerate(zip(live, features, strict=True)):
      self.assertEqual(sorted(f), sorted(FEATURE))
      mine = z[:, latent]
      self.assertAlmostEqual(f["frac_nonzero"], (mine != 0).mean())
      self.assertEqual(sum(f["freq_hist_data_bar_heights"]), (mine > 0).sum())
      want = live[np.argsort(-pearson[i])[:3]]
      self.assertEqual(f["correlated_features_indices"], want.tolist())
      np.testing.assert_allclose(
        f["correlated_features_pearson"], np.sort(pearson[i])[::-1][:3],
        atol=2e-3,
      )  # fmt: skip
      other = np.corrcoef(store_z(self.sae, store)[:, latent], x.T)[0, 1:]
      self.assertEqual(
        f["correlated_neurons_indices"], np.argsort(-other)[:3].tolist()
      )
      for a in f["activations"]:
        self.assertEqual(sorted(a), sorted(ACTIVATION))
        value = a["values"][a["qualifying_token_index"]]
        self.assertLessEqual(value, a["bin_max"] * 1.001)
        self.assertGreaterEqual(value, a["bin_min"] * 0.999)
      shares = {a["bin_min"]: a["bin_contains"] for a in f["activations"]}
      self.assertEqual(shares[-1], -1)
      self.assertLessEqual(sum(shares.values()) + 1, (mine > 0).mean() + 1e-9)
    read = client("neuronpedia", out, self.folder / "read.json")
    if read is not None:
      self.assertEqual(list(read.values()), found)

  def test_neuronpedia_gets_logits_of_a_language_model(self):
    folder = self.folder / "model"
    model = models.load(drawn.folder(folder, drawn.settings("llama")))
    sae = toy.sae(d=model.d, n=6, activation=activations.TopK(2))
    found = list(
      neuronpedia._logits(sae, model, np.arange(4), stores.Words(), 3)
    )
    with mock.patch.object(neuronpedia, "_LOGITS", 2 * model.vocabulary):
      again = list(
        neuronpedia._logits(sae, model, np.arange(4), stores.Words(), 3)
      )
    self.assertEqual(
      [f["pos_str"] for f in found], [f["pos_str"] for f in again]
    )
    for f in found:
      self.assertEqual(sum(f["logits_hist_data_bar_heights"]), model.vocabulary)
      self.assertGreater(f["pos_values"][0], f["neg_values"][0])
      self.assertLen(f["neg_str"], 3)

  def test_pairs_are_left_out_where_they_do_not_fit(self):
    with mock.patch.object(correlations, "_PAIRS", 100):
      found = correlations.Correlations([1, 2], 60, 4)
    self.assertFalse(found.has_pairs)
    self.assertEqual(found.with_latents(3), [([], [], [])] * 2)


def store_z(sae, store):
  """Latents in the order of the store."""
  return np.asarray(sae.encode(store.whole("x")["x"]))


if __name__ == "__main__":
  absltest.main()
