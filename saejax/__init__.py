"""Sparse autoencoders in JAX.

    sae = saejax.load(folder)          # a frozen pytree
    z = sae.encode_sparse(x)           # SparseLatents: values, indices
    x_hat = sae.decode(z)              # in the units of x
    rows = saejax.open_store(path)     # activations with their provenance

Every subpackage is reached as `saejax.<name>`; README.md has the table. All is
imported when it is first used. `saejax.kernels` is a folder without a file of
its own: the sources lie in kernels/, beside this package.
"""

from typing import TYPE_CHECKING

from saejax import lazy as _lazy

__version__ = "0.1.0"

_NAMES = {
  "SAE": "saejax.sae.sae",
  "Sites": "saejax.runs.sites",
  "DenseLatents": "saejax.sae.latents",
  "SparseLatents": "saejax.sae.latents",
  "InputError": "saejax.errors",
  "Mix": "saejax.data.mix",
  "Store": "saejax.data.store.reader",
  "about": "saejax.sae.files",
  "evaluate": "saejax.evals.held_out",
  "init": "saejax.sae.initial",
  "fit": "saejax.runs.fitting",
  "fit_grid": "saejax.runs.sweeps",
  "harvest": "saejax.data.files",
  "load": "saejax.interop.names",
  "load_checkpoint": "saejax.training.saved_member",
  "online": "saejax.data.harvest",
  "open_store": "saejax.data.store.reader:open",
  "push_to_hub": "saejax.interop.publish",
  "save": "saejax.sae.files",
  "top_examples": "saejax.evals.examples",
  "top_examples_of": "saejax.evals.examples",
  "write_store": "saejax.data.store.create",
}
_MODULES = (
  "config",
  "data",
  "errors",
  "evals",
  "features",
  "interventions",
  "interop",
  "kernels",
  "models",
  "plans",
  "recipes",
  "report",
  "runs",
  "sae",
  "studies",
  "training",
)

__all__ = [
  "SAE",
  "DenseLatents",
  "InputError",
  "Mix",
  "Sites",
  "SparseLatents",
  "Store",
  "about",
  "config",
  "data",
  "errors",
  "evals",
  "evaluate",
  "features",
  "fit",
  "fit_grid",
  "harvest",
  "init",
  "interop",
  "interventions",
  "kernels",
  "load",
  "load_checkpoint",
  "models",
  "online",
  "open_store",
  "plans",
  "push_to_hub",
  "recipes",
  "report",
  "runs",
  "sae",
  "save",
  "studies",
  "top_examples",
  "top_examples_of",
  "training",
  "write_store",
]
__getattr__, __dir__ = _lazy.attach(__name__, _MODULES, _NAMES)

if TYPE_CHECKING:
  from saejax import config as config
  from saejax import data as data
  from saejax import errors as errors
  from saejax import evals as evals
  from saejax import features as features
  from saejax import interop as interop
  from saejax import interventions as interventions
  from saejax import kernels as kernels
  from saejax import models as models
  from saejax import plans as plans
  from saejax import recipes as recipes
  from saejax import report as report
  from saejax import runs as runs
  from saejax import sae as sae
  from saejax import studies as studies
  from saejax import training as training
  from saejax.data.files import harvest as harvest
  from saejax.data.harvest import online as online
  from saejax.data.mix import Mix as Mix
  from saejax.data.store.create import write_store as write_store
  from saejax.data.store.reader import Store as Store
  from saejax.data.store.reader import open as open_store
  from saejax.errors import InputError as InputError
  from saejax.evals.examples import top_examples as top_examples
  from saejax.evals.examples import top_examples_of as top_examples_of
  from saejax.evals.held_out import evaluate as evaluate
  from saejax.interop.names import load as load
  from saejax.interop.publish import push_to_hub as push_to_hub
  from saejax.runs.fitting import fit as fit
  from saejax.runs.sites import Sites as Sites
  from saejax.runs.sweeps import fit_grid as fit_grid
  from saejax.sae.files import about as about
  from saejax.sae.files import save as save
  from saejax.sae.initial import init as init
  from saejax.sae.latents import DenseLatents as DenseLatents
  from saejax.sae.latents import SparseLatents as SparseLatents
  from saejax.sae.sae import SAE as SAE
  from saejax.training.saved_member import load_checkpoint as load_checkpoint
