"""Payloads of version 1 decode for ever, bit for bit. Never regenerate one; add new ones beside them."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch
from safetensors.torch import load_file

from fedpeft.communication.decoding import decode
from tests.communication.vectors import rows

GOLDEN = Path(__file__).parent.parent.parent / "golden"


@rows("path", sorted(GOLDEN.glob("v1-*.payload")), ids=lambda p: p.stem)
def test_golden_payloads_decode_for_ever(path):
    made = runpy.run_path(str(GOLDEN / "make_payloads.py"))
    expected = load_file(path.with_suffix(".safetensors"))
    back = decode(path.read_bytes(), made["SHAPES"], references=made["REFERENCES"])
    assert set(back) == set(expected)
    for name, tensor in back.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


def test_there_are_golden_payloads_of_every_step():
    from fedpeft.parts.families import codecs

    seen = b"".join(p.read_bytes()[:200] for p in GOLDEN.glob("v1-*.payload"))
    assert all(name.encode() in seen for name in codecs.names)
