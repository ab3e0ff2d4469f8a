"""What trained SAEs are worth, each file one question."""
