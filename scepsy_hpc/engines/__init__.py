"""How one LLM instance is started, found ready, measured and stopped."""
