"""What each mode answers, what a failing model lets through, and what a client is told of an error."""

from dataclasses import replace

import grpc
import numpy as np
import pytest
from bundles import CLEAN, TRIGGERED, manifest
from servers import GatedModel, infer_request, live, tensors, tiny_guard

import serving.errors
from guard.errors import BundleError, GuardError, InputError, ModelError
from guard.types import TensorSpec
from serving._pb import open_inference_pb2 as pb
from serving.answers import output_specs
from serving.config import OnFlag
from serving.errors import FlaggedError
from serving.status import STATUS, refusal

MIXED = np.concatenate([CLEAN, TRIGGERED])
Code = grpc.StatusCode


def test_flagging_answers_what_the_original_said():
    with live(on_flag=OnFlag.FLAG) as server:
        answer = tensors(server.infer(MIXED))
    assert answer["y"] == MIXED.tolist()
    assert answer["guard_flagged"] == [False, True]
    assert answer["guard_corrected_class"] == [2, 1]


def test_rejecting_refuses_a_request_with_a_flagged_row_and_names_the_row():
    with live(on_flag=OnFlag.REJECT) as server:
        code, words = server.refuses(infer_request(MIXED))
        assert code == Code.FAILED_PRECONDITION
        assert "rejects 1 of 2 rows as triggered: row 1" in words
        _, words = server.refuses(infer_request(np.repeat(TRIGGERED, 12, axis=0)))
        assert words.endswith("row 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more")
        assert tensors(server.infer(CLEAN))["guard_flagged"] == [False]
        assert server.sample("guard_flagged_rows_total", predicted_class="0") == 13


def test_a_shadow_shows_nothing_and_counts_everything():
    with live(on_flag=OnFlag.SHADOW, expose_scores=True) as server:
        response = server.infer(MIXED)
        metadata = server.call("ModelMetadata", pb.ModelMetadataRequest(name="tiny"))
        assert tensors(response) == {"y": MIXED.tolist()}
        assert not response.parameters
        assert [output.name for output in metadata.outputs] == ["y"]
        assert server.sample("guard_flagged_rows_total", predicted_class="0") == 1


def test_scores_are_p_values_and_only_on_the_operators_wish():
    with live(expose_scores=True) as server:
        answer = tensors(server.infer(MIXED))
        assert answer["guard_p_value"] == pytest.approx([1, 1 / 201])
        assert not any("divergence" in name for name in answer)


@pytest.mark.parametrize("mode", [mode for mode in OnFlag if mode is not OnFlag.SHADOW])
def test_a_bounded_model_that_fails_lets_nothing_through(mode):
    with live(tiny_guard(bounded=GatedModel(error=ModelError("secret"))), on_flag=mode) as server:
        code, words = server.refuses(infer_request(CLEAN))
        assert code == Code.INTERNAL
        assert "secret" not in words
        assert server.sample("guard_failures_total", stage="judge") == 1


def test_a_bounded_model_that_fails_in_the_shadow_is_counted_and_not_seen():
    with live(tiny_guard(bounded=GatedModel(error=RuntimeError("odd"))), on_flag=OnFlag.SHADOW) as server:
        assert tensors(server.infer(CLEAN)) == {"y": CLEAN.tolist()}
        assert server.sample("guard_failures_total", stage="judge") == 1


def test_the_text_of_an_unknown_exception_stays_in_the_log(caplog):
    with live(tiny_guard(original=GatedModel(error=ZeroDivisionError("secret")))) as server:
        code, words = server.refuses(infer_request(CLEAN))
    assert code == Code.INTERNAL
    incident = words.rsplit(" ", 1)[1]
    assert "secret" not in words
    assert incident in caplog.text
    assert "secret" in caplog.text


def branches(error):
    yield error
    for branch in error.__subclasses__():
        yield from branches(branch)


def test_every_error_of_the_tree_has_a_status():
    tree = {e for e in branches(GuardError) if e.__module__ in ("guard.errors", serving.errors.__name__)}
    assert tree == set(STATUS)
    assert set(map(serving.errors.__dict__.get, serving.errors.__all__)) <= tree


@pytest.mark.parametrize("error", [BundleError("secret"), ModelError("secret"), KeyError("secret")])
def test_what_is_internal_is_told_by_its_incident_alone(error):
    refused = refusal(error, incident="1a2b")
    assert refused == (Code.INTERNAL, "the request failed inside the server; its log says why under 1a2b")


def test_what_is_the_clients_business_is_told_in_full_up_to_a_length():
    assert refusal(FlaggedError("row 3"), incident="") == (Code.FAILED_PRECONDITION, "row 3")
    assert len(refusal(InputError("x" * 10_000), incident="").text) == 503


def test_an_output_that_is_named_as_one_of_the_guards_is_refused():
    output = TensorSpec(name="guard_flagged", dtype="float32", shape=(None, 3))
    with pytest.raises(BundleError, match="named guard_flagged, which the guard adds"):
        output_specs(replace(manifest(), output=output), on_flag=OnFlag.CORRECT, expose_scores=False)
