"""Check methods and hyper-parameters before anything else runs, and write what they come to with the preset filled in.

python -m workflow.settings '{"a": {"method": "moe_retriever", "preset": "paper", "overrides": {"epochs": 5}}}'
"""

from __future__ import annotations

import json
import sys

from model.config import make_config
from model.methods import get
from mrpipe.errors import UsageError


def main(asked: str) -> int:
    """Print the settings of each label as JSON; exit code 2 with every fault if there is one."""
    settings, faults = {}, []
    for label, entry in json.loads(asked).items():
        try:
            config = make_config(get(entry["method"]), preset=entry["preset"], seed=0, overrides=entry["overrides"])
            settings[label] = {k: v for k, v in config.to_dict().items() if k != "seed"}
        except UsageError as error:
            faults.append(str(error))
    if faults:
        print("\n".join(dict.fromkeys(faults)), file=sys.stderr)
        return UsageError.exit_code
    print(json.dumps(settings, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
