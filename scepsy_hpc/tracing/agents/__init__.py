"""How agents are run: Python functions in long-lived workers, commands once a task."""
