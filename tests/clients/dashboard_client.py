"""Reads exports of the dashboard with the tools that they are for, in PyTorch.

Needs Python 3.11 or later with torch, transformers, jaxtyping, asyncer,
simple-parsing, nltk and orjson, and, each without its dependencies,
sae-dashboard==0.8.0 and eai-delphi==0.1.3. Last run with torch 2.13.0, transformers
5.24.0, jaxtyping 0.3.11 and NumPy 2.4.6.

  PYTHON tests/clients/dashboard_client.py neuronpedia FOLDER OUT
  PYTHON tests/clients/dashboard_client.py delphi FOLDER OUT

OUT gets as JSON what was read. Nothing is copied from the tools: they are called.
"""

import importlib.util
import json
import pathlib
import sys
from unittest import mock

# The embedding index of delphi's hard negatives, which is not used here.
for name in ("faiss", "sentence_transformers", "blobfile"):
  if importlib.util.find_spec(name) is None:
    sys.modules[name] = mock.MagicMock()


def neuronpedia(folder: pathlib.Path):
  """The features, made of SAEDashboard's classes and written by them again."""
  found = importlib.util.find_spec("sae_dashboard")
  # The package itself imports what runs models.
  (root,) = found.submodule_search_locations
  path = pathlib.Path(root, "neuronpedia", "neuronpedia_dashboard.py")
  spec = importlib.util.spec_from_file_location("dashboard", path)
  module = importlib.util.module_from_spec(spec)
  sys.modules["dashboard"] = module
  spec.loader.exec_module(module)
  return {
    file.name: module.NeuronpediaDashboardBatch(
      **json.loads(file.read_text())
    ).to_dict()
    for file in sorted(folder.glob("batch-*.json"))
  }


def delphi(folder: pathlib.Path):
  """Entries and examples of each latent, by delphi's `LatentDataset`.

  The records are those that it yields: of its loader, constructor and sampler.
  """
  from delphi import config
  from delphi.latents import loader

  class Words:
    """Stands for a tokenizer of transformers."""

    def batch_decode(self, ids):
      return [str(int(i)) for i in ids]

    def decode(self, ids):
      return " ".join(self.batch_decode(ids))

    def convert_ids_to_tokens(self, ids):
      return self.batch_decode(ids)

  data = loader.LatentDataset(
    folder,
    config.SamplerConfig(n_examples_train=2, n_examples_test=2, n_quantiles=2),
    config.ConstructorConfig(
      example_ctx_len=8, min_examples=1, n_non_activating=2
    ),
    tokenizer=Words(),
  )
  found = {}
  for buffer in data.buffers:
    for latent in buffer:
      entries = latent.activation_data
      found[latent.latent.latent_index] = {
        "module": latent.module,
        "locations": entries.locations.tolist(),
        "activations": entries.activations.float().tolist(),
      }
  for record in data:
    best = record.examples[0]
    found[record.latent.latent_index] |= {
      "best": [best.tokens.tolist(), best.activations.float().tolist()],
      "train": [example.str_tokens for example in record.train],
      "max": float(record.max_activation),
      "frequency": record.per_token_frequency,
    }
  return {"tokens": data.tokens.tolist(), "latents": found}


if __name__ == "__main__":
  _, kind, folder, out = sys.argv
  found = {"neuronpedia": neuronpedia, "delphi": delphi}[kind](
    pathlib.Path(folder)
  )
  pathlib.Path(out).write_text(json.dumps(found))
