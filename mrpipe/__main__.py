"""`python -m mrpipe`: the same as `mrpipe`."""

import sys

from mrpipe.cli import main

sys.exit(main())
