"""The benchmarks start; those of the detector also measure a small network on a few images."""

import sys

import pytest
import torch
from script_loading import ROOT, load_script

PROGRAMS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())
SLIM = [
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RPN.CONV_DIMS", "[8]", "MODEL.ROI_HEADS.NUM_CLASSES", "30"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "40"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"),
    *("INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "160", "INPUT.MIN_SIZE_TRAIN", "(96,)"),
    *("INPUT.MAX_SIZE_TRAIN", "160"),
]


@pytest.fixture
def load(monkeypatch):
    """Loads a benchmark; the modules beside it can be imported, as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: load_script(f"benchmarks/{name}")


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_benchmark_starts(load, monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        load(name).main()
    assert stopped.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_extraction_from_files_to_files(load, capsys):
    options = ["--images", "3", "--only-files", "--precision", "fp32", "--num-workers", "1"]
    assert load("extraction.py").main([*options, *SLIM]) == 0
    printed = capsys.readouterr().out
    assert "3 images, realistic scores, fp32, batch size 1" in printed
    for part in ("flat-fp16", "tsv", "backbone", "decode", "select regions", "The others wait for the first"):
        assert f"\n{part}" in printed


def test_realistic_scores_differ_between_regions(load):
    extraction = load("extraction.py")
    detector = extraction.build_detector(
        extraction.load_cfg(extraction.CONFIG, [*extraction.OVERRIDES, *SLIM, "MODEL.DEVICE", "cpu"])
    )
    images = [detector.prepare(extraction.decode(extraction.draw_jpeg((120, 160), seed))) for seed in range(3)]
    share = []
    for _ in range(2):
        found = detector.eval().infer(images, regress=False)
        best = torch.cat([image.class_probs for image in found]).amax(dim=1)
        share.append((best >= 0.2).float().mean().item())
        extraction.make_scores_realistic(detector, images)
    assert share[1] == pytest.approx(0.4, abs=0.05)


def test_training_with_its_parts(load, capsys):
    options = ["--images", "4", "--steps", "1", "--warm-up", "1", "--batch-size", "2", "--num-workers", "0"]
    assert load("training.py").main([*options, *SLIM]) == 0
    printed = capsys.readouterr().out
    assert "steps/s" in printed
    for part in ("data", "forward: backbone", "backward", "optimizer"):
        assert f"\n{part}" in printed


@pytest.mark.parametrize("name", ["extraction.py", "training.py"])
def test_without_a_gpu_cuda_is_refused_in_one_line(load, monkeypatch, capsys, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert load(name).main(["--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert "cuda" in error
    assert error.count("\n") == 1
