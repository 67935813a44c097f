"""`python -m rlhf_kit` is `rlhf-kit`."""

import sys

from rlhf_kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
