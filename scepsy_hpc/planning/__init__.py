"""Pure computation over files: curves, the Aggregate LLM Pipeline, search, placement."""
