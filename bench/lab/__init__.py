"""Scripts that make pairs: the embedded default, and laboratory pairs that are widened to the shapes of large models."""
