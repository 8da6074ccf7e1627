"""The recording proxy: an OpenAI-compatible server between agents and engines."""
