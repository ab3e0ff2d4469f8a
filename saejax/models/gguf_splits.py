r"""How texts are split before bytes are merged, by the name in a GGUF file.

tokenizer.ggml.pre names the vocabulary's split. Each is given as the
pre-tokenizers of the package tokenizers, in order: a list of patterns, whose
matches and the texts between them are separate words, then the bytes of each
word as printable characters. GPT-2's pattern is that of `ByteLevel` itself.

References:
  llama.cpp, src/llama-vocab.cpp (names and patterns). Where it quotes the pattern
  of the original tokenizer.json beside a rewritten one, the original is used.
"""

from typing import Any

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
# Words of at most one change from capitals to small letters.
_CAPITALS, _SMALL = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = (
  rf"[^\r\n\p{{L}}\p{{N}}]?[{_CAPITALS}]*[{_SMALL}]+",
  rf"[^\r\n\p{{L}}\p{{N}}]?[{_CAPITALS}]+[{_SMALL}]*",
)
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

_LLAMA3 = (rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_BLANKS}",)
_QWEN2 = (rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_BLANKS}",)
_TEKKEN = (rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_PATHS}|{_BLANKS}",)
_GPT4O = (
  "|".join(f"{cased}{_CONTRACTION}?" for cased in _CASED)
  + rf"|\p{{N}}{{1,3}}|{_PATHS}|{_BLANKS}",
)
_DEEPSEEK_CODER = (
  r"[\r\n]",
  r"\s?\p{L}+",
  r"\s?\p{P}+",
  "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
  r"\p{N}",
)
_DEEPSEEK3 = (
  r"\p{N}{1,3}",
  "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
  r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
  r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# Name -> patterns. Those of GPT-2's kind also have its own pattern, last.
PATTERNS: dict[str, tuple[str, ...]] = {
  **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _LLAMA3),
  **dict.fromkeys(("dbrx", "smaug-bpe", "pixtral"), _LLAMA3),
  **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
  "stablelm2": _QWEN2,
  "tekken": _TEKKEN,
  **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
  "deepseek-coder": _DEEPSEEK_CODER,
  "deepseek-v3": _DEEPSEEK3,
}
_DIGITS = {"type": "Digits", "individual_digits": True}
GPT2: dict[str, list[dict[str, Any]]] = {
  **{name: [] for name in ("gpt-2", "phi-2", "mpt", "olmo", "modern-bert")},
  **{name: [_DIGITS] for name in ("smollm", "starcoder", "refact")},
  **{name: [_DIGITS] for name in ("command-r", "codeshell")},
}
NAMES = sorted({*PATTERNS, *GPT2})
# Words that are tokens are not made by merges, and BOS comes before each text
# where the file does not say.
WHOLE_WORDS = {
  *(name for name, found in PATTERNS.items() if found is _LLAMA3),
  "tekken",
} - {"dbrx", "smaug-bpe"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def pre_tokenizer(name: str) -> dict[str, Any]:
  """Returns the pre-tokenizer of a tokenizer.json.

  Args:
    name: one of `NAMES`.

  >>> [part["type"] for part in pre_tokenizer("smollm")["pretokenizers"]]
  ['Digits', 'ByteLevel']
  """
  splits = GPT2.get(name)
  if splits is None:
    splits = [
      {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
      }
      for pattern in PATTERNS[name]
    ]
  return {
    "type": "Sequence",
    "pretokenizers": [*splits, BYTES | {"use_regex": name in GPT2}],
  }
