"""Configuration groups in YAML, shipped with the package."""
