"""A tokenizer whose words are known, without files."""

import tokenizers

from saejax.models import tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(pieces, *, prefix=(), drops_first_blank=False) -> tokenizer.Tokenizer:
  """Each piece is a token, and so is every other character.

  Args:
    pieces: texts of tokens.
    prefix: ids that are added before a text.
    drops_first_blank: whether the decoder drops the first blank of a text.
  """
  characters = ["<unk>", "<s>", *"\n :.'", *LETTERS, *LETTERS.upper()]
  answers = [f" {letter}" for letter in LETTERS.upper()]
  vocabulary = [(c, -20.0) for c in characters]
  vocabulary += [(piece, -1.0) for piece in [*answers, *pieces]]
  backend = tokenizers.Tokenizer(
    tokenizers.models.Unigram(vocabulary, unk_id=0)
  )
  backend.add_special_tokens(["<unk>", "<s>"])
  parts = [tokenizers.decoders.Fuse()]
  if drops_first_blank:
    parts.append(tokenizers.decoders.Strip(" ", 1, 0))
  backend.decoder = tokenizers.decoders.Sequence(parts)
  return tokenizer.Tokenizer(
    backend,
    None,
    None,
    None,
    None,
    None,
    frozenset({0, 1}),
    prefix,
    (),
    len(vocabulary),
  )
