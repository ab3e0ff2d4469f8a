"""Generation with transformers, for generate.py; see `serving`.

Run with the Python of an environment with PyTorch and transformers.
"""

import functools
import hashlib

import serving


@functools.cache  # once for all numbers of rows
def load(folder, file):
  """The model in float32.

  Args:
    folder: folder of the model.
    file: GGUF file in it, or "".
  """
  import transformers

  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=file or None, dtype="float32"
  ).eval()


def build(name, path, folder, file, prompts, tokens, threads):
  """A step generates `tokens` greedy tokens after each prompt, with its cache.

  Args:
    name: unused, the only contender here.
    path: unused, of ours.
    folder: folder of the model.
    file: GGUF file in it, or "".
    prompts: ids of each prompt, of equal lengths.
    tokens: tokens per prompt.
    threads: threads of PyTorch.
  """
  import torch
  import transformers

  torch.set_num_threads(threads)
  model = load(folder, file)
  ids = torch.tensor(prompts, dtype=torch.long)

  def step():
    return model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      max_new_tokens=tokens,
      do_sample=False,
      use_cache=True,
      eos_token_id=None,
      pad_token_id=0,
    )[:, ids.shape[1] :]

  digest = hashlib.sha256(str(step().tolist()).encode()).hexdigest()
  versions = {"torch": torch.__version__, "ids": digest}
  return step, versions | {"transformers": transformers.__version__}


if __name__ == "__main__":
  serving.serve(build)
