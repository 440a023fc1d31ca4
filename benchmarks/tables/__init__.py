"""The paper's tables: what is run for them, and what came out."""
