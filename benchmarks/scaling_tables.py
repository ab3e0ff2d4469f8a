"""The tables that benchmarks/README.md has of scaling_efficiency.py, by rows."""

from collections.abc import Mapping
from typing import Any

Rows = list[dict[str, Any]]


def tables(result: Mapping[str, Any]) -> tuple[Rows, Rows, Rows]:
  """Rows of values by mesh, of exchanges and of processes.

  Args:
    result: what the script has written.
  """
  return _values(result), _exchanges(result), _processes(result)


def _values(result: Mapping[str, Any]) -> Rows:
  values = []
  for case, own in result.get("values", {}).items():
    all_ = list(own.values())
    worst = lambda name, all_=all_: max(each[name] for each in all_)
    total = lambda name, all_=all_: sum(each[name] for each in all_)
    noise = [each["noise"]["weights"] for each in all_ if each["noise"]]
    row: dict[str, Any] = {"case": case}
    row |= {
      mesh: f"{own[mesh]['weights']:.0e}" if mesh in own else None
      for mesh in result["meshes"]
    }
    row |= {
      "one device, moved rows": f"{max(noise):.0e}" if noise else None,
      "metrics": f"{worst('metrics'):.0e}",
      "equal starts": all(each["start"] for each in all_),
      "equal dead": all(each["dead"] for each in all_),
      "dead": round(worst("died")),
      "active": total("active"),
      "differ": total("own"),
      "far": total("far"),
    }
    values.append(row)
  return values


def _exchanges(result: Mapping[str, Any]) -> Rows:
  exchanges = []
  for row in result.get("exchanges", []):
    found = [
      f"{kind} {shape}"
      for kind, shapes in row["activations"].items()
      for shape in shapes
    ]
    exchanges.append(
      {
        "method": row["method"],
        "engine": row["engine"],
        "AuxK": row["aux"],
        "activations": "; ".join(found),
        "KB": round(row["activation_bytes"] / 1e3),
        "least, KB": round(row["least"] / 1e3),
        "others": len(row["others"]),
        "others, KB": round(row["other_bytes"] / 1e3),
        "largest other, KB": round(row["largest_other"] / 1e3),
      }
    )
  return exchanges


def _processes(result: Mapping[str, Any]) -> Rows:
  return [
    {
      "method": row["recipe"],
      "processes": row["processes"],
      "mesh": ",".join(map(str, row["mesh"])),
      "SAEs": row["saes"],
      "from one process": row["same_mesh"],
      "from one device": row["one_device"],
    }
    for row in result.get("processes", [])
  ]
