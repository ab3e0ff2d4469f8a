"""Writes the tables of benchmarks/README.md from the files in results/.

  python benchmarks/readme.py

Each pair of markers names files and how they are shown:

  <!-- table: step-cpu*.json -->
  <!-- end -->

What lies between is replaced by the tables of all files that match, or by a line
that says that nothing has been measured.
"""

import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks import scaling_tables

HERE = pathlib.Path(__file__).parent
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
MISSING = "Not measured yet.\n"


def table(rows: Iterable[Mapping[str, Any]]) -> str:
  """A Markdown table with a column for each key of the rows.

  Args:
    rows: cells by column; absent ones are left blank.
  """
  rows = list(rows)
  columns = list(dict.fromkeys(name for row in rows for name in row))
  lines = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
  lines += [[cell(row.get(name)) for name in columns] for row in rows]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(value: Any) -> str:
  """A value as text.

  Args:
    value: number, text, list or None.
  """
  if value is None or value == []:
    return ""
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, float):
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}" if abs(value) >= 1 else f"{value:.3g}"
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, list):
    return ", ".join(map(cell, value))
  return str(value)


def around(result: Mapping[str, Any]) -> str:
  """Hardware, versions and date, as far as a file has them.

  Args:
    result: what a file holds.
  """
  keys = ("device", "hardware", "machine", "environment", "versions")
  found: dict[str, str] = {}
  for part in (result.get(key) for key in keys):
    if isinstance(part, str):
      found[part] = part
    elif isinstance(part, Mapping):
      for name, value in part.items():
        if name in ("cpu", "device", "device_kind") and value:
          found[str(value)] = str(value)
        elif name == "cores":
          found[name] = f"{value} cores"
        elif name in VERSIONS and value:
          found[name] = f"{name} {value}"
  for version in (result.get("jax"), result.get("sizes", {}).get("jax")):
    if isinstance(version, str):
      found["jax"] = f"jax {version}"
  if "date" in result:
    found["date"] = result["date"]
  return ", ".join(found.values())


VERSIONS = (
  "python", "jax", "jaxlib", "libtpu", "torch", "transformers", "sae_lens",
  "dictionary_learning", "sparsify", "jax-cuda12-plugin",
)  # fmt: skip


def step_cpu(result: dict[str, Any]) -> str:
  """Times of step.py, one table per size and recipe."""
  parts = []
  for each in result.get("results", [result]):
    ours, low_high = each["engine"], each["quartiles"]["ms"]
    what = " ".join(f"{k} {v:,}" for k, v in each["sizes"].items())
    share = each["ratio_floor"]
    method = each.get("method", "topk")
    peak = each.get("peak_bytes", {})
    parts.append(
      f"{method}, {what}, {each['dtype']}: {share:.0%} of the floor's speed,"
      f" {each['tokens_per_second']:,} tokens per second.\n\n"
    )
    parts[-1] += table(
      {
        "contender": name,
        "ms": ms,
        "quartiles": " to ".join(map(cell, low_high[name])),
        "times ours": ms / each["ms"][ours],
        **({"peak, MB": round(peak[name] / 2**20)} if peak else {}),
      }
      for name, ms in each["ms"].items()
    )
  return "\n".join(parts)


def startup(result: dict[str, Any]) -> str:
  """Seconds of a user's first lines."""
  return table(
    {
      "program": name,
      "seconds": row["seconds"],
      "times the first": row["ratio"],
    }
    for name, row in result.items()
    if isinstance(row, dict) and "ratio" in row
  )


def bundles(result: dict[str, Any]) -> str:
  """Instruction bundles by chip and kernel: the budget."""
  return table(
    {"chip": chip, "body": kernel, **row}
    for chip, kernels in result["chips"].items()
    for kernel, row in kernels.items()
  )


