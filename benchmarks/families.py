"""Agreement of every family of subject models with transformers, as a table.

  python benchmarks/families.py --write=benchmarks/results/families.json

Needs PyTorch and transformers (`make torch-environment`). For each case of
tests/golden/make_models.py, a small random model, the largest difference over
the largest entry of the same tensor in transformers, float32 on a CPU:

  sites      of all sites, in a batch with padding on either side
  logits     of the output (the last hidden state of an encoder)
  packed     of all sites, in a row of several texts, each run alone there
  scanned    as sites, with the layers scanned, of sites and output

and the root mean square of the difference of outputs from those of transformers
in float32, over that of these outputs, where the model runs in bfloat16:

  bfloat16         of ours
  theirs           of transformers

Exits with 1 where a case is above its bound.
"""

import copy
import dataclasses
import datetime
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from saejax import config, machine
from saejax.models import model as model_lib
from saejax.models import taps

TOLERANCE = 1e-5  # of float32
TIMES_THEIRS = 2.0  # of bfloat16, beside what transformers itself loses
TOKENS, TEXTS = 13, (5, 1, 9, 4)
Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is compared."""

  cases: tuple[str, ...] = ()  # cases of make_models; none: all of them
  write: str = ""  # JSON file to write the rows to


def ours(
  model: model_lib.Model,
  ids: np.ndarray,
  mask: np.ndarray,
  sites: list[str],
  segment: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """The tensors at sites, and the output unless texts are packed.

  Args:
    model: our model.
    ids: token ids.
    mask: which tokens are real.
    sites: names of the sites.
    segment: text of each token, or None.
  """
  given = jnp.asarray(ids), jnp.asarray(mask)
  seen = None if segment is None else jnp.asarray(segment)
  found = taps.read(model, *given, sites, segment=seen)
  if segment is None:
    found = found | {"output": model(*given)}
  return {name: np.asarray(h, np.float32) for name, h in found.items()}


def largest(got: Tensors, want: Tensors, mask: np.ndarray) -> float:
  """The largest difference at real tokens, over the largest entry.

  Args:
    got: our tensors, by site.
    want: those of transformers.
    mask: which tokens are real.
  """
  return max(
    float(np.abs(h[mask] - want[name][mask]).max())
    / float(np.abs(want[name][mask]).max())
    for name, h in got.items()
  )


def packed(model: model_lib.Model, torch_model: Any) -> float:
  """The largest difference of texts in one row from each of them alone.

  Args:
    model: our model.
    torch_model: the model of transformers.
  """
  from tests.golden import make_models

  rng = np.random.default_rng(1)
  texts = [rng.integers(0, model.vocabulary, (1, n)) for n in TEXTS]
  alone = [
    make_models.capture(copy.deepcopy(torch_model), t, np.ones_like(t, bool))
    for t in texts
  ]
  sites = sorted(set(alone[0]) - {"output"})
  want = {s: np.concatenate([a[s] for a in alone], axis=1) for s in sites}
  ids = np.concatenate([*texts, np.zeros((1, 2), int)], axis=1)
  mask = np.arange(ids.shape[1])[None] < sum(TEXTS)
  segment = np.repeat(np.arange(len(TEXTS) + 1), (*TEXTS, 2))[None]
  got = ours(model, ids.astype(np.int32), mask, sites, segment)
  real = {s: h[:, : sum(TEXTS)] for s, h in got.items()}
  return largest(real, want, np.ones((1, sum(TEXTS)), bool))


def in_bfloat16(folder: str, torch_model: Any, batch: tuple) -> tuple:
  """The errors of both models' outputs in bfloat16, over their size.

  Args:
    folder: folder of the model.
    torch_model: the model of transformers, in float32.
    batch: ids and mask.

  Returns:
    (ours, that of transformers).
  """
  import torch

  from tests.golden import make_models

  ids, mask = batch
  want = make_models.capture(torch_model, ids, mask)["output"][mask]
  half = copy.deepcopy(torch_model).to(torch.bfloat16)
  theirs = make_models.capture(half, ids, mask)["output"][mask]
  model = model_lib.load(folder, dtype="bfloat16")
  own = ours(model, ids, mask, [])["output"][mask]
  size = np.sqrt(np.mean(want**2))
  return tuple(
    float(np.sqrt(np.mean((h - want) ** 2)) / size) for h in (own, theirs)
  )


def row(case: str, folder: str) -> dict[str, Any]:
  """The differences of a case.

  Args:
    case: name of the case.
    folder: folder to save the model to.
  """
  from tests.golden import make_models

  torch_model = make_models.build(case)
  torch_model.save_pretrained(folder)
  model = model_lib.load(folder)
  ids, mask = make_models.batch(model.vocabulary, TOKENS)
  want = make_models.capture(torch_model, ids, mask)
  sites = sorted(set(want) - {"output"})
  got = ours(model, ids, mask, sites)
  found = {
    "case": case,
    "family": model.family,
    "sites compared": len(sites),
    "sites": largest({s: got[s] for s in sites}, want, mask),
    "logits": largest({"output": got["output"]}, want, mask),
    "packed": packed(model, torch_model) if model.causal else None,
    "scanned": largest(ours(model.scanned(), ids, mask, sites), want, mask),
  }
  own, theirs = in_bfloat16(folder, torch_model, (ids, mask))
  return found | {"bfloat16": own, "theirs": theirs}


def agrees(found: Mapping[str, Any]) -> bool:
  """Whether every difference of a row is within its bound; NaN is not.

  Args:
    found: result of `row`.
  """
  exact = [found[k] for k in ("sites", "logits", "packed", "scanned")]
  within = all(e <= TOLERANCE for e in exact if e is not None)
  return within and found["bfloat16"] <= TIMES_THEIRS * found["theirs"]


def main(chosen: Config) -> int:
  from tests.golden import make_models

  rows = []
  for case in chosen.cases or make_models.CASES:
    with tempfile.TemporaryDirectory() as folder:
      rows.append(row(case, folder))
    shown = (
      f"{v:.2g}" if isinstance(v, float) else v for v in rows[-1].values()
    )
    print(*shown, "" if agrees(rows[-1]) else "FAILED", flush=True)
  failed = [r["case"] for r in rows if not agrees(r)]
  print(f"{len(failed)} of {len(rows)} cases failed")
  if chosen.write:
    import torch
    import transformers

    versions = {
      "torch": torch.__version__,
      "transformers": transformers.__version__,
    }
    about = {
      "date": datetime.date.today().isoformat(),
      "environment": machine.environment(),
      "versions": versions,
      "tolerance": TOLERANCE,
      "times_theirs": TIMES_THEIRS,
      "rows": rows,
    }
    text = json.dumps(about, indent=1)
    pathlib.Path(chosen.write).write_text(text + "\n")
  return 1 if failed else 0


if __name__ == "__main__":
  config.run(main, Config)
