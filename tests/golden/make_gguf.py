"""Makes tests/golden/gguf_llama.*: a small GGUF file, and what others read in it.

Needs PyTorch, transformers and the package gguf, which the library does not:
  pip install torch==2.13.0 transformers accelerate gguf==0.19.0
  python tests/golden/make_gguf.py

gguf_llama.gguf is a random Llama model with tensors of every type, a tokenizer
of bytes and some merges, and a chat template. gguf_llama.safetensors holds one
tensor or more per type as the package gguf decodes it (`tensor/`), and ids,
logits and the ids of texts (`text/`) as transformers computes them.
gguf_blocks.safetensors holds random blocks of 256 values, bytes and values.
"""

import json
import pathlib

import gguf
import numpy as np
import safetensors.numpy
import tokenizers
import torch
import transformers

GOLDEN = pathlib.Path(__file__).parent
NAME = "gguf_llama"
HEADS, KEY_HEADS, HEAD = 4, 2, 8
D, D_MLP, LAYERS, CONTEXT = 32, 64, 2, 32
SPECIAL = ["<|end|>", "<|start|>", "<|pad|>"]
TEXTS = (
  "the theme of the others",
  "In 1984, 12 tests.\n\n  and\té 日本",
  "<|start|>user\nthen<|end|>\n",
)
TEMPLATE = (
  "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n"
  "{% endfor %}"
)
Q = gguf.GGMLQuantizationType
# Every type is used; those of layers also for a query and a key matrix.
TYPES = {
  "token_embd.weight": Q.Q8_0,
  "blk.0.attn_q.weight": Q.Q4_1,
  "blk.0.attn_k.weight": Q.Q4_0,
  "blk.0.attn_v.weight": Q.Q8_0,
  "blk.0.attn_output.weight": Q.Q4_1,
  "blk.0.ffn_down.weight": Q.Q4_0,
  "blk.1.attn_q.weight": Q.F16,
  "blk.1.attn_k.weight": Q.BF16,
  "blk.1.ffn_gate.weight": Q.Q4_1,
  "blk.1.ffn_up.weight": Q.F16,
}


def words() -> tuple[list[str], list[str]]:
  """Tokens and merges, trained on a few words."""
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=290,
    special_tokens=SPECIAL,
    initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  backend.train_from_iterator(
    ["the theme of other tests then and the others in the end"] * 3, trainer
  )
  model = json.loads(backend.to_str())["model"]
  tokens = sorted(model["vocab"], key=model["vocab"].get)
  return tokens, [" ".join(pair) for pair in model["merges"]]


def pairs(rows: np.ndarray, heads: int) -> np.ndarray:
  """The order of rows in which llama.cpp rotates adjacent pairs."""
  halves = rows.reshape(heads, 2, -1, rows.shape[1])
  return halves.swapaxes(1, 2).reshape(rows.shape)


def tensors(vocabulary: int) -> dict[str, np.ndarray]:
  """Random weights, by their names in llama.cpp."""
  rng = np.random.default_rng(0)
  shapes = {"token_embd": (vocabulary, D), "output_norm": (D,)}
  for l in range(LAYERS):
    shapes |= {
      f"blk.{l}.attn_norm": (D,),
      f"blk.{l}.attn_q": (HEADS * HEAD, D),
      f"blk.{l}.attn_k": (KEY_HEADS * HEAD, D),
      f"blk.{l}.attn_v": (KEY_HEADS * HEAD, D),
      f"blk.{l}.attn_output": (D, HEADS * HEAD),
      f"blk.{l}.ffn_norm": (D,),
      f"blk.{l}.ffn_gate": (D_MLP, D),
      f"blk.{l}.ffn_up": (D_MLP, D),
      f"blk.{l}.ffn_down": (D, D_MLP),
    }
  return {
    f"{name}.weight": rng.normal(len(shape) == 1, 0.3, shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def write(path: pathlib.Path) -> None:
  """Writes the model."""
  tokens, merges = words()
  out = gguf.GGUFWriter(path, "llama")
  out.add_context_length(CONTEXT)
  out.add_embedding_length(D)
  out.add_block_count(LAYERS)
  out.add_feed_forward_length(D_MLP)
  out.add_head_count(HEADS)
  out.add_head_count_kv(KEY_HEADS)
  out.add_rope_freq_base(1000.0)
  out.add_rope_dimension_count(HEAD)
  out.add_layer_norm_rms_eps(1e-5)
  out.add_vocab_size(len(tokens))
  out.add_tokenizer_model("gpt2")
  out.add_tokenizer_pre("smollm")
  out.add_token_list(tokens)
  out.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
  out.add_token_merges(merges)
  out.add_eos_token_id(0)
  out.add_bos_token_id(1)
  out.add_pad_token_id(2)
  out.add_add_bos_token(False)
  out.add_chat_template(TEMPLATE)
  for name, tensor in tensors(len(tokens)).items():
    kind = TYPES.get(name, Q.F32)
    for part, heads in (("attn_q", HEADS), ("attn_k", KEY_HEADS)):
      tensor = pairs(tensor, heads) if part in name else tensor
    out.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
  out.write_header_to_file()
  out.write_kv_data_to_file()
  out.write_tensors_to_file()
  out.close()


def expected(path: pathlib.Path) -> dict[str, np.ndarray]:
  """What the packages gguf and transformers read in the file."""
  found = {
    f"tensor/{t.name}": gguf.quants.dequantize(t.data, t.tensor_type)
    for t in gguf.GGUFReader(path).tensors
    if t.name in TYPES
  }
  folder, file = str(path.parent), path.name
  backend = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
  for text in TEXTS:
    found[f"text/{text}"] = np.asarray(backend(text).input_ids, np.int32)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=file, dtype="float32", attn_implementation="eager"
  ).eval()
  ids = np.random.default_rng(1).integers(0, 270, (2, 20), dtype=np.int32)
  with torch.no_grad():
    logits = model(torch.tensor(ids, dtype=torch.long), use_cache=False).logits
  return found | {"ids": ids, "logits": logits.numpy()}


def blocks() -> dict[str, np.ndarray]:
  """Random bytes of blocks, with finite scales, and their values."""
  rng, found = np.random.default_rng(2), {}
  for kind, scales in ((Q.Q4_K, (0, 2)), (Q.Q5_K, (0, 2)), (Q.Q6_K, (208,))):
    size = gguf.GGML_QUANT_SIZES[kind][1]
    raw = rng.integers(0, 256, (4, size), dtype=np.uint8)
    for at in scales:
      drawn = rng.standard_normal((4, 1)).astype(np.float16)
      raw[:, at : at + 2] = drawn.view(np.uint8)
    found[f"{kind.name}/bytes"] = raw
    found[f"{kind.name}/values"] = gguf.quants.dequantize(raw, kind)
  return found


if __name__ == "__main__":
  safetensors.numpy.save_file(
    {k: np.ascontiguousarray(v) for k, v in blocks().items()},
    GOLDEN / "gguf_blocks.safetensors",
    {"gguf": "0.19.0"},
  )
  file = GOLDEN / f"{NAME}.gguf"
  write(file)
  arrays = {k: np.ascontiguousarray(v) for k, v in expected(file).items()}
  safetensors.numpy.save_file(
    arrays,
    file.with_suffix(".safetensors"),
    {"gguf": "0.19.0", "transformers": transformers.__version__},
  )
