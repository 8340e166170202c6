import pytest

from bua.config import get_cfg
from bua.demo import run
from bua.demo.run import _training_processes, has_bfloat16


@pytest.mark.parametrize(
    ("cores", "batch", "wanted"), [(1, 8, 1), (2, 8, 2), (16, 8, 2), (16, 2, 1), (3, 16, 2), (4, 16, 4), (4, 13, 1)]
)
def test_processes_that_share_a_batch_evenly(monkeypatch, cores, batch, wanted):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.SOLVER.IMS_PER_BATCH = "cpu", batch
    assert _training_processes(cfg) == wanted


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [("avx512f avx512_bf16 sse4_2", True), ("avx2 amx_bf16", True), ("avx512f avx2", False), (None, False)],
)
def test_bfloat16_only_where_the_processor_has_it(monkeypatch, tmp_path, flags, wanted):
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(run, "CPU_FLAGS", file)
    assert has_bfloat16("cpu") is wanted
