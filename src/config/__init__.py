"""The settings of a run: their schema, and reading them from YAML and the command line."""
