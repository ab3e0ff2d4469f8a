"""Group Bias Adaptation on planted dictionaries and on real activations."""

from saejax import command

if __name__ == "__main__":
  command.run("bias_adaptation")
