"""What texts with a target share: hypotheses from an SAE of their embeddings."""

from saejax import command

if __name__ == "__main__":
  command.run("hypotheses")
