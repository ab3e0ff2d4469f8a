"""Run folders, the grid of SAEs trained in one, and what they need."""
