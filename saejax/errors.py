"""The error for invalid input at the library's boundary."""


class InputError(ValueError):
  """Invalid input: the field, its value, the violated rule and the remedy.

  Prints as one line, `field=value: rule; remedy`. Scripts print the same line
  with the flag's name (fields and flags share dotted names) and exit with 2.

  >>> print(InputError("sae.k", 9, "must be at most n=8", "lower --sae.k"))
  sae.k=9: must be at most n=8; lower --sae.k

  Attributes:
    field: dotted name of the setting, e.g. "sae.k".
    value: the invalid value.
    rule: the violated rule.
    remedy: how to correct it.
  """

  def __init__(self, field: str, value: object, rule: str, remedy: str):
    self.field = field
    self.value = value
    self.rule = rule
    self.remedy = remedy
    shown = " ".join(str(value).split())
    if len(shown) > 200:
      shown = shown[:197] + "..."
    super().__init__(" ".join(f"{field}={shown}: {rule}; {remedy}".split()))

  def __reduce__(self):  # the default would call __init__ with the message
    return type(self), (self.field, self.value, self.rule, self.remedy)

  def renamed(self, field: str) -> "InputError":
    """Returns a copy in which the setting has another name.

    Args:
      field: the other name.
    """
    return InputError(field, self.value, self.rule, self.remedy)
