"""Writes docs/methods.md from finished runs of architectures.py and claims.py.

    python benchmarks/methods.py --architectures=runs/architectures \\
      --claims=runs/claims

The part of their results.json that the page shows is stored in
benchmarks/results/methods.json; without a run folder, stored results are kept.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from saejax import config, durable
from saejax.errors import InputError
from saejax.studies import short_runs
from saejax.studies.claims import claim, training

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "methods.json"
PAGE = ROOT / "docs" / "methods.md"
SETTINGS = ("steps", "batch_rows", "learning_rate")
# Methods whose loss sums squares over d. In runs before gradients were divided by
# their norm for all methods, theirs were, by a limit of 1; others' were not.
SUMMED = frozenset(
  (
    "abstopk",
    "atm",
    "batchtopk",
    "feature_choice",
    "feature_choice_zipf",
    "gated",
    "gba",
    "gemma_scope",
    "jumprelu_l0",
    "jumprelu_target",
    "k_sparse",
    "matryoshka",
    "mc_then_fc",
    "mutual_choice_zipf",
    "ortsae",
    "ra_sae",
    "relu_l1",
    "topafa",
    "topk_l2",
    "vsae",
  )
)
# Methods that end in an estimated threshold.
ESTIMATED = frozenset(
  (
    "batchtopk",
    "feature_choice",
    "llama_scope",
    "matryoshka",
    "mc_then_fc",
    "ortsae",
  )
)
ARTEFACT = 0.06  # of log FVU: the 5 % below, and a margin
UNALIKE = (
  " They precede the division of all gradients by their norm: only those of the "
  "methods marked ², whose loss sums squares over d, were in effect divided, which "
  "lowers the FVU by up to 5 %. Differences of less than that between methods "
  "marked and not marked cannot be judged. They precede AuxK's present defaults too."
)
# Papers of variants that differ from their recipe's.
PAPERS = {"mutual_choice_zipf": "2411.02124"}
MACHINE = ("cpu", "cores", "device_kind", "python", "jax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Folders of the runs."""

  architectures: str = ""  # run folder; empty keeps the stored results
  claims: str = ""  # run folder; empty keeps the stored results


def read(folder: str, field: str, wanted: str) -> dict[str, Any]:
  """Reads the part of a run's results that is published."""
  path = pathlib.Path(folder) / "results.json"
  try:
    found = json.loads(path.read_text())
    records = found[wanted]
  except (OSError, KeyError) as e:
    raise InputError(
      field, folder, f"has no results.json with {wanted!r}", "finish that run"
    ) from e
  of = found["config"].get("first", found["config"])
  return {
    wanted: records,
    "k": of["k"],
    "n": [of["n"]] if "n" in of else sorted({p["n"] for p in found["points"]}),
    "study": {
      **{name: of["train"][name] for name in SETTINGS},
      "seeds": found["config"]["seeds"],
      "clip_norm": of["train"]["clip_norm"] or "unit",
    },
    "planted": {
      name: value
      for name, value in found["config"]
      .get("planted", {"train": {}})["train"]
      .items()
      if name in SETTINGS
    },
    "sites": {
      site: {
        "rows": about["train_rows"],
        "held_out": about["held_out_rows"],
        "commit": found["environment"]["commit"],
      }
      for site, about in found["data"].items()
      if "train_rows" in about  # a group of several has none of its own
    },
    "machine": {name: found["environment"][name] for name in MACHINE},
  }


