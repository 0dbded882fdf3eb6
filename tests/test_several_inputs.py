"""A classifier of token ids and a mask, from the model file to a client's answer; and what is refused on the way."""

import grpc
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from digits import fit
from servers import TIMEOUT_S, live
from texts import IDS, LENGTH, MASK, TARGET, save_texts, text_classifier, texts, votes

from calibrate.__main__ import main
from calibrate.data import load_samples
from calibrate.graph import read_classifier
from calibrate.pipeline import evaluate_bundle
from calibrate.preprocessing import Preprocessing
from guard import Guard, InputError
from guard.bundle import load_bundle
from guard.types import TensorSpec
from serving._pb import open_inference_pb2 as pb

SPECS = (
    TensorSpec(name=IDS, dtype="int64", shape=(None, LENGTH)),
    TensorSpec(name=MASK, dtype="float32", shape=(None, LENGTH)),
)
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
    fitted = fit(tmp_path / "texts.onnx", clean, tmp_path / "bundle", method="unit", limit=100)
    verdict = Guard.load(fitted, threads=1)(TRIGGERED)
    assert verdict.flagged.all()
    assert (verdict.corrected_class != TARGET).all()


def test_a_wrapped_endpoint_is_given_the_inputs_by_name(bundle):
    guard = Guard.load(bundle, threads=1)
    wrapped = guard.wrap(lambda inputs: votes(inputs).astype(np.float32))(TRIGGERED)
    assert wrapped.outputs.tolist() == guard(TRIGGERED).outputs.tolist()


def test_a_bundle_is_measured_on_triggered_texts(bundle, tmp_path):
    guard = Guard.load(bundle, threads=1)
    paths = [tmp_path / name for name in ("clean.npz", "triggered.npz")]
    save_texts(paths[0], 100, seed=8)
    save_texts(paths[1], 100, seed=8, triggered=True, target_classes=np.full(100, TARGET))
    found = evaluate_bundle(guard, *(samples_of(path) for path in paths), lambda *_: None)
    assert (found.original_clean_accuracy, found.original_attack_success_rate) == (1, 1)
    assert (found.guarded_attack_success_rate, found.tpr) == (0, 1)


def samples_of(path, **changes):
    settings = {"inputs": SPECS, "n_classes": 3, "preprocessing": Preprocessing(), "limit": None, "seed": 0}
    return load_samples(path, **{**settings, **changes}, progress=lambda *_: None)


def test_arrays_and_labels_stay_together_through_draw_and_split(tmp_path):
    samples = samples_of(save_texts(tmp_path / "x.npz", 90), limit=40).take(np.arange(5, 30))
    assert len(samples) == 25
    assert votes(samples[:]).argmax(axis=1).tolist() == samples.labels.tolist()
    assert {name: array.shape for name, array in samples[3:7].items()} == {IDS: (4, LENGTH), MASK: (4, LENGTH)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({MASK: None}, "holds 'input_ids', 'labels', but no array `attention_mask`; save one of shape (N, ...) for"),
        ({"inputs": CLEAN[IDS]}, "holds 'inputs', which is no input of the model; it takes input_ids, attention_mask"),
        ({MASK: CLEAN[MASK][:9]}, "attention_mask has 9 rows and input_ids has 20; give one row of each per sample"),
        ({MASK: CLEAN[MASK][:0]}, "attention_mask of shape (0, 8) are empty"),
        ({MASK: np.full((20, LENGTH), np.inf)}, "attention_mask hold NaN or infinity as float32"),
        ({MASK: CLEAN[MASK].astype(int)}, "attention_mask of type int64 do not fit the model's input attention_mask"),
        ({IDS: CLEAN[IDS][:, :5]}, "input_ids of shape (20, 5) do not fit the model's input input_ids"),
        ({"labels": np.zeros(19)}, "labels have shape (19,), expected (20,)"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused_by_the_arrays_name(tmp_path, changes, message):
    with pytest.raises(InputError) as refusal:
        samples_of(save_texts(tmp_path / "x.npz", 20, **changes))
    assert message in str(refusal.value)


def test_one_array_and_images_are_refused_by_what_the_model_takes(tmp_path):
    np.save(tmp_path / "x.npy", CLEAN[IDS])
    (tmp_path / "images").mkdir()
    for name, message in (("x.npy", "no array `input_ids`"), ("images", "images only; the model takes input_ids, att")):
        with pytest.raises(InputError, match=message):
            samples_of(tmp_path / name)


def test_a_model_whose_input_is_called_labels_is_refused(tmp_path):
    specs = (SPECS[0], TensorSpec(name="labels", dtype="int64", shape=(None,)))
    with pytest.raises(InputError, match="has an input 'labels', which an"):
        samples_of(save_texts(tmp_path / "x.npz", 20), inputs=specs)


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
