""".safetensors files: reading for tests, writing for export; upstream's spelling of weight norm."""
import json
import struct

import numpy as np

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I32": "<i4", "I64": "<i8"}


def read(path):
    """({name: array}, metadata)."""
    with open(path, "rb") as f:
        head = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = f.read()
    meta = head.pop("__metadata__", {})
    return {name: np.frombuffer(data, _TYPES[e["dtype"]], offset=e["data_offsets"][0],
                                count=int(np.prod(e["shape"], dtype=int))).reshape(e["shape"])
            for name, e in head.items()}, meta


def write(path, tensors, meta=None):
    """tensors: {name: array of f64, f32, f16, i32 or i64}, in the order of the file."""
    names = {np.dtype(v): k for k, v in _TYPES.items()}
    head, offset = ({"__metadata__": meta} if meta else {}), 0
    for name, a in tensors.items():
        head[name] = {"dtype": names[a.dtype], "shape": list(a.shape), "data_offsets": [offset, offset + a.nbytes]}
        offset += a.nbytes
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for a in tensors.values():
            f.write(np.ascontiguousarray(a).tobytes())


_G, _V = ".parametrizations.weight.original0", ".parametrizations.weight.original1"


def upstream_name(name):
    """Of a tensor of our HiFT's state: magnitude and direction as the released file spells them."""
    return name.replace(".weight_g", _G).replace(".weight_v", _V)


def our_name(name):
    return name.replace(_G, ".weight_g").replace(_V, ".weight_v")
