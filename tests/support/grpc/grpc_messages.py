"""Messages of gRPC from their definition as text, beside those that the product has compiled from its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def messages(proto: str) -> Callable[[str], Any]:
    """Return what finds the class of a message by its full name, among those that *proto* defines."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # noqa: PLC0415
    from grpc_tools import protoc  # noqa: PLC0415  # together 5 MB, for the few tests that need them

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "api.proto").write_text(proto)
        assert not protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={folder}/set", "api.proto"])
        described = descriptor_pb2.FileDescriptorSet.FromString((Path(folder) / "set").read_bytes())
    pool = descriptor_pool.DescriptorPool()  # a separate pool: the default one has the same names already
    for file in described.file:
        pool.Add(file)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
