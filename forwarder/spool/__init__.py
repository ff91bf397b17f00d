"""The durable queue between polls and sinks. `base` is the contract; it has no word of any engine."""
