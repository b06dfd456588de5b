"""Procedural product photos: outlines of product types, textures, light and backdrops."""
