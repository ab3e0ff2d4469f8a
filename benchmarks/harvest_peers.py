"""Forward passes of transformers with a hook, for harvest.py; see `serving`.

Run with the Python of an environment with PyTorch and transformers. The pass ends
at the layer that is read: layers after it would be work for nothing.
"""

import contextlib

import numpy as np
import serving


class Done(Exception):
  """The layer has been read."""


def build(name, folder, file, layer, batches, threads):
  """A step passes all batches through the model and reads a layer.

  Args:
    name: unused, the only contender here.
    folder: folder of the model.
    file: GGUF file in it, or "".
    layer: layer whose output is read.
    batches: .npz file with the ids and masks of the batches.
    threads: threads of PyTorch.
  """
  import torch
  import transformers

  torch.set_num_threads(threads)
  model = transformers.AutoModel.from_pretrained(
    folder, gguf_file=file or None, dtype="float32"
  ).eval()
  layers = model.encoder.layer if hasattr(model, "encoder") else model.layers
  read = []

  def hook(module, inputs, output):
    read.append(output[0] if isinstance(output, tuple) else output)
    raise Done

  layers[layer].register_forward_hook(hook)
  with np.load(batches) as arrays:
    number = len(arrays.files) // 2
    passes = [
      (
        torch.from_numpy(arrays[f"ids{i}"].astype(np.int64)),
        torch.from_numpy(arrays[f"mask{i}"].astype(np.int64)),
      )
      for i in range(number)
    ]

  @torch.inference_mode()
  def step():
    for ids, mask in passes:
      read.clear()
      with contextlib.suppress(Done):
        model(input_ids=ids, attention_mask=mask)
      x = read[0].numpy()
    return x.size

  step()
  versions = {"torch": torch.__version__}
  return step, versions | {"transformers": transformers.__version__}


if __name__ == "__main__":
  serving.serve(build)
