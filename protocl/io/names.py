"""Names of files and folders that more than one room reads or writes."""

from __future__ import annotations

MODEL_FOLDER = "model"
"""In the folder of a run: what it learned."""

WEIGHTS_FILE = "backbone.safetensors"
"""In a model, or the folder of a pretraining: weights of the backbone."""
