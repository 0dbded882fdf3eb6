#!/usr/bin/env python3
"""A FastAPI endpoint that runs its own model, guarded in process.

    python examples/fastapi_app.py guarded/ model.onnx --port 8080
    curl -s localhost:8080/predict -H 'content-type: application/json' -d '{"inputs": [[...]]}'

What an endpoint has to change is one line: ``predict`` becomes ``guard.wrap(predict)``. The model stays where it is,
here in an onnxruntime session, and may as well be in torch or behind a queue.
"""

import argparse
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from numpy.typing import NDArray
from pydantic import BaseModel

from guard import Guard, InputError

__all__ = ["create_app", "session_predict"]


class Question(BaseModel):
    """Rows in nested lists, as the model takes them."""

    inputs: list[Any]


class Answer(BaseModel):
    """The answer to each row, and whether it raised the alarm: the score and the evidence stay here."""

    classes: list[int]
    outputs: list[list[float]]
    flagged: list[bool]


def session_predict(model: Path) -> Any:
    """Return the endpoint as it was before: inputs in, the model's first output out."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: session.run(None, {name: inputs})[0]


def create_app(guard: Guard, predict: Any) -> FastAPI:
    """Return the application.

    Args:
        guard: Judges what predict answers; its model has one input.
        predict: Maps inputs (N, ...) to the original's outputs (N, C).
    """
    app = FastAPI(title="guarded")
    guarded = guard.wrap(predict)
    dtype = guard.manifest.inputs[0].dtype

    def rows(question: Question) -> NDArray[Any]:
        try:
            # What does not fit the type becomes infinite, and is refused by the guard.
            with np.errstate(over="ignore"):
                return np.asarray(question.inputs, dtype=dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise HTTPException(422, f"inputs are no array of {dtype}: {error}") from error

    # No coroutine: FastAPI then runs it in a thread, and the models do not hold up other requests.
    @app.post("/predict")
    def answer(inputs: Annotated[NDArray[Any], Depends(rows)]) -> Answer:
        try:
            verdict = guarded(inputs)
        except InputError as error:
            raise HTTPException(422, str(error)) from error
        return Answer(
            classes=verdict.corrected_class.tolist(),
            outputs=verdict.outputs.tolist(),
            flagged=verdict.flagged.tolist(),
        )

    return app


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description="Serve a guarded model with FastAPI.")
    parser.add_argument("bundle", type=Path, help="what guard-calibrate fit wrote")
    parser.add_argument("model", type=Path, help="the model that the endpoint runs, ONNX")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    app = create_app(Guard.load(options.bundle), session_predict(options.model))
    uvicorn.run(app, host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
