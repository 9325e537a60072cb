"""`python -m lae_fast.view RUN`."""

import sys

from lae_fast.view import main

sys.exit(main())
