"""fedpeft from Python: finished runs as objects, parts and rows as objects, and a process that is left as it was."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import fedpeft


@pytest.mark.medium
def test_the_promise_is_kept_whatever_is_imported():
    """No public name is hidden by a module of that name, and what is not called stays light."""
    folder = Path(fedpeft.__file__).parent
    modules = {
        f"fedpeft.{'.'.join(path.relative_to(folder).with_suffix('').parts)}".removesuffix(".__init__")
        for path in folder.rglob("*.py")
        if path.stem != "__main__" and "v2_pb2" not in path.stem
    }
    code = "\n".join([
        "import sys, fedpeft",
        "assert not {'torch', 'transformers', 'numpy', 'flwr'} & sys.modules.keys(), 'import fedpeft is heavy'",
        "import importlib",
        f"for name in {sorted(modules)!r}: importlib.import_module(name)",
        "assert all(callable(getattr(fedpeft, name)) for name in fedpeft.__all__)",
        "assert set(fedpeft.__all__) <= set(dir(fedpeft))",
    ])  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
    assert not {name.partition(".")[2].partition(".")[0] for name in modules} & set(fedpeft.__all__)
    with pytest.raises(AttributeError):
        importlib.import_module("fedpeft").nothing  # noqa: B018


@pytest.mark.slow
def test_a_script_needs_no_guard_and_its_classes_reach_the_workers(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "from dataclasses import dataclass\n"
        "import fedpeft\n"
        "from fedpeft.peft.methods.lora import Lora\n\n\n"
        '@dataclass(frozen=True)\nclass Mine(Lora):\n    """LoRA under another name."""\n\n\n'
        "print('once')\n"
        "run = fedpeft.run_simulation(dataset='tiny', clients=4, cohort='all', rounds=1, workers=2, "
        "local_work='steps(1)',\n"
        "                             tokens=32, peft=Mine(rank=2), output='run', progress=False)\n"
        "print(run.config.peft, run.model().training)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=900, check=True
    )
    assert done.stdout == "once\nMine(rank=2) False\n"
