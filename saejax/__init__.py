"""Sparse autoencoders in JAX.

    sae = saejax.load(folder)          # a frozen pytree
    z = sae.encode_sparse(x)           # SparseLatents: values, indices
    x_hat = sae.decode(z)              # in the units of x
    rows = saejax.open_store(path)     # activations with their provenance

The rest is `saejax.<module>`; README.md has the table.
"""

__version__ = "0.1.0"

from saejax.data.store.reader import Store, write_arrays
from saejax.data.store.reader import open as open_store
from saejax.errors import InputError
from saejax.evals.examples import top_examples
from saejax.evals.reconstruction import evaluate
from saejax.sae.files import about, load, save
from saejax.sae.initial import tied
from saejax.sae.latents import DenseLatents, SparseLatents
from saejax.sae.sae import SAE

__all__ = [
  "SAE",
  "DenseLatents",
  "InputError",
  "SparseLatents",
  "Store",
  "about",
  "evaluate",
  "load",
  "open_store",
  "save",
  "tied",
  "top_examples",
  "write_arrays",
]
