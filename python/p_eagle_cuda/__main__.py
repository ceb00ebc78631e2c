"""`python -m p_eagle_cuda` is `p-eagle-cuda`."""

import sys

from p_eagle_cuda.cli import main

sys.exit(main())
