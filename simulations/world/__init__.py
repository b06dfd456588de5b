"""The synthetic retail world: products, words, regions and drawn photos."""
