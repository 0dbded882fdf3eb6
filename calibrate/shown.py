"""What a manifest says, row by row in words."""

from collections.abc import Iterator

from guard.manifest import Manifest

__all__ = ["manifest_rows"]


def manifest_rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what a bundle's manifest says, key by key."""
    yield "model", f"{manifest.model['name']}, SHA-256 {str(manifest.model['sha256'])[:16]}..."
    yield from (("input", str(spec)) for spec in manifest.inputs)
    yield "output", f"{manifest.output}, {manifest.output_kind}"
    yield "preprocessing of images", _sentence(manifest.preprocessing)
    yield "method", f"{manifest.method['name']}: {_sentence(manifest.method['settings'])}"
    yield (
        "sites",
        f"{len(manifest.sites)}, {sum(s['n_bounds'] + s.get('n_lower_bounds', 0) for s in manifest.sites)} bounds",
    )
    yield "score", manifest.score
    for name, t in manifest.thresholds.items():
        yield f"{name} threshold", f"{t.value:.6g}, for a false-positive rate of {t.target_fpr:g}, from {t.n} inputs"
    yield "calibration", _sentence({k: v for k, v in manifest.calibration.items() if k != "estimated_tpr"})
    yield from _estimated_rows(manifest.calibration.get("estimated_tpr"))
    yield "written with", _sentence(manifest.versions)
    yield "seed", str(manifest.seed)
    for name, digest in manifest.files.items():
        yield name, f"{digest.n_bytes} bytes, SHA-256 {digest.sha256[:16]}..."


def _estimated_rows(estimated: object) -> Iterator[tuple[str, str]]:
    """Yield the estimates that a manifest holds, as far as it holds them in the known form."""
    if not isinstance(estimated, dict):
        return
    yield "tpr estimated on triggers", f"towards class {estimated.get('target_class')}"
    for found in estimated.get("estimates", []):
        yield "", _sentence(found)


def _sentence(values: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items()) if isinstance(values, dict) else str(values)
