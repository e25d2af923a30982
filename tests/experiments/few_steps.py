"""Steps for the kit of `experiments.gpu` that take no time to load: some fail, one dies, one takes too long."""

from __future__ import annotations

import os
import time

from experiments.gpu.kit import Kit, Step


def _quick(_: Kit):
    return {"model": "m", "answer": 42.0, "process": os.getpid()}


def _slow(_: Kit):
    time.sleep(600)
    return {}


def _wrong(_: Kit):
    raise ValueError("no such kernel\nand more")


def _dies(_: Kit):
    os._exit(3)


def few():
    return [
        Step("quick", "first", 100, _quick),
        Step("slow", "first", 0.2, _slow),
        Step("wrong", "second", 100, _wrong),
        Step("dies", "second", 100, _dies),
        Step("again", "second", 100, _quick),
        Step("missing", "third", 100, _quick, needs=("no_such_package",)),
        Step("real", "third", 100, _quick, assets=True),
        Step("large", "third", 100, _quick, gigabytes=1e6),
    ]
