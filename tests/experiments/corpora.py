"""Small folders of texts for scripts."""

import pathlib

from tests import shared


def wikitext(folder: pathlib.Path, count: int = 60) -> pathlib.Path:
  """Files of 400 characters of wikitext."""
  text = shared.path("data/text/wikitext2-valid.txt").read_text()
  return _written(folder, [text[i * 400 :][:400] for i in range(count)])


def stories(folder: pathlib.Path) -> pathlib.Path:
  """Files of three equal sentences, which differ in a number."""
  story = "One day, {} little dogs went to the park to play with a ball. "
  return _written(folder, [story.format(i) * 3 for i in range(40)])


def _written(folder: pathlib.Path, texts: list[str]) -> pathlib.Path:
  (folder / "text").mkdir()
  for i, text in enumerate(texts):
    (folder / "text" / f"{i}.txt").write_text(text)
  return folder / "text"
