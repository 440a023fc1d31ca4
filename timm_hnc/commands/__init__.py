"""The command lines: flags and YAML files, checked and completed."""
