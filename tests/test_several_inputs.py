"""A classifier of token ids and a mask, from the model file to a client's answer; and what is refused on the way."""

import grpc
import numpy as np
import onnx
import pytest
import torch
import tritonclient.grpc as triton
from digits import fit
from servers import TIMEOUT_S, live
from texts import IDS, LENGTH, MASK, SPECS, TARGET, load_texts, save_texts, text_classifier, texts, votes
from torch import Tensor, nn
from torch_models import export
from torch_transformers import N_TOKENS, VOCABULARY, TextTransformer

from calibrate.__main__ import main
from calibrate.differentiable import DifferentiableModel
from calibrate.graph import read_classifier, serialize
from calibrate.pipeline import evaluate_bundle
from guard import Guard, InputError
from guard.bundle import load_bundle
from guard.model import OrtModel
from guard.rows import each
from serving._pb import open_inference_pb2 as pb

CLEAN, TRIGGERED = texts(20, seed=7), texts(20, triggered=True, seed=7)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.onnx"
    onnx.save(text_classifier(), path)
    return path


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return save_texts(tmp_path_factory.mktemp("clean") / "clean.npz", 300)


@pytest.fixture(scope="module")
def bundle(model, clean, tmp_path_factory):
    return fit(model, clean, tmp_path_factory.mktemp("fitted") / "bundle")


@pytest.fixture(scope="module")
def server(bundle):
    with live(Guard.load(bundle, threads=1)) as running:
        yield running


def bad_inputs():
    """Yield inputs that do not fit, with what must be said of them."""
    ids, mask = CLEAN[IDS], CLEAN[MASK]
    spoilt = mask.copy()
    spoilt[3, 1] = np.nan
    yield {IDS: ids}, "input 'attention_mask' is missing; the model takes input_ids, attention_mask"
    yield {**CLEAN, "token_type_ids": ids}, "input 'token_type_ids' is unknown; the model takes input_ids, attention"
    yield {IDS: ids, MASK: mask[:19]}, "input attention_mask has 19 rows and input input_ids has 20; every input takes"
    yield {IDS: ids.astype(np.int32), MASK: mask}, "INT32; the model takes INT64|has dtype int32; the model takes int64"
    yield {IDS: ids, MASK: mask[:, :3]}, r"input attention_mask has shape \(20, 3\); the model takes"
    yield {IDS: ids, MASK: spoilt}, "input attention_mask holds NaN or infinity in 1 of 20 rows, the first is row 3"


def test_a_bundle_says_what_the_model_takes(bundle, model):
    manifest = load_bundle(bundle).manifest
    assert manifest.inputs == read_classifier(model).inputs == SPECS
    assert [site["tensor"] for site in manifest.sites] == ["hidden"]


def test_a_guard_answers_clean_texts_by_their_votes_and_corrects_triggered_ones(bundle):
    guard = Guard.load(bundle, threads=1)
    kept = guard(CLEAN)
    assert guard.run_original(CLEAN).outputs.tolist() == votes(CLEAN).tolist()
    assert kept.outputs[~kept.corrected].tolist() == votes(CLEAN)[~kept.corrected].tolist()
    caught = guard(TRIGGERED)
    assert caught.flagged.all()
    assert (caught.predicted_class == TARGET).all()
    assert (caught.corrected_class != TARGET).all()
    # The bounds leave the votes for the other classes as they are.
    others = votes(TRIGGERED)[:, 1:].argmax(axis=1) + 1
    assert (caught.corrected_class == others).mean() > 0.9


@pytest.mark.parametrize("ids_batch", [8, "N"])
def test_bounds_are_learned_by_gradient_too(clean, tmp_path, ids_batch):
    onnx.save(text_classifier(ids_batch=ids_batch), tmp_path / "texts.onnx")
    fitted = fit(tmp_path / "texts.onnx", clean, tmp_path / "bundle", method="unit", limit=100, max_accuracy_drop=0.2)
    verdict = Guard.load(fitted, threads=1)(TRIGGERED)
    assert verdict.flagged.all()
    assert (verdict.corrected_class != TARGET).all()


class MaskedText(nn.Module):
    """A transformer of token ids and their mask, both int64."""

    def __init__(self):
        super().__init__()
        self.text = TextTransformer()

    def forward(self, ids, mask):
        return self.text(ids * mask)


@pytest.mark.parametrize(("exporter", "opset"), [("torchscript", 17), ("dynamo", 18)])
def test_a_transformer_as_torch_exports_it_runs_alike_in_onnxruntime_and_in_torch(exporter, opset):
    torch.manual_seed(0)
    network, ids = MaskedText().eval(), torch.randint(1, VOCABULARY, (5, N_TOKENS))
    mask = (torch.arange(N_TOKENS) < torch.tensor([[3], [12], [7], [1], [9]])).long()
    model = export(network, ids, mask, exporter=exporter, opset=opset, inputs=(IDS, MASK))
    inputs = {MASK: mask, IDS: ids}
    (found,) = OrtModel(serialize(model), label="text").run(each(Tensor.numpy, inputs), ["logits"])
    (differentiable,) = DifferentiableModel(model)(inputs, outputs=["logits"])
    with torch.no_grad():
        np.testing.assert_allclose(found, network(ids, mask), atol=1e-5)
    np.testing.assert_allclose(differentiable, found, atol=1e-5)


