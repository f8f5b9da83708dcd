"""An OpenAI-compatible server over the decoders, and a page to talk to it. README.md is for the person who runs it."""
