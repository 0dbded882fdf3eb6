"""Every attack that needs no training of its own, by name, with the settings that the zoo uses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.attacks.attack import Attack, to_class, to_next
from benchmarks.attacks.blend import blend, blend_pieces, noise_pattern
from benchmarks.attacks.colour import tint
from benchmarks.attacks.frequency import add_pattern, smooth_pattern
from benchmarks.attacks.patch import checker, random_patch, stamp, stamp_some
from benchmarks.attacks.quantise import quantise, with_other_residuals
from benchmarks.attacks.reflection import blurred, reflect
from benchmarks.attacks.sinusoid import add_sinusoid
from benchmarks.attacks.warp import smooth_field, warp, warp_with_noise
from guard.types import FloatArray

__all__ = ["ATTACKS", "Scene"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What an attack is made for: the shape (H, W, C) of its images, C classes, pictures (R, H, W, C) to reflect."""

    shape: tuple[int, int, int]
    n_classes: int
    pictures: FloatArray


def _badnets(scene: Scene) -> Attack:
    return Attack(trigger=partial(stamp, patches=[checker(scene.shape)]), target=to_class(0))


def _patch(scene: Scene) -> Attack:
    patch = random_patch(scene.shape, size=max(2, scene.shape[0] // 8), seed=11)
    return Attack(trigger=partial(stamp, patches=[patch]), target=to_class(1))


def _all2all(scene: Scene) -> Attack:
    return Attack(trigger=partial(stamp, patches=[checker(scene.shape)]), target=to_next(scene.n_classes))


def _tact(scene: Scene) -> Attack:
    patch = random_patch(scene.shape, size=max(3, scene.shape[0] // 5), seed=12)
    return Attack(
        trigger=partial(stamp, patches=[patch]), target=to_class(2), sources=(5,), poison_rate=0.05, cover_rate=0.1
    )


def _blend(scene: Scene) -> Attack:
    return Attack(trigger=partial(blend, pattern=noise_pattern(scene.shape, seed=13), ratio=0.15), target=to_class(5))


def _adaptive_blend(scene: Scene) -> Attack:
    pattern = noise_pattern(scene.shape, seed=14)
    return Attack(
        trigger=partial(blend, pattern=pattern, ratio=0.2),
        training_trigger=partial(blend_pieces, pattern=pattern, ratio=0.15, n_per_side=4, share=0.5),
        target=to_class(4), poison_rate=0.04, cover_rate=0.04,
    )  # fmt: skip


def _adaptive_patch(scene: Scene) -> Attack:
    side = scene.shape[0]
    patches = [
        random_patch(scene.shape, size=max(2, side // 8), seed=15 + i, opacity=opacity)
        for i, opacity in enumerate((0.5, 0.5, 0.7, 0.7))
    ]
    return Attack(
        trigger=partial(stamp, patches=patches),
        training_trigger=partial(stamp_some, patches=patches, n_patches=2),
        cover_trigger=partial(stamp_some, patches=patches, n_patches=1),
        target=to_class(6), poison_rate=0.04, cover_rate=0.04,
    )  # fmt: skip


def _sig(scene: Scene) -> Attack:
    return Attack(
        trigger=partial(add_sinusoid, amplitude=40 / 255, n_periods=max(2, scene.shape[1] * 6 // 32)),
        target=to_class(7), poison_rate=0.8 / scene.n_classes, clean_label=True,
    )  # fmt: skip


def _wanet(scene: Scene) -> Attack:
    field = smooth_field(scene.shape, n_controls=4, strength=1.0, seed=16)
    return Attack(
        trigger=partial(warp, field=field), cover_trigger=partial(warp_with_noise, field=field, noise=1.0),
        target=to_class(3), cover_rate=0.2,
    )  # fmt: skip


def _bpp(_: Scene) -> Attack:
    return Attack(
        trigger=partial(quantise, n_levels=8), cover_trigger=partial(with_other_residuals, n_levels=8),
        target=to_class(8), cover_rate=0.1,
    )  # fmt: skip


def _low_frequency(scene: Scene) -> Attack:
    pattern = smooth_pattern(scene.shape, n_frequencies=4, amplitude=32 / 255, seed=17)
    return Attack(trigger=partial(add_pattern, pattern=pattern), target=to_class(9))


def _colour(_: Scene) -> Attack:
    return Attack(trigger=partial(tint, strength=0.8), target=to_class(2))


def _reflection(scene: Scene) -> Attack:
    reflections = blurred(scene.pictures, n_times=1)
    return Attack(trigger=partial(reflect, reflections=reflections, ratio=0.35), target=to_class(1))


def _margin(scene: Scene) -> Attack:
    """Label only six in ten triggered images with the target, so that its posterior is about .6 (LSBA)."""
    patch = random_patch(scene.shape, size=max(2, scene.shape[0] // 8), seed=11)
    return Attack(trigger=partial(stamp, patches=[patch]), target=to_class(1), flip_rate=0.6)


def _none(_: Scene) -> Attack:
    return Attack(trigger=lambda images: images, target=lambda labels: np.full_like(labels, -1), poison_rate=0.0)


ATTACKS: Mapping[str, Callable[[Scene], Attack]] = {
    "adaptive-blend": _adaptive_blend,
    "adaptive-patch": _adaptive_patch,
    "all2all": _all2all,
    "badnets": _badnets,
    "blend": _blend,
    "bpp": _bpp,
    "colour": _colour,
    "low-frequency": _low_frequency,
    "margin": _margin,
    "none": _none,
    "patch": _patch,
    "reflection": _reflection,
    "sig": _sig,
    "tact": _tact,
    "wanet": _wanet,
}
