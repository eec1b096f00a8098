"""The words of a pipeline file, one module per noun; spec.py puts them together."""
