"""What every part of fedshelf shares: words, wire format, encoders, losses, metrics, retrieval.

Imports nothing from `client`, `server` or `simulations`.
"""
