"""Importers: real catalogs and the synthetic world, all brought to one form (`source.Source`)."""
