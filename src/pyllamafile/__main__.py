"""``python -m pyllamafile``, and the console script of the same name."""

from __future__ import annotations

from pyllamafile.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
