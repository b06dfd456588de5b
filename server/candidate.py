"""From a finished training to a release: which adapter, what is known of it, and the gate's word.

The candidate is the round that validation likes best. What the gate found goes into the manifest,
with regions by number unless they agreed to be named.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.gate import MEAN
from server.history import History
from server.releases import write_release
from shared.encoders.encoder import Encoder
from shared.release import ReleaseBase, ReleaseFacts


def release_best(
    history: History,
    encoder: Encoder,
    *,
    registry: Path,
    signing_key: Path,
    former_key: Path | None = None,
    parent: int | None,
    quality: Mapping[str, Any],
) -> int:
    """Write and sign the best round of a training as the next release.

    Args:
        history: of the training.
        encoder: of its base; it is left with the released adapter.
        registry: the folder of numbered releases.
        signing_key: the private key file.
        former_key: the one before it, while regions still trust it.
        parent: number of the release that training started from, None for the base.
        quality: measured figures for the manifest.

    Returns:
        The release's number; it is in use only once published.
    """
    best = history.best_round()
    encoder.load_adapter(history.adapter(best))
    with tempfile.TemporaryDirectory() as staging:
        encoder.save_release_files(Path(staging))
        method = history.rounds()[best].method
        facts = _facts(encoder, rounds=best, method=method, parent=parent, quality=quality)
        return write_release(
            registry,
            files=Path(staging),
            facts=facts,
            signing_key=signing_key,
            former_key=former_key,
        )


def measured_quality(history: History) -> dict[str, Any]:
    """What validation and gate found, with regions by number unless they agreed to be named."""
    best, gate = history.rounds()[history.best_round()], history.gate()
    compared = gate["candidate"] if gate is not None else {}
    label = _labels(sorted({*best.validation, *compared, *history.regions()}), history.regions())
    quality: dict[str, Any] = {
        "validation_ndcg@10": {
            label[region]: row.get("ndcg@10") for region, row in sorted(best.validation.items())
        }
    }
    if gate is not None:
        quality["gate"] = {
            "decision": _relabelled(gate["decision"], label),
            "candidate": {label[region]: row for region, row in sorted(compared.items())},
        }
    return quality


def _labels(regions: Sequence[str], said: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {
        region: region if said.get(region, {}).get("named") else f"region {number}"
        for number, region in enumerate(regions, 1)
    }


def _relabelled(decision: Mapping[str, Any], label: Mapping[str, str]) -> dict[str, Any]:
    """The decision with its checks' scopes by label, and without reasons, which hold names."""
    scopes = {**label, MEAN: MEAN}
    checks = [{**check, "scope": scopes[check["scope"]]} for check in decision["checks"]]
    return {"accepted": decision["accepted"], "checks": checks}


def _facts(
    encoder: Encoder, *, rounds: int, method: str, parent: int | None, quality: Mapping[str, Any]
) -> ReleaseFacts:
    text, image = encoder.base.text, encoder.base.image
    return ReleaseFacts(
        parent=parent,
        base=ReleaseBase(
            fingerprint=encoder.base.fingerprint,
            ids={"text": text.name, "image": image.name},
            revisions={"text": text.revision, "image": image.revision},
        ),
        dims={"vector": encoder.dim},
        pooling={
            "text": text.pooling,
            "image": "head of the timm model",
            **encoder.base.choices,
        },
        preprocessing={
            "max_tokens": text.max_tokens,
            "image_size": image.size,
            "image_mean": list(image.mean),
            "image_std": list(image.std),
            "image_fit": "pad to a white square",
        },
        encoder_digest=encoder.digest,
        rounds=rounds,
        strategy=method,
        quality=dict(quality),
        privacy={"differential_privacy": "none"},
    )
