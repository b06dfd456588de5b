"""Finding products: the vector index, the lexical index, and what they look like on disk."""
