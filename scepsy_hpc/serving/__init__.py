"""The long allocation: node agents, dispatcher, batch runner, ledger."""
