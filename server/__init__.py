"""Headquarters' side: rounds, aggregation, releases. Never imports `client`."""
