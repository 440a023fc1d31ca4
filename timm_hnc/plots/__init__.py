"""Pictures of class activation maps."""
