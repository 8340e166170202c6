"""What a run that is continued says about the checkpoints that it looks for. Whole runs: test_trainer.py."""

import pytest
import torch

from bua.engine.resume import read_to_resume
from bua.errors import InputError


@pytest.fixture
def run(tmp_path):
    """The folder of a run with one checkpoint, which the file last_checkpoint names."""
    saved = {"model": {}, "optimizer": {}, "scheduler": {}, "scaler": {}, "iteration": 4}
    torch.save(saved, tmp_path / "model_0000003.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    return tmp_path


def test_a_checkpoint_that_is_not_there_is_not_a_damaged_one(run, tmp_path):
    with pytest.raises(InputError) as error:
        read_to_resume(run / "model_000003.pth", run, 9)
    expected = f"--resume-from {run}/model_000003.pth: there is no such file; the newest checkpoint is "
    assert str(error.value) == expected + str(run / "model_0000003.pth")
    with pytest.raises(InputError, match=r"none.pth: there is no such file$"):
        read_to_resume(tmp_path / "none.pth", tmp_path / "empty", 9)


def test_a_damaged_name_of_the_newest_checkpoint_is_said(run, caplog):
    newest = run / "model_0000003.pth"
    read_to_resume(newest, run, 9)
    assert not caplog.records
    (run / "last_checkpoint").write_text("model_000")
    read_to_resume(newest, run, 9)
    expected = f"{run}/last_checkpoint: is missing or names no checkpoint; {newest} is the newest"
    assert [record.message for record in caplog.records] == [expected]