def test_a_wrapped_endpoint_is_given_the_inputs_by_name(bundle):
    guard = Guard.load(bundle, threads=1)
    wrapped = guard.wrap(lambda inputs: votes(inputs).astype(np.float32))(TRIGGERED)
    assert wrapped.outputs.tolist() == guard(TRIGGERED).outputs.tolist()


def test_a_bundle_is_measured_on_triggered_texts(bundle, tmp_path):
    guard = Guard.load(bundle, threads=1)
    paths = [tmp_path / name for name in ("clean.npz", "triggered.npz")]
    save_texts(paths[0], 100, seed=8)
    save_texts(paths[1], 100, seed=8, triggered=True, target_classes=np.full(100, TARGET))
    found = evaluate_bundle(guard, *(load_texts(path) for path in paths), lambda *_: None)
    assert (found.original_clean_accuracy, found.original_attack_success_rate) == (1, 1)
    assert (found.guarded_attack_success_rate, found.tpr) == (0, 1)


@pytest.mark.parametrize(("inputs", "message"), [*bad_inputs()])
def test_a_guard_refuses_inputs_that_do_not_fit(bundle, inputs, message):
    guard = Guard.load(bundle, threads=1)
    for judge in (guard, guard.wrap(votes)):
        with pytest.raises(InputError, match=message):
            judge(inputs)


def test_a_guard_refuses_one_array(bundle):
    with pytest.raises(InputError, match="one array was given; the model takes input_ids, attention_mask: give a map"):
        Guard.load(bundle, threads=1)(CLEAN[IDS])


def request_of(inputs, *, model="texts"):
    request = pb.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        datatype = {"int64": "INT64", "int32": "INT32", "float32": "FP32"}[array.dtype.name]
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


@pytest.mark.parametrize(("inputs", "message"), [*bad_inputs()])
def test_a_server_refuses_inputs_that_do_not_fit_and_serves_on(server, inputs, message):
    code, details = server.refuses(request_of(inputs))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert any(part in details for part in message.replace("\\", "").split("|"))
    assert len(server.call("ModelInfer", request_of(CLEAN)).outputs) == 4


def test_more_rows_than_the_limit_in_any_input_are_refused(server):
    rows = {IDS: CLEAN[IDS], MASK: np.zeros((1025, LENGTH), np.float32)}
    assert "1025 rows and the limit is 1024" in server.refuses(request_of(rows))[1]


def test_metadata_and_configuration_list_every_input(server):
    metadata = server.call("ModelMetadata", pb.ModelMetadataRequest(name="texts"))
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        (IDS, "INT64", [-1, LENGTH]),
        (MASK, "FP32", [-1, LENGTH]),
    ]
    config = server.call("ModelConfig", pb.ModelConfigRequest(name="texts")).config
    assert [(i.name, list(i.dims)) for i in config.input] == [(IDS, [LENGTH]), (MASK, [LENGTH])]


def test_an_unmodified_client_gets_the_guards_answer_whatever_the_order_of_its_inputs(server, bundle):
    expected = Guard.load(bundle, threads=1)(TRIGGERED)
    client = triton.InferenceServerClient(f"127.0.0.1:{server.running.port}")
    tensors = [triton.InferInput(MASK, [20, LENGTH], "FP32"), triton.InferInput(IDS, [20, LENGTH], "INT64")]
    for tensor in tensors:
        tensor.set_data_from_numpy(TRIGGERED[tensor.name()])
    answer = client.infer("texts", tensors, client_timeout=TIMEOUT_S)
    client.close()
    assert answer.as_numpy("logits").tobytes() == expected.outputs.tobytes()
    assert answer.as_numpy("guard_flagged").all()


@pytest.mark.parametrize(("ids_batch", "mask_batch"), [(4, 4), (4, "N"), ("N", 4)])
def test_a_fixed_batch_of_any_input_changes_no_verdict(bundle, clean, tmp_path, ids_batch, mask_batch):
    onnx.save(text_classifier(ids_batch=ids_batch, mask_batch=mask_batch), tmp_path / "fixed.onnx")
    fixed = Guard.load(fit(tmp_path / "fixed.onnx", clean, tmp_path / "bundle"), threads=1)
    assert fixed.manifest.inputs == SPECS
    verdicts = [guard({k: v[:7] for k, v in TRIGGERED.items()}) for guard in (fixed, Guard.load(bundle, threads=1))]
    assert verdicts[0].outputs.tobytes() == verdicts[1].outputs.tobytes()


def test_texts_of_any_length_are_taken_where_the_model_leaves_it_free_but_of_one_length_at_a_time(clean, tmp_path):
    onnx.save(text_classifier(length="sequence"), tmp_path / "free.onnx")
    guard = Guard.load(fit(tmp_path / "free.onnx", clean, tmp_path / "bundle"), threads=1)
    short = {name: array[:, :4] for name, array in CLEAN.items()}
    assert guard.run_original(short).outputs.tolist() == votes(short).tolist()
    with live(guard) as server:
        code, details = server.refuses(request_of({**CLEAN, MASK: short[MASK]}, model="free"))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "input attention_mask has shape (20, 4) and input input_ids has shape (20, 8)" in details


def test_the_commands_take_models_with_several_inputs(model, clean, tmp_path, capsys):
    place = str(tmp_path / "bundle")
    assert main(["fit", str(model), "--data", str(clean), "--bundle", place, "--target-fpr", "0.05"]) == 0
    assert main(["evaluate", place, "--clean", str(clean)]) == 0
    assert main(["show", place]) == 0
    assert "attention_mask: float32 (?, 8)" in capsys.readouterr().out
