"""What the experiments compute and say beyond a single grid of SAEs."""
