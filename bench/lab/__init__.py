"""Scripts that make pairs: the embedded default, and laboratory pairs that take the shapes of large models."""
