"""Answers as values with units, and as files: a module for each form, with `encode(answer, photo)` giving its bytes."""
