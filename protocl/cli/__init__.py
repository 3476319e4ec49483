"""The command ``protocl``."""
