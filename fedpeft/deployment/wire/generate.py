"""python -m fedpeft.deployment.wire.generate: the Python code of the .proto (needs `pip install 'fedpeft[dev]'`)."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent.parent
PROTO = "fedpeft/deployment/wire/v2.proto"
GENERATED = ("v2_pb2.py", "v2_pb2.pyi", "v2_pb2_grpc.py")


def generate(target: Path) -> None:
    """Write the generated files to `target`/fedpeft/deployment/wire.

    Raises:
        SystemExit: the compiler is missing or refuses the .proto.
    """
    try:
        from grpc_tools import protoc
    except ImportError:
        raise SystemExit("the proto compiler is missing; pip install 'fedpeft[dev]'") from None
    folder = target / "fedpeft" / "deployment" / "wire"
    folder.mkdir(parents=True, exist_ok=True)
    flags = [f"--{kind}={target}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    if protoc.main(["protoc", f"-I{ROOT}", *flags, PROTO]):
        raise SystemExit(f"{PROTO} can't be compiled")


if __name__ == "__main__":
    generate(ROOT)
    sys.exit()
