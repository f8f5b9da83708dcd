"""Scripts that make the embedded default: data, target, on-policy text, draft head."""
