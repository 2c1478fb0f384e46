"""Importing this puts the checkout that the tools lie in on the path, so that they run without an installation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
