"""Speed of protocl beside Avalanche's own code, for ``protocl bench``."""
