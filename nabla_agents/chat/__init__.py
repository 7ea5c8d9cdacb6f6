"""Chat: a model family's dialect, in both directions: templates, grammars, and what a completion's text says."""
