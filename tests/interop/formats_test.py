"""Formats without an installed client: their definitions, and round trips.

The arithmetic here is written from the formats' documents, not with the code
that reads them.
"""

import json
import pathlib

import numpy as np
from absl.testing import absltest, parameterized
from safetensors import numpy as safetensors

import saejax
from saejax.errors import InputError
from saejax.interop import (
  conversion,
  files,
  formats,
  names,
  saelens,
  torch_writer,
)
from tests.interop import cases

D, N, K = 8, 16, 3
rng = np.random.default_rng(0)
normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
T = {
  "encoder.weight": normal(N, D),
  "encoder.bias": 0.5 * normal(N),
  "decoder.weight": normal(D, N),
  "decoder.bias": 0.5 * normal(D),
}
X = normal(40, D) + np.float32(0.2)
relu = lambda a: np.maximum(a, 0)


def largest(a, k):
  return a >= np.sort(a, axis=1)[:, -k][:, None]


class Folder(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, name, content):
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".json"):
      path.write_text(json.dumps(content))
    elif name.endswith(".pt"):
      torch_writer.write(path, content)
    else:
      content = {k: np.asarray(v, order="C") for k, v in content.items()}
      safetensors.save_file(content, path)

  def assert_gives(self, z, x_hat, format, path=None, **settings):
    found = names.read(path or self.folder, **settings)
    self.assertEqual(found.format, format)
    self.assertBetween((z != 0).mean(), 0.05, 0.8)
    sae = found.record.to_sae()
    cases.assert_same(self, (z, x_hat), (sae.encode(X), sae.reconstruct(X)))
    cases.assert_same(self, (z, x_hat), found.forward()(np.float64(X)))


LLAMA_SCOPE = {
  "d_model": D,
  "d_sae": N,
  "act_fn": "topk",
  "top_k": K,
  "jump_relu_threshold": 0.9,
  "hook_point_in": "blocks.3.hook_resid_post",
  "hook_point_out": "blocks.3.hook_resid_post",
  "norm_activation": "dataset-wise",
  "dataset_average_activation_norm": {"in": 1.1, "out": 1.1},
  "sparsity_include_decoder_norm": True,
  "apply_decoder_bias_to_pre_encoder": False,
  "use_decoder_bias": True,
}


class LlamaScopeTest(Folder):
  def standardised(self):
    """Pre-activations and decoder of raw rows, with unit decoder columns."""
    s = D**0.5 / 1.1
    norms = np.linalg.norm(T["decoder.weight"], axis=0)
    pre = norms * (X @ T["encoder.weight"].T + T["encoder.bias"] / s)
    return pre, T["decoder.weight"] / norms, T["decoder.bias"] / s

  def save(self, **changes):
    self.write("hyperparams.json", LLAMA_SCOPE | changes)
    self.write("checkpoints/final.safetensors", T)

  def test_threshold_is_of_unit_decoder_rows_and_raw_units(self):
    self.save()
    pre, W_d, b_d = self.standardised()
    z = relu(pre) * (pre > 0.9)
    self.assert_gives(z, z @ W_d.T + b_d, "llama_scope")

  def test_without_a_threshold_ranks_are_of_unit_decoder_rows(self):
    self.save(jump_relu_threshold=0.0)
    pre, W_d, b_d = self.standardised()
    z = relu(pre) * largest(pre, K)
    self.assert_gives(z, z @ W_d.T + b_d, "llama_scope")

  def test_leaving_the_fold_out_would_select_other_latents(self):
    # SAELens 6.54.12 does; Llamascopium's issue 128 reports it.
    self.save()
    s = D**0.5 / 1.1
    pre = s * X @ T["encoder.weight"].T + T["encoder.bias"]
    unfolded = pre > 0.9 * s
    z = saejax.load(self.folder).encode(X)
    self.assertGreater(np.mean((np.asarray(z) > 0) != unfolded), 0.02)

  @parameterized.parameters(
    ({"norm_activation": "token-wise"}, "norm_activation"),
    ({"sparsity_include_decoder_norm": False}, "include_decoder_norm"),
    ({"act_fn": "gelu"}, "act_fn must be"),
    (
      {"jump_relu_threshold": -1, "top_k": None},
      "positive jump_relu_threshold",
    ),
    ({"d_sae": 17}, "hyperparams.json"),
    ({"dataset_average_activation_norm": {}}, "'in'"),
  )
  def test_refused(self, changes, part):
    self.save(**changes)
    with self.assertRaisesRegex(InputError, part):
      saejax.load(self.folder)