def tpu_steps(result: dict[str, Any]) -> str:
  """Steps compiled for TPUs: memory of a chip, and exchanges of activations."""
  made = []
  for step in result["steps"]:
    found = step["activations"]
    row = {
      "recipe": step["recipe"],
      "chips": step["topology"],
      "compiling, processor s": step["processor_seconds"],
      "temporaries, GB": step["temporary_bytes"] / 1e9,
      "Pallas calls": step["kernel_calls"],
    }
    for branch, kinds in found.items():
      each = [
        f"{kind} {shape}" for kind, all_ in kinds.items() for shape in all_
      ]
      row[f"activations exchanged, {branch}"] = "; ".join(each)
    made.append(row)
  return table(made)


def plans(result: dict[str, Any]) -> str:
  """What each case needs and takes, by its slice and mesh."""
  made = []
  for case in result["cases"].values():
    if "memory" not in case:
      made.append({"slice": case["topology"], "refused": case["refused"]})
      continue
    memory, seconds = case["memory"], case["seconds"]
    links = max(each["on_links"] for each in case["collectives"].values())
    made.append(
      {
        "slice": case["topology"],
        "n": f"{case['n']:,}",
        "d": f"{case['d']:,}",
        "rows a step": case["batch_rows"],
        "parts": case.get("accumulate", 1),
        "data x latent": "x".join(map(str, case["mesh"][1:])),
        "arguments, GB": memory["arguments"] / 1e9,
        "temporaries, GB": memory["temporaries"] / 1e9,
        "of the memory": memory["total"] / memory["limit"],
        "over links, GB": links / 1e9,
        "floor, ms": seconds["step"] * 1e3,
        "bound": case["bound"],
        "chip-hours": case["run"]["chip_hours"],
        "compiling, s": case["compile_seconds"],
        "refused": None,
      }
    )
  return table(made)


def agreement(result: dict[str, Any]) -> str:
  """The largest difference of each cell as a share of what is allowed."""
  allowed = result["tolerances"]
  columns = dict.fromkeys(c for own in result["cells"].values() for c in own)
  made = []
  for method, own in result["cells"].items():
    row: dict[str, Any] = {"method": method}
    for cell_ in columns:
      worst = [v / allowed[k] for k, v in own.get(cell_, {}).items()]
      row[cell_] = f"{max(worst):.2f}" if worst else None
    made.append(row)
  return table(made)


def scaling(result: dict[str, Any]) -> str:
  """Values by mesh, exchanges and processes of scaling_efficiency.py."""
  return "\n".join(map(table, scaling_tables.tables(result)))


def gpu_compile(result: dict[str, Any]) -> str:
  """What the compiled GPU step holds, in GB."""
  return table(
    {
      "size": row["size"],
      "engine": row["engine"],
      "AuxK": row["aux"],
      "state, GB": row["arguments"] / 1e9,
      "temporaries, GB": row["temporaries"] / 1e9,
      "peak, GB": row["peak"] / 1e9,
      "fits": row["fits"],
      "sorts": len(row["sorts"]),
      "[B, k, d] arrays": len(row["gathered"]),
      "compare-and-swap": row["compare_and_swap"],
      "launches": row["launches"],
    }
    for row in result["programs"]
  )


def outcome(result: dict[str, Any]) -> str:
  """Means over seeds of outcome.py, a row per setting."""
  keys = ("site", "n", "k", "library", "batch_rows", "rate", "passes")
  found: dict[tuple, list[dict[str, Any]]] = {}
  for run in result["runs"]:
    found.setdefault(tuple(run[key] for key in keys), []).append(run)
  made = []
  for setting, runs in found.items():
    row = dict(zip(keys, setting, strict=True))
    done = [run for run in runs if "fvu" in run]
    mean = lambda key, done=done: sum(r[key] for r in done) / len(done)
    row |= {name: row[name] or "default" for name in ("batch_rows", "rate")}
    row |= {"seeds": len(done), "FVU": f"{mean('fvu'):.4f}" if done else None}
    if done:
      row |= {"dead": f"{mean('dead'):.1%}", "seconds": mean("seconds")}
    made.append(row | {"note": runs[0].get("error")})
  return table(made)


