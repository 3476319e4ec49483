"""A federation that ``flwr run`` starts: edit ``task.py``, leave the other two as they are."""
