"""python -m bgkd_megatron.conformance: the command bgkd-conformance."""

from __future__ import annotations

import sys

from bgkd_megatron.conformance.command import main

if __name__ == "__main__":
    sys.exit(main())
