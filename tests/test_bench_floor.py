"""Floors are counted rightly, and the GPU's benchmark runs where there is none."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import floor, gpu
from benchmarks.floor import bandwidth, matrix_rate, operations
from benchmarks.uplink import siglip_update, update_bytes
from shared.encoders.batches import for_each
from shared.encoders.image import create_image_model
from shared.encoders.presets import PRESETS

CPU = torch.device("cpu")


def test_a_multiplication_and_an_addition_are_two_operations() -> None:
    layer, x = nn.Linear(3, 5, bias=False), torch.ones(7, 3)
    assert operations(lambda: layer(x)) == 2 * 7 * 3 * 5
    with torch.inference_mode():
        assert operations(lambda: layer(x)) == 2 * 7 * 3 * 5
    # The gradient of the weights is one more product of the same size; x needs none.
    assert operations(lambda: layer(x).sum().backward()) == 2 * 2 * 7 * 3 * 5


def test_operations_of_batches_that_go_to_several_threads_count() -> None:
    torch.set_num_threads(3)
    layer, x = nn.Linear(3, 5, bias=False), torch.ones(7, 3)
    counted = operations(lambda: for_each(range(4), lambda _: layer(x), lambda *_: None))
    assert counted == 4 * 2 * 7 * 3 * 5
    assert torch.get_num_threads() == 3


def test_rates_are_counts_by_the_shortest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "best_seconds", lambda call, device: 0.5)
    assert matrix_rate(CPU, side=4) == 2 * 4**3 / 0.5
    assert bandwidth(CPU, size=100) == 2 * 100 / 0.5  # each byte is read and written


def test_a_dry_run_measures_everything_without_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--small", "--batch", "2", "--out", str(out)])
    found = {
        (figure["section"], figure["name"]): figure["value"]
        for figure in json.loads(out.read_text())["figures"]
    }
    rate = found["device", "matrix rate, float32"]
    for tower in ("text", "image"):
        for work in ("encoding", "a training step"):
            of = {
                name: v for (s, name), v in found.items() if s == f"{tower} tower, float32, {work}"
            }
            assert of["items"] > 0
            gap = of["seconds / floor of its operations"]
            assert of["achieved"] * gap == pytest.approx(rate)  # both are of the same seconds
    assert "| device: bandwidth |" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU answers")
def test_no_gpu_is_one_line() -> None:
    with pytest.raises(SystemExit, match="no GPU answers"):
        gpu.main([])


def test_an_update_of_siglip2_base_is_below_a_megabyte_in_int8() -> None:
    """By hand, rank 8: a linear layer from a to b has 8 (a + b) numbers."""
    narrow, wide = 8 * (768 + 768), 8 * (768 + 3072)
    text = 2 * (4 * narrow + 2 * wide) + narrow
    block = 8 * (768 + 2304) + narrow + 2 * wide
    pool = 2 * narrow + 8 * (768 + 1536) + 2 * wide
    update = siglip_update()
    assert sum(tensor.numel() for tensor in update.values()) == text + 2 * block + pool + 3
    assert text + 2 * block + pool <= update_bytes(update, "int8") <= 1_000_000
    assert update_bytes(update, "float32") > 2_000_000


def test_its_shapes_are_those_of_the_preset() -> None:
    preset = PRESETS["siglip2-base"]
    for tower in (preset.text, preset.image):
        assert (tower.rank, tower.adapter_blocks) == (gpu.RANK, gpu.ADAPTER_BLOCKS)
    assert (preset.text.max_tokens, preset.image.size) == (64, 224)
    with torch.device("meta"):
        adapted = gpu.adapt(create_image_model(preset.image))
    ours = {k.removeprefix("image/"): v for k, v in siglip_update().items() if "image/" in k}
    theirs = [p.shape for p in adapted.parameters() if p.requires_grad]
    assert [tensor.shape for tensor in ours.values()] == theirs
