"""BAN: a backdoored model under adversarial neuron noise slides towards the attacker's class.

Xu, Liu, Koffas, Yu and Picek, "BAN: Detecting Backdoors Activated by Adversarial Neuron Noise", NeurIPS 2024,
arXiv 2405.19928. A mask over the last feature map keeps what correct labels need (feature_mask); noise on the neurons
raises the clean loss (neuron_noise). Clean inputs then vote with the noise on and only the features that correct
labels do not need. The statistic is the largest share of one class among the votes.

Ours: several seeds with an interval, the rule that turns the statistic into a verdict, and noise on models without
BatchNorm.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.differentiable import Change, DifferentiableModel, Tensors, fast_precision
from calibrate.forward import batches
from calibrate.gradients import backward
from calibrate.inspection.ban_findings import LEAST_SAMPLES, BanFindings, findings_of
from calibrate.inspection.ban_settings import BanSettings
from calibrate.inspection.feature_mask import learn_mask
from calibrate.inspection.feature_split import FeatureSplit, find_cuts, split_features
from calibrate.inspection.neuron_noise import ChannelMoments, NeuronNoise, Reference
from calibrate.inspection.noise_places import Place, find_places
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.unfused import unfused
from guard.errors import CalibrationError
from guard.rows import each
from guard.types import FloatArray, IntArray

__all__ = ["BanFindings", "BanSettings", "detect_ban", "with_rest"]

_Seed = tuple[torch.Generator, Tensor]
_POOL = 2  # times as many inputs as one seed fits on, to draw from
_SHARE = 0.8  # of the pool that one seed fits on at most, so that seeds differ
_LEAST_BATCH = 16  # fewer inputs have no batch statistics worth the name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What stays the same from seed to seed."""

    problem: InspectionProblem
    settings: BanSettings
    model: DifferentiableModel
    head: DifferentiableModel
    split: FeatureSplit
    places: Sequence[Place]
    references: Mapping[str, Reference]
    pool: Tensors  # the inputs that every seed draws from
    labels: Tensor  # of the pool
    features: Tensor  # of the pool

    @property
    def piece(self) -> int:
        """Inputs per pass."""
        return self.model.fixed_batch or self.settings.batch_size


def detect_ban(problem: InspectionProblem, *, settings: BanSettings | None = None) -> BanFindings:
    """Say whether a classifier under neuron noise slides towards one class, and towards which.

    Args:
        problem: The classifier and clean inputs with labels.
        settings: How to look.

    Raises:
        CalibrationError: There are fewer than 50 inputs, nothing to put noise on, an operator without gradient, or a
            loss that is NaN or infinite.
    """
    settings = _for_classes(settings or BanSettings(), problem.n_classes)
    if len(problem.inputs) < LEAST_SAMPLES:
        raise CalibrationError(
            f"{len(problem.inputs)} clean samples are too few for BAN; it takes at least {LEAST_SAMPLES}: give more"
        )
    task = _prepare(problem, settings)
    seeds = list(_seeds(task))
    masks = list(_masks(task, seeds))
    noises = list(_noises(task, seeds))
    votes = list(_votes(task, masks, noises))
    return findings_of(
        votes,
        problem.labels[: len(votes[0])],
        problem.n_classes,
        noise_on=" and ".join(sorted({place.kind for place in task.places})),
        features=task.split.tensor,
        unneeded=_unneeded(task, masks),
        settings=settings,
    )


def _for_classes(settings: BanSettings, n_classes: int) -> BanSettings:
    """Put in the weight that the number of classes decides."""
    weight = math.log(n_classes) if settings.mask_weight is None else settings.mask_weight
    return replace(settings, mask_weight=weight)


def _prepare(problem: InspectionProblem, settings: BanSettings) -> _Task:
    device, plain = problem.device, unfused(problem.model)
    model = DifferentiableModel(plain, device=device, precision=fast_precision(device))
    size = model.fixed_batch or settings.batch_size
    cuts = find_cuts(plain.graph, problem.logits)
    with torch.no_grad():
        found = model(_copies(_tensors(problem, slice(0, 1)), model.fixed_batch or 1), outputs=cuts)
    split = split_features(plain, problem.logits, {c: v.shape for c, v in zip(cuts, found, strict=True)})
    places = find_places(plain.graph, split.tensor)
    if not places:
        raise CalibrationError(
            f"BAN has nothing to put noise on: no convolution, matrix product or normalisation lies between the input "
            f"and the features '{split.tensor}'; expected at least one"
        )
    n_pool = min(_POOL * settings.n_fitting, len(problem.inputs))
    features, references = _look_at_clean(problem, model, split, places, n_pool=n_pool, size=size)
    return _Task(
        problem=problem,
        settings=settings,
        model=model,
        head=DifferentiableModel(split.head, device=device),
        split=split,
        places=places,
        references=references,
        pool=_tensors(problem, slice(0, n_pool)),
        labels=torch.from_numpy(problem.labels[:n_pool]).to(device),
        features=features,
    )


