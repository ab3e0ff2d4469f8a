"""A model that is a function, a corpus of text files, and harvests of them.

Run as a script, it harvests until it is done or killed, and prints a line for
each forward pass:
  python -m tests.data.tiny CORPUS DIR SECONDS_A_FORWARD \\
    [BUCKET_ROWS PROCESS PROCESSES]
"""

import pathlib
import sys
import time

import jax.numpy as jnp
import numpy as np

from saejax.data import harvest
from saejax.data.store import reader, writer
from saejax.data.store.share import Share
from saejax.data.text import subject

CLS, SEP, OUTLIER_ID, USER_ID = 0, 1, 2 + ord("!"), 2 + ord("?")
D = 8


def encode(text: str) -> np.ndarray:
  """Bytes; "<s>" in a text is CLS, as tokenizers do with special tokens."""
  parts = [
    np.frombuffer(part.encode(), np.uint8).astype(np.int32) + 2
    for part in text.split("<s>")
  ]
  for i in range(len(parts) - 1, 0, -1):
    parts.insert(i, np.asarray([CLS], np.int32))
  return np.concatenate(parts)


def vectors() -> np.ndarray:
  """[258, D] a vector a token; "!" is an outlier."""
  found = np.random.default_rng(0).standard_normal((258, D), np.float32)
  found[OUTLIER_ID] *= 100
  return found


def forward(ids: np.ndarray, mask: np.ndarray) -> jnp.ndarray:
  """The token's vector; the first value depends on the whole batch.

  So does the rounding of a real model: a batch of another composition shows.
  """
  x = vectors()[ids]
  x[..., 0] = ((ids * mask).sum() % 251 + ids.shape[1]) / 100
  return jnp.asarray(x)


def told(seconds: float):
  """`forward`, slowed down, that prints a line each time."""

  def slow(ids, mask):
    print("forward", flush=True)
    time.sleep(seconds)
    return forward(ids, mask)

  return slow


def source(function=forward) -> subject.Subject:
  return subject.Subject(
    d=D,
    encode=encode,
    forward=function,
    prefix=(CLS,),
    suffix=(SEP,),
    special=frozenset({CLS, SEP}),
    meta={
      "model": {"name": "tiny", "weights": "0"},
      "site": {"layer": 0, "point": "resid_post"},
    },
  )


def corpus(folder: pathlib.Path, documents: int = 40) -> pathlib.Path:
  """Documents of 0 to 300 characters, with marked ones among them."""
  generator = np.random.default_rng(1)
  folder.mkdir()
  for i in range(documents):
    letters = generator.choice(list("abcdefgh "), i * 300 // documents)
    text = "".join(letters)
    if i % 3 == 0:
      text = text[:20] + "<s>" + text[20:40] + "!?" + text[40:]
    (folder / f"{i}.txt").write_text(text)
  return folder


def config(corpus: pathlib.Path, folder: pathlib.Path, **changes):
  values = {
    "corpus": str(corpus),
    "dir": str(folder),
    "rows": 2_000,
    "held_out_fraction": 0.25,
    "held_out_rows": 400,
    "context": 18,
    "forward_batch": 5,
    "pool_batches": 3,
    "bucket_rows": 512,
    "shard_rows": 256,
    "chunk_rows": 32,
    "calibration_rows": 100,
    "drop_ids": (USER_ID,),
    "dtype": "float32",
  }
  return harvest.HarvestConfig(**(values | changes))


def files(folder: pathlib.Path) -> dict[str, bytes]:
  """All files below a folder, but for times, hosts and versions."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.parent.name != writer.MADE
  }


def everything(found: reader.Store) -> dict[str, np.ndarray]:
  """All columns of a store."""
  x = np.concatenate(found.read_many(found.intervals))
  return {"x": x} | found.whole("doc", "pos", "tok")


if __name__ == "__main__":
  where, folder, seconds, *rest = sys.argv[1:]
  bucket_rows, process, processes = map(int, rest or ("512", "0", "1"))
  harvest.harvest_share(
    config(pathlib.Path(where), pathlib.Path(folder), bucket_rows=bucket_rows),
    share=Share(process, processes),
    source=source(told(float(seconds))),
  )
