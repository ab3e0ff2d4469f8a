"""Training methods as compositions of parts, one short function a paper."""
