"""Every site of every family against transformers' PyTorch models, live.

Needs torch==2.13.0 and transformers, in an environment of its own.
"""

import importlib.util

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.models import bert, taps
from saejax.models import model as model_lib
from tests import shared
from tests.models import golden

HAS_TORCH = importlib.util.find_spec("torch") is not None
if HAS_TORCH:
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