class LlamaScopeR1Test(Folder):
  def setUp(self):
    super().setUp()
    cfg = {"d_model": D, "expansion_factor": N // D}
    self.write(
      "config.json", cfg | {"hook_point_in": "blocks.3.hook_resid_post"}
    )
    log = {"log_jumprelu_threshold": 0.5 * normal(N)}
    self.theta = np.exp(log["log_jumprelu_threshold"])
    self.write("sae_weights.safetensors", T | log)

  def test_rows_are_scaled_by_the_registry_s_factor(self):
    s = 1.3
    pre = s * X @ T["encoder.weight"].T + T["encoder.bias"]
    z = relu(pre) * (pre > self.theta)
    x_hat = (z @ T["decoder.weight"].T + T["decoder.bias"]) / s
    self.assert_gives(z, x_hat, "llama_scope_r1", scale=s)

  def test_without_the_factor_it_is_refused(self):
    with self.assertRaisesRegex(InputError, "SAELens' registry"):
      saejax.load(self.folder)


class LlamascopiumTest(Folder):
  S = D**0.5 / 1.1

  def save(self, function, by_norm, **changes):
    cfg = {
      "act_fn": function,
      "d_model": D,
      "top_k": K,
      "hook_point_in": "h.3",
      "hook_point_out": "h.3",
      "norm_activation": "dataset-wise",
      "sparsity_include_decoder_norm": by_norm,
    }
    self.write("config.json", cfg | changes)
    t = {
      "W_E": T["encoder.weight"].T,
      "b_E": T["encoder.bias"],
      "W_D": T["decoder.weight"].T,
      "b_D": T["decoder.bias"],
      "dataset_average_activation_norm.h.3": np.float32(1.1),
    }
    self.log = 0.4 * normal(N)
    t["activation_function.log_jumprelu_threshold"] = self.log
    self.write("sae_weights.safetensors", t)

  @parameterized.product(
    function=["relu", "jumprelu", "topk"], by_norm=[False, True]
  )
  def test_latents_and_thresholds_are_in_raw_units(self, function, by_norm):
    self.save(function, by_norm)
    W_D = T["decoder.weight"].T
    norms = np.linalg.norm(W_D, axis=1) if by_norm else 1.0
    a = self.S * X @ T["encoder.weight"].T + T["encoder.bias"]
    on = {
      "relu": a > 0,
      "jumprelu": a * norms > np.exp(self.log),
      "topk": largest(a * norms, K),
    }[function]
    z = relu(a) * on
    x_hat = (z @ W_D + T["decoder.bias"]) / self.S
    # The library's own standardisation leaves thresholds as they are.
    self.assert_gives(z / self.S, x_hat, "llamascopium")

  def test_refused(self):
    for changes in ({"act_fn": "glu"}, {"norm_activation": "batch-wise"}):
      self.save("topk", True, **changes)
      with self.assertRaisesRegex(InputError, "must be"):
        saejax.load(self.folder)
    self.save("topk", True, top_k=0)
    with self.assertRaisesRegex(InputError, "top_k"):
      saejax.load(self.folder)


class OpenAITest(Folder):
  def save(self, function, state):
    t = {
      "pre_bias": T["decoder.bias"],
      "encoder.weight": T["encoder.weight"],
      "latent_bias": T["encoder.bias"],
      "decoder.weight": T["decoder.weight"],
      "stats_last_nonzero": np.zeros((N,), np.int64),
    }
    more = {"activation": function, "activation_state_dict": state}
    self.write("3.pt", t | more)

  def encoded(self, x):
    return (x - T["decoder.bias"]) @ T["encoder.weight"].T + T["encoder.bias"]

  def test_topk_normalises_rows_and_undoes_it_without_epsilon(self):
    self.save("TopK", {"k": K, "postact_fn": "ReLU"})
    mean, std = X.mean(1, keepdims=True), X.std(1, keepdims=True, ddof=1)
    a = self.encoded((X - mean) / (std + 1e-5))
    z = relu(a) * largest(a, K)
    y = z @ T["decoder.weight"].T + T["decoder.bias"]
    self.assert_gives(z, y * std + mean, "openai")

  def test_relu_does_not(self):
    self.save("ReLU", {})
    z = relu(self.encoded(X))
    y = z @ T["decoder.weight"].T + T["decoder.bias"]
    self.assert_gives(z, y, "openai", path=self.folder / "3.pt")

  @parameterized.parameters(
    ("Tanh", {}), ("TopK", {"postact_fn": "ReLU"}), ("TopK", {"k": 0})
  )
  def test_refused(self, function, state):
    self.save(function, state)
    with self.assertRaisesRegex(InputError, "activation"):
      saejax.load(self.folder)


class HookZTest(Folder):
  def test_attention_saes_of_gpt2(self):
    t = {
      "W_enc": T["encoder.weight"].T.copy(),
      "b_enc": T["encoder.bias"],
      "W_dec": T["decoder.weight"].T.copy(),
      "b_dec": T["decoder.bias"],
    }
    self.write("gpt2_L3.pt", t)
    cfg = {"act_size": D, "dict_size": N, "act_name": "blocks.3.attn.hook_z"}
    self.write("gpt2_L3_cfg.json", cfg)
    z = relu((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    self.assert_gives(z, z @ t["W_dec"] + t["b_dec"], "hook_z")
    found = names.read(self.folder / "gpt2_L3.pt")
    self.assertEqual(found.record.site.hook, "blocks.3.attn.hook_z")


class SitesTest(parameterized.TestCase):
  @parameterized.parameters(
    ("gemma_scope", "google/gemma-2-2b", "blocks.3.hook_resid_post", None),
    (
      "gemma_scope_transcoder",
      "google/gemma-2-2b",
      "blocks.3.ln2.hook_normalized",
      "blocks.3.hook_mlp_out",
    ),
    ("gemma_scope_2", "google/gemma-3-1b-pt", "blocks.3.hook_resid_post", None),
    (
      "gemma_scope_2_affine",
      "google/gemma-3-1b-pt",
      "blocks.3.hook_mlp_in",
      "blocks.3.hook_mlp_out",
    ),
    ("qwen_scope", "Qwen/Qwen3-1.7B-Base", "blocks.3.hook_resid_post", None),
    (
      "goodfire",
      "meta-llama/Llama-3.1-8B-Instruct",
      "blocks.19.hook_resid_post",
      None,
    ),
    ("saelens_topk", "toy", "blocks.3.hook_resid_post", None),
    ("saelens_old", "toy", "blocks.3.hook_resid_post", None),
    (
      "dictionary_learning_BatchTopKSAE",
      "toy",
      "blocks.3.hook_resid_post",
      None,
    ),
    ("circuit_tracer", "toy", "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"),
  )
  def test_names_and_settings_give_the_site(self, name, model, hook, out):
    site = cases.case(name).read().record.site
    self.assertEqual((site.model, site.hook, site.hook_out), (model, hook, out))

  def test_embedding_saes_act_on_embeddings_that_are_not_scaled(self):
    found = cases.case("gemma_scope")
    plain = found.read().record
    name = "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
    files = type(found.files)(cases.path("gemma_scope"), name)
    record = formats.get("gemma_scope").read(files, found.hints)
    self.assertEqual(record.site.hook, "hook_embed")
    root = 8**0.5
    np.testing.assert_allclose(record.W_enc, plain.W_enc / root, rtol=1e-6)
    np.testing.assert_allclose(record.W_dec, plain.W_dec * root, rtol=1e-6)
    np.testing.assert_array_equal(record.b_dec, plain.b_dec)


def kept(name: str) -> bool:
  """Whether the files of a case are written again tensor by tensor."""
  # Training checkpoints and old files become those of inference; a Gemma Scope
  # file says by its repository alone that it is a transcoder; a pursuit that
  # does not subtract b_dec does not read it either.
  changed = ("batchtopk", "matryoshka", "old", "rescale", "pursuit_steps")
  changes = any(part in name.split("saelens_")[-1] for part in changed)
  read_only = not hasattr(formats.get(cases.case(name).read().format), "write")
  other = name == "gemma_scope_transcoder" or read_only
  return name.endswith("_exported") or not (other or changes)


class RoundTripTest(parameterized.TestCase):
  @parameterized.parameters(filter(kept, cases.every()))
  def test_a_client_s_tensors_are_written_as_the_client_wrote_them(self, name):
    case = cases.case(name)
    found = case.read()
    folder = pathlib.Path(self.create_tempdir().full_path)
    conversion._save(found.record, found.format, folder)
    for path in folder.iterdir():
      if path.suffix == ".json":
        continue
      got = files.Files(folder).tensors(path.name).arrays
      want = case.files.tensors(path.name).arrays
      self.assertEqual(set(got), set(want))
      for key, value in got.items():
        np.testing.assert_array_equal(value, want[key], err_msg=key)
        self.assertEqual(value.dtype, want[key].dtype, key)

  @parameterized.parameters(
    name for name in cases.every() if name.startswith("saelens") and kept(name)
  )
  def test_saelens_settings_are_those_of_saelens(self, name):
    case = cases.case(name)
    written = saelens.write(case.read().record)["cfg.json"]
    theirs = case.files.json("cfg.json")
    # Folded already, and without a limit that is the width.
    theirs["normalize_activations"] = written["normalize_activations"]
    if "max_iterations" in theirs:
      theirs["max_iterations"] = written["d_in"]
    for key in written.keys() - {"metadata"}:
      self.assertEqual(written[key], theirs[key], key)
    about, hook = written["metadata"], theirs["metadata"].get("hook_name")
    self.assertEqual(about.get("hook_name"), hook)
    self.assertEqual(about["sae_lens_version"], "6.54.12")


if __name__ == "__main__":
  absltest.main()
