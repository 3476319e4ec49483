"""Speed and robustness of the federation, measured."""
