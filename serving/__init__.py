"""The online half of Trigger Guard: answers the Open Inference Protocol with what the guard says."""

__all__: list[str] = []
