"""A generation to look at: what its rounds drafted, verified and accepted, as a page or as a picture."""
