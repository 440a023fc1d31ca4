"""The kinds of heads, and how one is recognised and detached."""
