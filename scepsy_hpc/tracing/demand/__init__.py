"""What the spans of a workflow say about each of its LLMs."""
