"""Every site of every family against transformers' PyTorch models, live.

Needs torch==2.13.0 and transformers, in an environment of its own.
"""

import importlib.util
import json
import pathlib

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from benchmarks import families
from saejax.models import bert, taps
from saejax.models import model as model_lib
from tests import shared
from tests.models import golden

HAS_TORCH = importlib.util.find_spec("torch") is not None
if HAS_TORCH:
  import torch
  import transformers

  from tests.golden import make_models

TOLERANCE = 1e-5  # of the largest entry


@absltest.skipUnless(HAS_TORCH, "no PyTorch: pip install torch==2.13.0")
class ParityTest(parameterized.TestCase):
  def check(self, model, torch_model, ids, mask):
    want = make_models.capture(torch_model, ids, mask)
    names = sorted(set(want) - {"output"})
    self.assertEqual(names, sorted(golden.sites(model.config)))
    device = jnp.asarray(ids), jnp.asarray(mask)
    got = taps.read(model, *device, names)
    got["output"] = model(*device)
    for name, reference in want.items():
      h = np.asarray(got[name])[mask]
      error = np.abs(h - reference[mask]).max()
      limit = TOLERANCE * np.abs(reference[mask]).max()
      self.assertLessEqual(error, limit, name)
    if model.family == "bert":
      reference = make_models.sentence_embedding(want["output"], mask)
      h = bert.sentence_embedding(got["output"], device[1])
      error = np.abs(np.asarray(h) - reference).max()
      self.assertLessEqual(error, TOLERANCE * np.abs(reference).max())

  @parameterized.product(case=golden.CASES, tokens=[1, 13, 20])
  def test_random_models(self, case, tokens):
    torch_model = make_models.build(case)
    folder = self.create_tempdir().full_path
    torch_model.save_pretrained(folder)
    model = model_lib.load(folder)
    vocabulary = model.vocabulary
    batch = make_models.batch(vocabulary, tokens, seed=tokens)
    self.check(model, torch_model, *batch)

  def test_sharded_checkpoint(self):
    torch_model = make_models.build("llama_gqa_tied")
    folder = self.create_tempdir().full_path
    torch_model.save_pretrained(folder, max_shard_size="8KB")
    model = model_lib.load(folder)
    self.check(model, torch_model, *make_models.batch(40, 9))

  def test_original_rope_settings_of_config(self):
    # rope_theta and rope_scaling, as in configs before transformers 5.
    old = {
      "rope_parameters": None,
      "rope_theta": 100.0,
      "rope_scaling": {
        "type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
      },
    }
    case = "llama_scaled_rope"
    folder = golden.folder(self.create_tempdir(), case, settings=old)
    torch_model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    self.check(model_lib.load(folder), torch_model, *make_models.batch(40, 20))

  @parameterized.parameters(
    ("gemma_shared_key", {"rope_parameters": None, "rope_theta": 50.0}),
    (
      "gemma3_text_local_global",
      {
        "rope_parameters": None,
        "rope_theta": 500.0,
        "rope_local_base_freq": 30.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "layer_types": None,
        "sliding_window_pattern": 2,
      },
    ),
    (
      "gpt_neox_parallel",
      {
        "rope_parameters": None,
        "rotary_pct": 0.75,
        "rotary_emb_base": 50,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "max_position_embeddings": 6,
      },
    ),
    (
      "phi3_longrope",
      {
        "rope_parameters": None,
        "rope_theta": 50.0,
        "rope_scaling": {
          "type": "longrope",
          "short_factor": [1.0] * 4,
          "long_factor": [1.0, 2.0, 3.0, 4.0],
        },
      },
    ),
    (
      "qwen2_yarn_some_windows",
      {
        "rope_parameters": None,
        "rope_scaling": {
          "type": "yarn",
          "factor": 2.0,
          "original_max_position_embeddings": 10,
          "mscale": 0.7,
          "mscale_all_dim": 0.5,
        },
        "layer_types": None,
      },
    ),
    ("mistral_windows", {"sliding_window": None, "rope_parameters": None}),
  )
  def test_settings_as_published(self, case, settings):
    folder = golden.folder(self.create_tempdir(), case)
    values = golden.config(case) | settings
    absent = [k for k, v in settings.items() if v is None]
    kept = {k: v for k, v in values.items() if k not in absent}
    if settings.get("sliding_window", 0) is None:
      kept["sliding_window"] = None
    pathlib.Path(folder, "config.json").write_text(json.dumps(kept))
    auto = transformers.AutoModelForCausalLM
    torch_model = auto.from_pretrained(folder).eval()
    model = model_lib.load(folder)
    self.check(model, torch_model, *make_models.batch(model.vocabulary, 13))

  def test_gemma_3_beside_a_vision_tower(self):
    torch.manual_seed(0)
    text = make_models.make_families.CASES["gemma3_text_local_global"][1]
    vision = {
      "hidden_size": 16,
      "intermediate_size": 16,
      "num_hidden_layers": 1,
      "num_attention_heads": 2,
      "image_size": 28,
      "patch_size": 14,
    }
    text = make_models._SMALL | text | {"final_logit_softcapping": None}
    config = transformers.Gemma3Config(
      text_config=text,
      vision_config=vision,
      mm_tokens_per_image=4,
    )
    torch_model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
      for weight in torch_model.parameters():
        weight.normal_(std=0.3)
    folder = self.create_tempdir().full_path
    torch_model.save_pretrained(folder)
    model = model_lib.load(folder)
    self.assertEqual(model.family, "gemma3")
    self.check(model, torch_model, *make_models.batch(model.vocabulary, 8))

  @parameterized.parameters(
    "gemma2_caps_windows",
    "gpt2",
    "gpt_neox_parallel",
    "phi3_longrope",
    "qwen3_dynamic",
  )
  def test_every_column_of_the_table_agrees(self, case):
    row = families.row(case, self.create_tempdir().full_path)
    self.assertTrue(families.agrees(row), row)
    for column in ("sites", "packed", "bfloat16"):
      self.assertFalse(families.agrees(row | {column: float("nan")}))

  @parameterized.parameters(
    ("minilm", "AutoModel", 128),
    ("minilm", "AutoModel", 512),
    ("babyllama-105", "AutoModelForCausalLM", 256),
  )
  def test_real_models(self, name, auto, tokens):
    if name == "minilm":
      folder = make_models.MINILM
    else:
      folder = shared.path(f"models/{name}")
    auto = getattr(transformers, auto)
    torch_model = auto.from_pretrained(folder, dtype="float32").eval()
    vocabulary = torch_model.config.vocab_size
    batch = make_models.batch(vocabulary, tokens)
    self.check(model_lib.load(str(folder)), torch_model, *batch)

  def test_minilm_from_text_equals_transformers_tokenizer(self):
    pipeline = transformers.AutoTokenizer.from_pretrained(make_models.MINILM)
    texts = ["Attention is all you need.", "def f(x):\n  return x ** 2", "é"]
    batch = pipeline(texts, padding=True, return_tensors="np")
    mask = batch["attention_mask"].astype(bool)
    torch_model = transformers.AutoModel.from_pretrained(make_models.MINILM)
    model = model_lib.load(str(make_models.MINILM))
    ids = batch["input_ids"].astype(np.int32)
    self.check(model, torch_model.eval(), ids, mask)


if __name__ == "__main__":
  absltest.main()
