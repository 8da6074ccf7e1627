"""What a workflow does: spans, the proxy that records them, and the demand they show."""
