"""What a user can get wrong: one clear sentence, exit code 2, nothing half-written, no traceback."""

from __future__ import annotations

from fedpeft.reporting.run_folder import lock_folder
from fedpeft.simulate import main
from tests.refusals import has_error
from tests.unit.test_bad_input import call


def test_resuming_with_other_settings(tmp_path, capfd):
    assert call(tmp_path / "run", {}) == 0
    assert main(["--resume", str(tmp_path / "run"), "--rounds", "5"]) == 2
    assert has_error("".join(capfd.readouterr()), "FP5177", "rounds")


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    assert call(tmp_path / "run", {}) == 0
    before = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_a_resumed_run_refuses_other_rows_and_a_second_process(tmp_path, capfd):
    data = tmp_path / "rows.csv"
    lines = ["text,label", *(f"word{i % 7} {'good' if i % 2 else 'bad'},{i % 2}" for i in range(60))]
    data.write_text("\n".join(lines) + "\n")
    flags = {"--dataset": f"file:{data}", "--model": "tiny"}
    assert call(tmp_path / "run", flags) == 0
    with lock_folder(tmp_path / "run"):
        assert main(["--resume", str(tmp_path / "run")]) == 2
    assert has_error("".join(capfd.readouterr()), "FP5186", tmp_path / "run")
    (tmp_path / "run" / ".lock").unlink(missing_ok=True)
    (tmp_path / "run" / ".lock").mkdir()  # root may write everywhere, but no file where a folder is
    assert main(["--resume", str(tmp_path / "run")]) == 2
    assert has_error("".join(capfd.readouterr()), "FP5187", tmp_path / "run")
    (tmp_path / "run" / ".lock").rmdir()
    data.write_text("\n".join([*lines[:-1], "another row,1"]) + "\n")
    assert main(["--resume", str(tmp_path / "run")]) == 2
    assert has_error("".join(capfd.readouterr()), "FP5194", tmp_path / "run", "data")
