"""`python -m prebinder.pod fetch|build|push`."""

from __future__ import annotations

import os
import sys

from prebinder.builders.kubernetes.wire import ORDER, PodOrder, Role
from prebinder.pod import build, fetch, push


def main() -> int:
    role = Role(sys.argv[1])
    order = PodOrder.model_validate_json(os.environ[ORDER])
    match role:
        case Role.FETCH:
            return fetch.main(order)
        case Role.BUILD:
            return build.main(order)
        case Role.PUSH:
            return push.main(order)


if __name__ == "__main__":
    sys.exit(main())
