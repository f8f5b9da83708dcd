"""From a model to a faster model: what `radar fit` does, stage by stage."""
