"""A store as HTML, for notebooks."""

from typing import Any

from saejax import notebook


def html(store: Any) -> str:
  """Rows, columns, origin and dropped rows.

  Args:
    store: the store.
  """
  dropped = [f"{rule} {n:,}" for rule, n in store.stats["dropped"].items() if n]
  origin = ("model", "site", "split", "corpus")
  head = notebook.facts(
    f"Store {store.place.name}",
    {
      "place": store.place,
      "rows": store.rows,
      "d": store.d,
      **{name: notebook.short(store.meta.get(name) or "") for name in origin},
      "dropped": ", ".join(dropped) or "none",
      "content": store.content,
    },
  )
  columns = [
    (name, c.dtype, "".join(f"[{n}]" for n in c.shape), c.about)
    for name, c in store.columns.items()
  ]
  names = ("column", "dtype", "shape of a row", "about")
  return head + notebook.table("Columns", names, columns)
