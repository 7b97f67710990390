"""`python -m modeling_tsarank.cli`, for torchrun and accelerate."""

import sys

from . import main


if __name__ == "__main__":
    sys.exit(main())
