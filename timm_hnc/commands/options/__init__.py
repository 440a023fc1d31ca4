"""Flags and YAML files to options."""
