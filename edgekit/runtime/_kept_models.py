"""What a transport's thread has left for its next step: which models still have requests that it shall run, and which of them goes first."""

from __future__ import annotations

from edgekit.runtime._fairness import whose_turn
from edgekit.runtime._loaded_model import LoadedModel

__all__ = ["KeptModels"]


class KeptModels:
    """A set of models in fair order. Safe from several threads: each change is one operation on a dictionary."""

    def __init__(self) -> None:
        self._models: dict[LoadedModel, None] = {}
        self._virtual_s = 0.0  # of the one that ran last: where a model that was idle begins

    def __bool__(self) -> bool:
        return bool(self._models)

    def add(self, model: LoadedModel) -> None:
        """It has requests that are to run here."""
        if model not in self._models:
            model.queue.share.begins(self._virtual_s)
            self._models[model] = None

    def drop(self, model: LoadedModel) -> None:
        """Somebody else has it."""
        self._models.pop(model, None)

    def next(self, now_s: float) -> LoadedModel | None:
        """Take out the one that goes first; ``None`` when there is none."""
        models = list(self._models)
        if not models:
            return None
        chosen = models[0]
        if len(models) > 1:
            for model in models:
                model.queue.plan_share()
            chosen = models[whose_turn([model.queue.share for model in models], now_s)]
        self._virtual_s = max(self._virtual_s, chosen.queue.share.virtual_s)
        self.drop(chosen)
        return chosen
