"""Entry point of `python -m mrpipe`, equivalent to the command `mrpipe`."""

import sys

from mrpipe.cli.main import main

sys.exit(main())
