"""``python -m pyllamafile``."""

from __future__ import annotations

from pyllamafile_start import main

if __name__ == "__main__":
    main()
