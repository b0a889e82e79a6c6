"""Records of the predecessor's `code_eval` and `phonebook` (PyPI `retrieval-heads` 0.1.2), as fields of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Count = Annotated[int, Field(strict=True, ge=0)]
_Some = Annotated[int, Field(strict=True, ge=1)]


class _Judged(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    correct: Annotated[bool, Field(strict=True)]
    prompt: str | None = None

    def judged(self) -> dict[str, object]:
        """Its judgement: the whole answer is the expected one, or it is not."""
        return {
            "metric": "exact",
            "threshold": 0.5,
            "scores": {"exact": float(self.correct)},
            "passed": self.correct,
            "status": "pass" if self.correct else "low",
            "prompt": self.prompt,
        }


class _Phonebook(_Judged):
    phonebook_length: _Some
    entry_pos: _Count
    depth_percent: Annotated[int, Field(strict=True, ge=0, le=100)]
    name: str
    phone_number: str
    text: str
    token_ids: list[_Count]

    def fields(self) -> dict[str, object]:
        steps = self.phonebook_length - 1
        return {
            "task": "phonebook",
            "axes": {"entries": self.phonebook_length, "depth": self.depth_percent},
            "achieved_depth": min(100.0, 100 * self.entry_pos / steps) if steps else 0.0,
            "question": self.name,
            "reference": self.phone_number,
            "text": self.text,
            "token_ids": self.token_ids,
        }


class _CodeEval(_Judged):
    context: str
    num_vars: _Some
    num_steps: _Count | None
    target_var: str
    target_value: Annotated[int, Field(strict=True)]
    output: str
    experiment_type: str

    def fields(self) -> dict[str, object]:
        kind = self.experiment_type.partition(":")[2].lower()
        return {
            "task": "program",
            "axes": {"program": kind, "variables": self.num_vars, "steps": self.num_steps or 0},
            "question": f"{self.context}\n{self.target_var}",
            "reference": str(self.target_value),
            "text": self.output,
        }


def task_fields(data: Mapping[str, object]) -> dict[str, object] | None:
    """A record of another experiment than needles, in our fields; `None` for needles.

    Raises:
        ValidationError: A field is missing, or is not what the predecessor writes.
    """
    experiment = str(data.get("experiment_type"))
    if experiment == "phonebook":
        book = _Phonebook.model_validate(data)
        return {**book.fields(), **book.judged()}
    if experiment in ("code_eval:RECALL", "code_eval:STATE_TRACKING", "code_eval:STATE_BASED_RECALL"):
        program = _CodeEval.model_validate(data)
        return {**program.fields(), **program.judged()}
    return None
