"""Destinations. One module per backend; `base` is the contract. Sinks do not import each other."""
