"""Claims of papers as tables, measured over paired seeds."""