@torch.no_grad()
def _look_at_clean(
    problem: InspectionProblem,
    model: DifferentiableModel,
    split: FeatureSplit,
    places: Sequence[Place],
    *,
    n_pool: int,
    size: int,
) -> tuple[Tensor, Mapping[str, Reference]]:
    """Return the features of the fitting inputs and what the places do on them."""
    moments = {place.tensor: ChannelMoments(place) for place in places}
    features = []
    for rows in batches(n_pool, size):
        n = rows.stop - rows.start
        at: dict[str, Change] = {t: partial(m.record, kept=n / (model.fixed_batch or n)) for t, m in moments.items()}
        features.append(model.rows(_tensors(problem, rows), output=split.tensor, at=at))
        problem.progress("BAN: clean features", rows.stop, n_pool)
    names = sorted({name for place in places for name in (place.scale, place.shift) if name})
    constants = dict(zip(names, model(_tensors(problem, slice(0, 1)), outputs=names), strict=True))
    return torch.cat(features), {tensor: m.reference(constants) for tensor, m in moments.items()}


def _seeds(task: _Task) -> Iterator[_Seed]:
    """Yield what each seed draws with, and the rows of the pool that it fits on: they change votes more than noise."""
    n = min(task.settings.n_fitting, math.ceil(_SHARE * len(task.labels)))
    for seed in np.random.SeedSequence(task.problem.seed).generate_state(task.settings.seeds):
        generator = torch.Generator().manual_seed(int(seed))
        yield generator, torch.randperm(len(task.labels), generator=generator)[:n]


def _masks(task: _Task, seeds: Sequence[_Seed]) -> Iterator[Tensor]:
    def head(features: Tensor) -> Tensor:
        return task.head.rows(features, output=task.problem.logits, size=task.model.fixed_batch)

    for i, (generator, drawn) in enumerate(seeds):
        rows = drawn.to(task.labels.device)
        yield learn_mask(
            head,
            task.features[rows],
            task.labels[rows],
            weight=task.settings.mask_weight or 0.0,
            settings=task.settings,
            generator=generator,
            report=_counter(task, "BAN: feature masks", i, task.settings.mask_steps),
        )


def _noises(task: _Task, seeds: Sequence[_Seed]) -> Iterator[NeuronNoise]:
    """Seek one noise per seed: every step sees another batch, so that it serves the whole fitting set."""
    settings = task.settings
    for i, (generator, drawn) in enumerate(seeds):
        report = _counter(task, "BAN: neuron noise", i, settings.noise_steps)
        noise = NeuronNoise(
            task.places,
            task.references,
            size=settings.noise,
            batch_statistics=task.piece >= _LEAST_BATCH,
            generator=generator,
        )
        for step in range(1, settings.noise_steps + 1):
            _add_gradients(task, noise, (generator, drawn), step)
            noise.ascend(settings.noise / settings.noise_steps, limit=settings.noise if settings.project else None)
            report(step)
        yield noise


def _add_gradients(task: _Task, noise: NeuronNoise, seed: _Seed, step: int) -> None:
    generator, drawn = seed
    n_pieces = -(-task.settings.batch_size // task.piece)
    for _ in range(n_pieces):
        rows = drawn[torch.randint(len(drawn), (task.piece,), generator=generator)]
        inputs = each(itemgetter(rows), task.pool)
        (logits,) = task.model(inputs, outputs=[task.problem.logits], at=noise.changes(training=True))
        loss = F.cross_entropy(logits.float(), task.labels[rows.to(task.labels.device)])
        if not torch.isfinite(loss):
            raise CalibrationError(
                f"BAN's loss under neuron noise is {loss.item()} at step {step} of {task.settings.noise_steps}; "
                "expected a finite number: lower `noise`, or check the model's logits on the clean data"
            )
        backward(loss)


@torch.no_grad()
def _votes(task: _Task, masks: Sequence[Tensor], noises: Sequence[NeuronNoise]) -> Iterator[IntArray]:
    """Yield (N,) the classes voted for, seed by seed."""
    n = min(len(task.problem.inputs), task.settings.n_votes)
    for i, (mask, noise) in enumerate(zip(masks, noises, strict=True)):
        report = _counter(task, "BAN: votes", i, n)
        at = with_rest(noise.changes(training=False), task.split.tensor, mask)
        classes = []
        for rows in batches(n, task.piece):
            logits = task.model.rows(_tensors(task.problem, rows), output=task.problem.logits, at=at)
            classes.append(logits.argmax(1).cpu().numpy())
            report(rows.stop)
        yield np.concatenate(classes)


def with_rest(changes: Mapping[str, Change], tensor: str, mask: Tensor) -> Mapping[str, Change]:
    """Return the changes, and after them what the mask leaves out, (1 - m), put on the features."""
    before = changes.get(tensor)

    def rest(features: Tensor) -> Tensor:
        noisy = features if before is None else before(features)
        return (noisy * (1 - mask)).to(features.dtype)

    return {**changes, tensor: rest}


def _unneeded(task: _Task, masks: Sequence[Tensor]) -> FloatArray:
    """Return (K,) the mean of 1 - m over positions and seeds."""
    rest = 1 - torch.stack(list(masks)).mean(0)
    if rest.dim() > 1:
        rest = rest.movedim(task.split.channel_axis - 1, 0).flatten(1).mean(1)
    return rest.cpu().numpy()


def _counter(task: _Task, stage: str, seed: int, per_seed: int) -> Callable[[int], None]:
    total = task.settings.seeds * per_seed
    return lambda done: task.problem.progress(stage, seed * per_seed + done, total)


def _tensors(problem: InspectionProblem, rows: slice) -> Tensors:
    return each(torch.from_numpy, problem.inputs[rows])


def _copies(row: Tensors, n: int) -> Tensors:
    return each(lambda tensor: tensor.expand(n, *tensor.shape[1:]), row)