def step_gpu(result: dict[str, Any]) -> str:
  """Times of step_gpu.py, a row per size and contender."""
  rows = []
  for size, cases in result["cases"].items():
    figures = result["figures"][size]
    for name, case in cases.items():
      peak = case.get("peak_bytes")
      rows.append(
        {
          "size": size,
          "contender": name,
          "ms": figures.get("floor_ms") if name == "floor" else case.get("ms"),
          "tokens per second": figures["tokens_per_second"].get(name),
          "of the floor": figures.get("of_floor", {}).get(name),
          "peak, GB": peak / 1e9 if peak else None,
          "note": case.get("error"),
        }
      )
  return table(rows)


def core(result: dict[str, Any]) -> str:
  """The table of core_smollm2.py, with intervals."""
  made = []
  for row in result["rows"]:
    shown: dict[str, Any] = {"in place of the site": row["edit"]}
    shown["L0"] = row.get("l0")
    shown["alive"] = f"{row['alive']:.0%}" if "alive" in row else None
    shown["FVU"] = f"{row['fvu']:.3f}"
    for name, title in (("ce", "CE"), ("kl", "KL")):
      shown[f"{title}, nats"] = f"{row[name]:.3f}"
      text = f"{row[f'{name}_recovered']:.1%}"
      if ends := row.get(f"{name}_recovered_interval"):
        text += f" ({ends[0]:.1%} to {ends[1]:.1%})"
      shown[f"{title} recovered"] = text
    made.append(shown)
  read = f"{result['tokens']:,} tokens of {result['documents']} documents"
  return (
    f"{read}; the model's own CE is {result['clean']:.3f}.\n\n{table(made)}"
  )


def core_speed(result: dict[str, Any]) -> str:
  """The times of core_speed.py, a row per layer."""
  return table(
    {
      "layer": row["layer"],
      "passes": row["passes"],
      "whole, s": row["whole"]["seconds"],
      "parts, s": row["parts"]["seconds"],
      "times": row["whole"]["seconds"] / row["parts"]["seconds"],
      "whole, first, s": row["whole"]["first"],
      "parts, first, s": row["parts"]["first"],
      "difference": f"{row['difference']:.1e}",
    }
    for row in result["layers"]
  )


def memory_options(result: dict[str, Any]) -> str:
  """A row per option of memory_options.py."""
  return table(result["options"])


def rows(result: dict[str, Any]) -> str:
  """Every list of rows in a file, with the columns that are no lists."""
  lists = [
    [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in value]
    for value in result.values()
    if isinstance(value, list) and value and isinstance(value[0], dict)
  ]
  return "\n".join(map(table, lists)) or MISSING


SHOWN: dict[str, Callable[[dict[str, Any]], str]] = {
  "step-cpu*.json": step_cpu,
  "startup*.json": startup,
  "tpu-bundles.json": bundles,
  "tpu-steps.json": tpu_steps,
  "plans.json": plans,
  "agreement.json": agreement,
  "scaling-efficiency.json": scaling,
  "core-smollm2.json": core,
  "core-speed-cpu*.json": core_speed,
  "gpu-compile.json": gpu_compile,
  "memory-options.json": memory_options,
  "outcome*.json": outcome,
  "step-gpu*.json": step_gpu,
}  # others: `rows`


def tables(pattern: str, results: pathlib.Path) -> str:
  """The tables of all files of a pattern.

  Args:
    pattern: names of files, as of `glob`.
    results: the folder of the files.
  """
  parts = []
  for path in sorted(results.glob(pattern)):
    result = json.loads(path.read_text())
    name = f"[{path.name}](results/{path.name})"
    text = SHOWN.get(pattern, rows)(result)
    parts.append(f"{name}: {around(result) or 'no hardware stated'}.\n\n{text}")
  return "\n".join(parts) or MISSING


def written(text: str, results: pathlib.Path) -> str:
  """The README with its tables written anew.

  Args:
    text: the README.
    results: the folder of the files.
  """

  def replaced(found: re.Match) -> str:
    return f"{found[1]}\n{tables(found[2], results)}\n{found[3]}"

  return MARKED.sub(replaced, text)


def main() -> None:
  path = HERE / "README.md"
  path.write_text(written(path.read_text(), HERE / "results"))


if __name__ == "__main__":
  main()
