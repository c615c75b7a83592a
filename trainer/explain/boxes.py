"""Where the objects of a sample lie, for datasets that know it: ``boxes`` in KEY.json beside the image."""

from __future__ import annotations

import json

from sharding import storage
from sharding.index import SplitIndex
from sharding.tar import BLOCK

#: Bytes searched before the image; what lies behind it is found exactly.
_BEFORE = 1 << 16

#: Class number → boxes [x, y, width, height] in pixels of the image.
Boxes = dict[int, list[list[float]]]


def read_boxes(index: SplitIndex, i: int) -> Boxes:
    """Return the boxes of sample ``i`` by class number; empty where none are known, or of no use.

    Boxes are in pixels of the original image, so they are of no use when the build re-encoded images at another size.
    """
    if index.dataset.built.get("image", {}).get("mode", "original") != "original":
        return {}
    try:
        content = json.loads(_sidecar(index, i) or b"{}")
    except json.JSONDecodeError:
        return {}
    found = content.get("boxes") if isinstance(content, dict) else None
    return {int(number): boxes for number, boxes in found.items()} if isinstance(found, dict) else {}


def _sidecar(index: SplitIndex, i: int) -> bytes | None:
    """Return KEY.json: members of a sample are neighbours, ordered by extension (jpg, json, png, webp)."""
    url, wanted = index.shard_url(int(index.shard[i])), f"{index.key(i)}.json".encode()
    offset, size = int(index.offset[i]), int(index.size[i])
    behind = offset + -(-size // BLOCK) * BLOCK
    length = _content_size(storage.read_range(url, behind, BLOCK), wanted)
    if length is not None:
        return storage.read_range(url, behind + BLOCK, length)
    start = max(0, offset - BLOCK - _BEFORE)
    before = storage.read_range(url, start, offset - BLOCK - start)
    for at in range(len(before) - BLOCK, -1, -BLOCK):
        length = _content_size(before[at : at + BLOCK], wanted)
        if length is not None:
            return before[at + BLOCK : at + BLOCK + length]
    return None


def _content_size(header: bytes, name: bytes) -> int | None:
    """Return the size that a tar header states if it is that of member ``name``."""
    size = header[124:136].strip(b" \0")
    return int(size, 8) if header[:100].split(b"\0", 1)[0] == name and size.isdigit() else None
