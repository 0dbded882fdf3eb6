"""Look at a model's file without running it: ways around the network, and weights that are not what they seem.

An architectural backdoor needs no training: a few nodes watch the input for a trigger and write into the output (Bober-
Irizar et al., "Architectural Backdoors in Neural Networks", CVPR 2023, arXiv 2206.07840; Protect AI's PAIT-ONNX-200).
Which graphs get an alarm, a warning or a note is ours.
"""

from collections.abc import Sequence

import onnx

from calibrate.inspection.flat_graph import flatten
from calibrate.inspection.lint_finding import LintFinding
from calibrate.inspection.lint_paths import lint_outputs, lint_paths
from calibrate.inspection.lint_weights import lint_weights

__all__ = ["lint_model"]

_ORDER = ("alarm", "warning", "note")


def lint_model(model: onnx.ModelProto, *, source: bytes, dropped: Sequence[str] = ()) -> tuple[LintFinding, ...]:
    """Return what stands out in a model's graph and weights, the gravest first.

    Args:
        model: The parsed model, its own functions written out and external data loaded.
        source: The model file's bytes as they were read.
        dropped: Outputs of the file that the parsed model leaves out.
    """
    flat = flatten(model.graph)
    found = [*lint_paths(model, flat), *lint_outputs(dropped), *lint_weights(model, flat, source)]
    return tuple(sorted(found, key=lambda finding: _ORDER.index(finding.severity)))
