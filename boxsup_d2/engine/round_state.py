"""``rounds.json``: what has been done in the folder of a rounds config, and what that means for each step.

Only rank 0 uses this; :mod:`boxsup_d2.engine.rounds`, which runs the steps, tells the others.
"""

import contextlib
import json
import logging
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import boxsup_d2
from boxsup_d2.engine.round_plan import PlannedStep, pseudo_mask_files, weights_file

__all__ = ["Decision", "RoundsState", "explain_write_errors", "missing_outputs"]

logger = logging.getLogger(__name__)

_STATE_VERSION = 1


@dataclass(frozen=True)
class Decision:
    """What to do with a step now: "skip", "evaluate", "resume" or "start", why, and where its old folder goes."""

    action: str
    reason: str
    aside: str = ""


class RoundsState:
    """``rounds.json``: what has been done in an output folder. Used by rank 0 only.

    Args:
        output_dir: the folder of the rounds; made where absent.

    Raises:
        ValueError: if the file is there but cannot be understood.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = output_dir
        self.path = os.path.join(output_dir, "rounds.json")
        self.steps: dict[str, dict[str, Any]] = {}
        with explain_write_errors(output_dir):
            os.makedirs(output_dir, exist_ok=True)
        if not os.path.exists(self.path):
            return
        try:
            with open(self.path, encoding="utf-8") as file:
                content = json.load(file)
            if content["version"] != _STATE_VERSION:
                raise ValueError(f"its version is {content['version']}, this program writes {_STATE_VERSION}")
            self.steps = {str(name): dict(entry) for name, entry in content["steps"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path} is damaged or not of this program ({error!r}). Put back a good copy, or delete it to "
                "start anew: the steps' folders are then moved aside, not overwritten."
            ) from error

    def write(self) -> None:
        """Write the file so that it is whole at any moment, whenever the process is killed."""
        temporary = f"{self.path}.tmp"
        content = {"version": _STATE_VERSION, "boxsup_d2": boxsup_d2.__version__, "steps": self.steps}
        with explain_write_errors(self.output_dir):
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)

    def decide(self, planned: PlannedStep) -> Decision:
        """Compare a step with what is remembered of it. Changes nothing."""
        entry = self.steps.get(planned.name)
        if entry is None:
            return Decision("start", "not run yet", self._aside(planned.name, "unknown"))
        aside = self._aside(planned.name, entry["hash"][:8])
        if entry["hash"] != planned.hash:
            return Decision("start", _explain_change(entry, planned), aside)
        for name in planned.step.needs:
            if self.steps.get(name, {}).get("run") != entry["needs"].get(name):
                return Decision("start", f"it was made from a former run of {name}", aside)
        if entry["status"] != "finished":
            return Decision("resume", entry.get("error", "it was interrupted"))
        missing = missing_outputs(planned)
        if "weights" in missing:
            return Decision("start", f"{missing['weights']} is gone", aside)
        if missing:
            return Decision("evaluate", f"{next(iter(missing.values()))} is gone")
        if entry["evaluation"] != planned.evaluation:
            return Decision("evaluate", "its evaluation settings changed")
        return Decision("skip", f"finished {entry['finished']}")

    def begin(self, planned: PlannedStep, decision: Decision) -> None:
        """Remember that a step runs, after moving what a former run left in its folder aside."""
        if decision.action == "evaluate":
            return  # it stays finished, so that a kill during the evaluation costs nothing but the evaluation
        if decision.aside:
            with explain_write_errors(self.output_dir):
                os.rename(planned.cfg.OUTPUT_DIR, decision.aside)
            logger.info("Moved the former %s to %s", planned.name, decision.aside)
        if decision.action == "start":
            self.steps[planned.name] = {
                "round": planned.step.round,
                "hash": planned.hash,
                "run": secrets.token_hex(8),
                "needs": {name: self.steps[name]["run"] for name in planned.step.needs},
                "settings": planned.settings,
                "started": _now(),
                "attempts": 0,
            }
        entry = self.steps[planned.name]
        entry.update(status="running", evaluation=planned.evaluation, attempts=entry["attempts"] + 1)
        entry.pop("error", None)
        self.write()

    def finish(self, planned: PlannedStep, results: Any, seconds: float) -> None:
        """Remember a step as finished, with its results and outputs.

        Raises:
            RuntimeError: if it did not leave the weights or pseudo masks that its config promises.
        """
        missing = missing_outputs(planned)
        if missing:
            raise RuntimeError(f"Step {planned.name} ended, but did not write {', '.join(missing.values())}.")
        outputs: dict[str, Any] = {
            "pseudo_masks": [os.path.relpath(path, self.output_dir) for path in pseudo_mask_files(planned.cfg)]
        }
        if not planned.step.eval_only:
            outputs["weights"] = os.path.relpath(weights_file(planned.cfg), self.output_dir)
        entry = self.steps[planned.name]
        # What an evaluation alone did not label again keeps the figures of its labelling.
        former = entry.get("results", {})
        kept = {name: former[name] for name in planned.cfg.PSEUDO_MASKS.DATASETS if name in former}
        entry.update(
            status="finished",
            finished=_now(),
            seconds=round(entry.get("seconds", 0.0) + seconds, 1),
            evaluation=planned.evaluation,
            results={**kept, **_plain(results or {})},
            outputs=outputs,
        )
        self.write()

    def fail(self, planned: PlannedStep, error: Exception) -> None:
        """Remember why a step stopped; it can be resumed. A finished one that was evaluated again stays finished."""
        entry = self.steps[planned.name]
        if entry["status"] == "running":
            entry.update(status="failed", error=f"{type(error).__name__}: {error}"[:1000])
            self.write()

    def _aside(self, name: str, tag: str) -> str:
        """A free name for the step's present folder, "" if it has none or an empty one."""
        folder = os.path.join(self.output_dir, name)
        if not os.path.isdir(folder) or not os.listdir(folder):
            return ""
        aside, number = f"{folder}.{tag}", 1
        while os.path.exists(aside):
            number += 1
            aside = f"{folder}.{tag}.{number}"
        return aside


def missing_outputs(planned: PlannedStep) -> dict[str, str]:
    """Files that a step should have left and that are not there: "weights" or the labelled data set -> path."""
    expected = dict(zip(planned.cfg.PSEUDO_MASKS.DATASETS, pseudo_mask_files(planned.cfg), strict=True))
    if not planned.step.eval_only:
        expected = {"weights": weights_file(planned.cfg), **expected}
    return {kind: path for kind, path in expected.items() if not os.path.exists(path)}


@contextlib.contextmanager
def explain_write_errors(folder: str) -> Iterator[None]:
    """Turn what the system says about a folder that cannot be written into what to do about it."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(
            f"{folder} cannot be written: {error}. Free some space, or name another folder: OUTPUT_DIR <folder>."
        ) from error


def _explain_change(entry: Mapping[str, Any], planned: PlannedStep) -> str:
    old, new = entry["settings"], planned.settings
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if not changed:
        return "a step that it needs changed, or what it needs"
    described = [f"{key} {old.get(key, 'default')} -> {new.get(key, 'default')}" for key in changed[:5]]
    return "config changed: " + ", ".join(described) + (", ..." if len(changed) > 5 else "")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """Results as json can hold them; numbers that are not finite (the AP of absent sizes) become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None
