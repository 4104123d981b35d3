"""`python -m mrpipe`: the same as `mrpipe`."""

import sys

from mrpipe.cli.main import main

sys.exit(main())
