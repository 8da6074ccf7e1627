"""An OpenAI-compatible server that computes nothing; its timing follows a profile bundle."""