def with_sites(
  stored: Mapping[str, Any], run: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns a run's results, beside stored ones of sites that it lacks.

  Raises:
    InputError: the stored results have other settings.
  """
  for name in ("k", "n", "study"):
    if stored and stored[name] != run[name]:
      rule = f"must have the {name} of the stored results, {stored[name]}"
      raise InputError(
        "architectures", run[name], rule, "remove the stored file"
      )
  kept = [s for s in stored.get("summary", ()) if s["site"] not in run["sites"]]
  sites = {**stored.get("sites", {}), **run["sites"]}
  return {**run, "summary": [*run["summary"], *kept], "sites": sites}


def older(of: Mapping[str, Any]) -> str:
  """Says which sites were measured before results had a commit."""
  sites = [name for name, site in of["sites"].items() if "commit" not in site]
  if not sites:
    return ""
  where = "" if len(sites) == len(of["sites"]) else f" on {'; '.join(sites)}"
  return (
    f" The measurements{where} precede three changes: thresholds are now estimated "
    "from rows, all dead latents are revived, and AuxK's defaults are others."
  )


def alike(of: Mapping[str, Any]) -> bool:
  """Whether the gradients of all methods were divided by their norm."""
  return of["study"].get("clip_norm") == "unit"


def number(value: float | None, form: str = ".3f") -> str:
  """Formats a cell; a dash where nothing was measured."""
  return "–" if value is None else format(value, form)


def table(head: list[str], lines: list[list[str]]) -> str:
  """Formats a Markdown table."""
  rows = [head, ["---"] * len(head), *lines]
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def about(of: Mapping[str, Any]) -> str:
  """Describes the settings of a run."""
  study, sites = of["study"], of["sites"]
  rows = "; ".join(f"{name} ({s['rows']:,} rows)" for name, s in sites.items())
  return (
    f"{rows}. Every SAE was trained on {study['steps']} batches of "
    f"{study['batch_rows']} rows; {study['seeds']} seeds; "
    f"n {', '.join(map(str, of['n']))}; k {', '.join(map(str, of['k']))}; peak "
    f"learning rate {study['learning_rate']:g}. "
    f"{of['machine']['cpu']}, "
    f"{of['machine']['cores']} cores, jax {of['machine']['jax']}."
  )


def methods_table(of: Mapping[str, Any]) -> str:
  """Formats one line per method: FVU relative to TopK per site, and cost."""
  sites = list(of["sites"])
  at = {(s["site"], s["method"]): s for s in of["summary"]}
  lines = []
  for method in dict.fromkeys(s["method"] for s in of["summary"]):
    first = at[sites[0], method]
    cells = []
    for site in sites:
      s = at[site, method]
      ratio, sd = s["log_ratio"], s["log_ratio_sd"]
      cell = "–"
      if ratio is not None:
        cell = f"{math.exp(ratio):.3f} ± {sd:.3f}"
        cell += " ¹" if s["settings"] == 1 else ""
      cells.append(cell)
      cells.append(number(s["dead"]))
    cost = [first["over_parameters"], first["over_flops"]]
    paper = PAPERS.get(method, short_runs.VARIANTS[method].method.paper)
    cells += [number(value, ".2f") for value in cost]
    name = method if alike(of) or method not in SUMMED else f"{method} ²"
    lines.append([name, paper, *cells])
  head = ["method", "arXiv"]
  head += [name for site in sites for name in (site, "dead")]
  return table([*head, "parameters", "FLOPs to encode"], lines)


def claims_table(of: Mapping[str, Any]) -> str:
  """Formats one line per claim, with margins and reservations of the table."""
  known = {(c.recipe, c.claim): c for c in training.CLAIMS}
  sizes = claim.Sizes(n=of["n"][0], k=tuple(of["k"]))
  known |= {(c.recipe, claim.worded(c.claim, sizes)): c for c in known.values()}
  lines = []
  for c in of["claims"]:
    low, high = c["interval"] or (None, None)
    row = known[c["recipe"], c["claim"]]
    margin = row.measure.margin if row.margin is None else row.margin
    reservation = row.reservation or _outdated(of, c)
    lines.append(
      [
        f"{c['recipe']}: {c['claim']}",
        c["paper"],
        c["data"],
        number(c["effect"]),
        f"[{number(low)}, {number(high)}]",
        f"{margin:g}",
        f"{claim.NOT_JUDGED}: {reservation}" if reservation else c["verdict"],
      ]
    )
  head = ["claim", "arXiv", "data", "effect", "95 %", "margin", "verdict"]
  return table(head, lines)


def _beyond(record: Mapping[str, Any], size: float) -> bool:
  """Whether the whole interval of a log FVU is farther from 0 than a size."""
  low, high = record["interval"] or (0.0, 0.0)
  return (
    "log FVU" in record["unit"]
    and low * high > 0
    and (min(abs(low), abs(high)) > size)
  )


def _outdated(of: Mapping[str, Any], record: Mapping[str, Any]) -> str:
  """Returns why an older run cannot judge a claim; "" if it can."""
  arms = [set(record[arm].split()) for arm in ("method", "against")]
  unlike = len({bool(SUMMED & words) for words in arms}) == 2
  if unlike and not alike(of) and not _beyond(record, ARTEFACT):
    return "measured when gradients were normalised for one of the two alone"
  if not older(of):
    return ""
  if "AuxK" in record["claim"]:
    return "measured before all dead latents were revived"
  if record["recipe"] in ESTIMATED:
    return "measured before thresholds were estimated from rows"
  return ""


def text(found: Mapping[str, Any]) -> str:
  """Returns the page."""
  parts = ["# Methods, measured\n"]
  if "architectures" in found:
    of = found["architectures"]
    parts.append(
      "## Every method against TopK\n\n"
      "The table has the ratio of held-out FVU to that of TopK at equal "
      "held-out L0 (geometric mean over a method's settings within TopK's range "
      "of L0, ± the standard deviation of its logarithm over seeds), and the share of "
      "dead latents at these settings; a dash means that no setting was within "
      "the range. Parameters and FLOPs are relative to TopK's. RA-SAE is "
      "initialised at centroids of the data, all others at random. All methods "
      "have the same learning rate schedule, so Gemma Scope and Llama Scope are "
      "without their own.\n\n"
      "These are short runs of small SAEs, which compare the beginning of "
      "training. They do not show how the methods compare at the sizes and "
      f"budgets of their papers.{older(of)}{'' if alike(of) else UNALIKE}\n\n"
      f"{about(of)}\n\n{methods_table(of)}\n\n"
      "Command: `python experiments/architectures.py "
      "--flagfile=experiments/flags/architectures.flags`, with the other sites "
      "in `--more_sites`.\n\n"
      "¹ Only one setting is within TopK's range.\n"
    )
  if "claims" in found:
    of = found["claims"]
    parts.append(
      "## Claims of the papers\n\n"
      "Effects are paired over seeds. A claim holds if the whole 95 % interval "
      "is beyond the margin on the paper's side, does not hold if the interval "
      "is on the other side of the margin, and is undecided otherwise. Effects "
      "are differences of log FVU at equal held-out L0 unless the claim is "
      "about another quantity. Claims that the experiment cannot test have no "
      f"verdict.{older(of)}\n\n"
      f"{about(of)} On planted rows, and for claims about layers or the model's "
      f"own text, {of['planted']['steps']} batches.\n\n{claims_table(of)}\n\n"
      "Command: `python experiments/claims.py "
      "--flagfile=experiments/flags/claims.flags --causal=babyllama-105`.\n"
    )
  return "\n".join(parts)


def main(config: Config) -> None:
  found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  if config.architectures:
    run = read(config.architectures, "architectures", "summary")
    found["architectures"] = with_sites(found.get("architectures", {}), run)
  if config.claims:
    found["claims"] = read(config.claims, "claims", "claims")
  durable.write_file(RESULTS, (json.dumps(found, indent=1) + "\n").encode())
  durable.write_file(PAGE, text(found).encode())


if __name__ == "__main__":
  config.run(main, Config)
