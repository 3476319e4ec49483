"""The command ``protocl federate``."""
