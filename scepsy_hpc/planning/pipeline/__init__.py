"""The Aggregate LLM Pipeline: what an allocation reaches."""
