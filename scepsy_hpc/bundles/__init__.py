"""What an engine can do: profile bundles, look-up, import, and the fitted engine model."""
