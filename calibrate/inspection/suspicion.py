"""Which channels look as if a backdoor lived in them, from weights and about ten clean inputs: forward passes only.

Hashemifar, Parsa and Zakeri-Nasrabadi (arXiv 2311.07417) rank neurons by activation values, weights and the relation
to other neurons of the layer. Their formula is not known here. The score below, DLS, is a reconstruction from that one
sentence: it is not theirs, and none of its figures are. Per layer, with rz the z-score of calibrate.inspection.robust,

    S_j = w1 rz(log L_j) + w2 rz(log O_j) - w3 rz(log(A_j + 1e-6)) + w4 rz(R_j)

L_j: CLP's bound on the channel's Lipschitz constant (Zheng et al., ECCV 2022), the largest singular value of its
weights reshaped to (n_in, area), BatchNorm's factor multiplied in. O_j: the norm of the weights that read the channel.
A_j: the mean over inputs of the channel's maximum. R_j: 1 - the mean absolute correlation with the layer's other
channels. A channel that never varies on the inputs has no A and no R, and takes the layer's median of both. High is
suspicious; nothing is proven by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from calibrate.inspection.channel_weights import ChannelWeights, find_channel_weights
from calibrate.inspection.class_prior import ClassPrior, class_prior
from calibrate.inspection.clean_channels import CleanChannels, clean_channels, spread_over_classes
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.robust import robust_z
from calibrate.sites import Site
from guard.errors import InputError
from guard.types import FloatArray

__all__ = ["TERMS", "SuspicionFindings", "SuspicionSettings", "channel_lipschitz", "clp_scores", "score_channels"]

TERMS = ("weight", "outgoing", "activation", "relation")
"""L, O, A and R of the formula."""

_TINY = 1e-12
_N_TOP = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspicionSettings:
    """How channels are scored.

    Args:
        n_samples: At most so many of the clean inputs are used, spread over the classes.
        weights: w1 to w4, by term.
    """

    n_samples: int = 100
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspicionFindings:
    """How suspicious each channel is, against the others of its layer.

    Args:
        scores: By site (K,): the score S.
        terms: By site the robust z-scores (K,) that went into it, by term, signed so that high is suspicious.
        left_out: By site the terms that could not be had, with the reason.
        n_samples: How many clean inputs were used.
        class_prior: Which class the head's weights favour; None where no head was found, or one of two classes.
    """

    scores: Mapping[str, FloatArray]
    terms: Mapping[str, Mapping[str, FloatArray]]
    left_out: Mapping[str, Mapping[str, str]]
    n_samples: int
    class_prior: ClassPrior | None

    def summary(self) -> dict[str, object]:
        """Return the most suspicious channels and the class prior, as JSON can hold them."""
        ranked = sorted(
            ((float(s), tensor, j) for tensor, scores in self.scores.items() for j, s in enumerate(scores)),
            key=lambda entry: (-entry[0], entry[1], entry[2]),
        )
        return {
            "n_samples": self.n_samples,
            "top_channels": [{"site": t, "channel": j, "score": round(s, 4)} for s, t, j in ranked[:_N_TOP]],
            "left_out": {tensor: dict(reasons) for tensor, reasons in self.left_out.items() if reasons},
            "class_prior": None if self.class_prior is None else self.class_prior.summary(),
        }


def score_channels(problem: InspectionProblem, *, settings: SuspicionSettings | None = None) -> SuspicionFindings:
    """Score every channel of every site.

    Args:
        problem: The model, and clean inputs of which a few are used.
        settings: How channels are scored.

    Raises:
        InputError: There are no inputs.
        CalibrationError: An activation is NaN or infinite.
    """
    settings = settings or SuspicionSettings()
    if not len(problem.inputs):
        raise InputError("there are no clean inputs; give at least 2, and better 10 that cover the classes")
    inputs = spread_over_classes(problem.inputs, problem.labels, settings.n_samples)
    clean = clean_channels(problem.model, problem.sites, inputs, progress=problem.progress, device=problem.device)
    n_channels = {tensor: len(channels.mean_maximum) for tensor, channels in clean.items()}
    weights = find_channel_weights(problem.model, problem.sites, n_channels)
    found = {tensor: _terms(weights[tensor], clean[tensor]) for tensor in clean}
    return SuspicionFindings(
        scores={tensor: _score(terms, n_channels[tensor], settings) for tensor, (terms, _) in found.items()},
        terms={tensor: terms for tensor, (terms, _) in found.items()},
        left_out={tensor: reasons for tensor, (_, reasons) in found.items()},
        n_samples=len(inputs),
        class_prior=class_prior(problem.model, problem.logits, n_classes=problem.n_classes),
    )


def clp_scores(
    model: onnx.ModelProto, sites: Sequence[Site], n_channels: Mapping[str, int]
) -> Mapping[str, FloatArray]:
    """Return CLP's data-free bound L (K,) for every site whose producing weights are found."""
    weights = find_channel_weights(model, sites, n_channels)
    return {tensor: channel_lipschitz(w.producing) for tensor, w in weights.items() if w.producing}


def channel_lipschitz(producing: Sequence[FloatArray]) -> FloatArray:
    """Return CLP's bound L (K,) from the weights that make the channels, each (K, n_in, area).

    CLP scores one convolution; where a residual sum adds the outputs of several, their bounds add up.
    """
    return np.asarray(sum(_largest_singular_value(weights) for weights in producing))


def _largest_singular_value(weights: FloatArray) -> FloatArray:
    """Return (K,) the largest singular value of each (n_in, area), from the smaller of its Gram matrices."""
    tall = weights if weights.shape[1] >= weights.shape[2] else weights.swapaxes(1, 2)
    gram = tall.swapaxes(1, 2) @ tall
    return np.asarray(np.sqrt(np.linalg.eigvalsh(gram)[:, -1].clip(min=0)))


def _terms(weights: ChannelWeights, clean: CleanChannels) -> tuple[dict[str, FloatArray], dict[str, str]]:
    """Return a site's terms, and why the others are left out."""
    terms: dict[str, FloatArray] = {}
    reasons: dict[str, str] = {}
    if weights.producing:
        terms["weight"] = robust_z(_log(channel_lipschitz(weights.producing)))
    else:
        reasons["weight"] = "no layer whose weights make these channels was found"
    if weights.consuming:
        terms["outgoing"] = robust_z(_log(np.sqrt(sum(np.square(w).sum(axis=(0, 2)) for w in weights.consuming))))
    else:
        reasons["outgoing"] = "no layer whose weights read these channels was found"
    heights = np.log(np.maximum(clean.mean_maximum, 0) + 1e-6)
    terms["activation"] = -robust_z(np.where(clean.varies, heights, np.nan))
    if np.isfinite(clean.unlikeness).any():
        terms["relation"] = robust_z(clean.unlikeness)
    else:
        reasons["relation"] = "fewer than two channels vary on these inputs"
    return terms, reasons


def _log(values: FloatArray) -> FloatArray:
    return np.asarray(np.log(np.maximum(values, _TINY)))


def _score(terms: Mapping[str, FloatArray], k: int, settings: SuspicionSettings) -> FloatArray:
    by_term = dict(zip(TERMS, settings.weights, strict=True))
    return np.asarray(sum((by_term[name] * values for name, values in terms.items()), start=np.zeros(k)))
