#!/usr/bin/env python3
"""Write what serving/_pb holds of open_inference.proto: its descriptors, and their types for type checkers.

No message classes are generated: generated ones register in protobuf's default pool, where every other package that
speaks this protocol claims the same names and the second import fails. serving/_pb builds them in a pool of its own.
"""

import sys
from pathlib import Path

from grpc_tools import protoc

__all__ = ["generate"]

_HERE = Path(__file__).resolve().parent
_PROTO = "open_inference.proto"


def generate(target: Path) -> None:
    """Write open_inference.binpb and open_inference_pb2.pyi into a folder.

    Raises:
        SystemExit: protoc refuses the file; it has said why.
    """
    descriptors = target / "open_inference.binpb"
    arguments = [f"-I{_HERE}", f"--descriptor_set_out={descriptors}", f"--pyi_out={target}", _PROTO]
    if status := protoc.main(["protoc", *arguments]):
        sys.exit(status)


if __name__ == "__main__":
    generate(_HERE.parent / "serving" / "_pb")
