"""``rounds.json``: what has been done in the folder of a rounds config, and what that means for each step.

Only rank 0 uses this; :mod:`boxsup_d2.rounds.runner`, which runs the steps, tells the others.
"""

import contextlib
import filecmp
import logging
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from boxsup_d2.data.formats.coco import read_json
from boxsup_d2.data.formats.pseudo_masks import label_map_folder
from boxsup_d2.rounds.inputs import InputsCheck, check_inputs
from boxsup_d2.rounds.plan import PlannedStep, pseudo_mask_files, weights_file
from boxsup_d2.same_work import Settings
from boxsup_d2.utils.errors import cause_of
from boxsup_d2.utils.files import atomic_write, strict_json
from boxsup_d2.version import __version__

__all__ = ["Decision", "RoundsState", "explain_write_errors", "missing_outputs"]

logger = logging.getLogger(__name__)

_STATE_VERSION = 1
# What every entry of a step has, and what some have, with the types of their values.
_ENTRY_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("status", "run", "hash"), str),
    **dict.fromkeys(("needs", "settings", "labelling", "evaluation"), dict),
    "attempts": int,
}
_FINISHED_TYPES: dict[str, type | tuple[type, ...]] = {
    "finished": str,
    "seconds": (int, float),
    **dict.fromkeys(("results", "outputs"), dict),
}
_OPTIONAL_TYPES: dict[str, type | tuple[type, ...]] = {
    "inputs": dict,
    **dict.fromkeys(("labels", "former_labels", "error"), str),
}
_STATUSES = ("running", "failed", "relabelling", "finished")


@dataclass(frozen=True)
class Decision:
    """What to do with a step now, why, and where its old folder goes.

    ``action`` is "skip", "evaluate", "relabel", "resume" or "start". Evaluating and relabelling keep the weights of a
    finished step; relabelling evaluates as well.
    """

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
        self._warned: set[str] = set()
        with explain_write_errors(output_dir):
            os.makedirs(output_dir, exist_ok=True)
        if not os.path.exists(self.path):
            return
        try:
            content = read_json(self.path, "rounds")
            if content["version"] != _STATE_VERSION:
                raise ValueError(f"its version is {content['version']}, this program writes {_STATE_VERSION}")
            self.steps = {str(name): dict(entry) for name, entry in content["steps"].items()}
            for name, entry in self.steps.items():
                _check_entry(name, entry)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path} is damaged or not of this program ({error!r}). Put back a good copy, or delete it to "
                "start anew: the steps' folders are then moved aside, not overwritten."
            ) from error

    def write(self) -> None:
        """Write the file so that it is whole at any moment, whenever the process is killed."""
        content = {"version": _STATE_VERSION, "boxsup_d2": __version__, "steps": self.steps}
        with explain_write_errors(self.output_dir), atomic_write(self.path) as file:
            file.write(strict_json(content, indent=1) + "\n")

    def decide(self, planned: PlannedStep) -> Decision:
        """Compare a step with what is remembered of it. Changes nothing."""
        entry = self.steps.get(planned.name)
        if entry is None:
            return Decision("start", "not run yet", self._aside(planned.name, "unknown"))
        aside = self._aside(planned.name, entry["hash"][:8])
        former = Settings(entry["settings"], entry["labelling"], entry["evaluation"])
        if entry["hash"] != planned.hash:
            return Decision("start", _explain_change(former.training, planned.settings.training), aside)
        for name, token in self._needs(planned).items():
            if token != entry["needs"].get(name):
                return Decision("start", f"it was made from a former run of {name}", aside)
        inputs = self._check_inputs(planned, entry)
        for file in inputs.changed:
            if file.for_training:
                return Decision("start", f"{file.path} has another content than when the step ran", aside)
        if entry["status"] in ("running", "failed"):
            return Decision("resume", entry.get("error", "it was interrupted"))
        missing = missing_outputs(planned)
        if "weights" in missing:
            return Decision("start", f"{missing['weights']} is gone", aside)
        relabel = "relabel" if planned.cfg.PSEUDO_MASKS.DATASETS else "evaluate"
        if entry["status"] == "relabelling":
            return Decision(relabel, entry.get("error", "its labelling was interrupted"))
        if former.labelling != planned.settings.labelling:
            return Decision(relabel, "of labelling, " + _explain_change(former.labelling, planned.settings.labelling))
        if inputs.changed:
            return Decision(relabel, f"{inputs.changed[0].path} has another content than when it was labelled")
        if missing:
            return Decision("evaluate", f"{next(iter(missing.values()))} is gone")
        if former.evaluation != planned.settings.evaluation:
            return Decision("evaluate", "its evaluation settings changed")
        return Decision("skip", f"finished {entry['finished']}")

    def skip(self, planned: PlannedStep) -> None:
        """Remember what was looked at of a finished step: times of files that moved, and files that came back."""
        entry = self.steps[planned.name]
        before = dict(entry)
        self._remember(planned, entry)
        if entry != before:
            self.write()

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
                "run": secrets.token_hex(8),
                "needs": self._needs(planned),
                "started": _now(),
                "attempts": 0,
            }
        entry = self.steps[planned.name]
        if decision.action == "relabel":
            if entry["status"] != "relabelling":  # else what lies there was never finished
                entry["former_labels"] = self._labels(planned.name)
                entry["labels"] = secrets.token_hex(8)
            _keep_labels(planned, entry)
            entry["status"] = "relabelling"
        else:
            entry["status"] = "running"
        self._remember(planned, entry)
        entry["attempts"] += 1
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
        if entry["status"] == "relabelling" and _drop_equal_labels(planned, entry):
            entry["labels"] = entry["former_labels"]  # nothing that other steps may have used is another one now
        entry.pop("former_labels", None)
        # What an evaluation alone did not label again keeps the figures of its labelling.
        former = entry.get("results", {})
        kept = {name: former[name] for name in planned.cfg.PSEUDO_MASKS.DATASETS if name in former}
        self._remember(planned, entry)
        entry.update(
            status="finished",
            finished=_now(),
            seconds=round(entry.get("seconds", 0.0) + seconds, 1),
            results={**kept, **_plain(results or {})},
            outputs=outputs,
        )
        self.write()

    def fail(self, planned: PlannedStep, error: Exception) -> None:
        """Remember why a step stopped; it can be resumed. A finished one that was evaluated again stays finished."""
        entry = self.steps[planned.name]
        if entry["status"] in ("running", "relabelling"):
            entry["status"] = "failed" if entry["status"] == "running" else "relabelling"
            kind, message = cause_of(error)
            entry["error"] = f"{kind.__name__}: {message}"[:1000]
            self.write()

    def _needs(self, planned: PlannedStep) -> dict[str, str]:
        """The runs of the needed steps as they are now; of those whose pseudo masks are used, the labellings."""
        return {
            name: self._labels(name) if name in planned.step.pseudo_masks else self.steps.get(name, {}).get("run", "")
            for name in planned.step.needs
        }

    def _labels(self, name: str) -> str:
        """A new token for every run of a step and for every later labelling that changed its pseudo masks."""
        entry = self.steps.get(name, {})
        return entry.get("labels") or entry.get("run", "")

    def _check_inputs(self, planned: PlannedStep, entry: Mapping[str, Any]) -> InputsCheck:
        inputs = check_inputs(planned.inputs, entry.get("inputs", {}))
        for file in inputs.absent:
            if file.path not in self._warned:
                self._warned.add(file.path)
                logger.warning(
                    "Step %s was made with %s, which is not there now: whether it changed cannot be told.",
                    planned.name,
                    file.path,
                )
        return inputs

    def _remember(self, planned: PlannedStep, entry: dict[str, Any]) -> None:
        """What the step depends on, to be compared by :meth:`decide`."""
        settings = planned.settings
        entry.update(
            hash=planned.hash,
            settings=settings.training,
            labelling=settings.labelling,
            evaluation=settings.evaluation,
            inputs=self._check_inputs(planned, entry).fingerprints,
        )

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


def _check_entry(name: str, entry: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: the entry of a step lacks something that :class:`RoundsState` reads, or has it of another type.
    """
    done = entry.get("status") in ("finished", "relabelling")
    needed = {**_ENTRY_TYPES, **(_FINISHED_TYPES if done else {})}
    missing = [key for key in needed if key not in entry]
    if missing:
        raise ValueError(f"step {name} lacks {', '.join(missing)}")
    for key, kind in {**_FINISHED_TYPES, **_OPTIONAL_TYPES, **needed}.items():
        if key in entry and not isinstance(entry[key], kind):
            raise ValueError(f"{key} of step {name} is a {type(entry[key]).__name__}")
    if entry["status"] not in _STATUSES or not all(isinstance(item, str) for item in entry["needs"].values()):
        raise ValueError(f"status or needs of step {name} are unknown")
    if not all(isinstance(item, dict) for item in entry.get("inputs", {}).values()):
        raise ValueError(f"inputs of step {name} are no objects")
    listed = entry.get("outputs", {}).get("pseudo_masks", [])
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise ValueError(f"outputs of step {name} are no paths")


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


def _explain_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if not changed:
        return "a step that it needs changed, or what it needs"
    described = [f"{key} {old.get(key, 'default')} -> {new.get(key, 'default')}" for key in changed[:5]]
    return "config changed: " + ", ".join(described) + (", ..." if len(changed) > 5 else "")


def _former_labels(planned: PlannedStep, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the pseudo masks before a relabelling lie (or lay), and where they are kept."""
    folder = os.path.join(planned.cfg.OUTPUT_DIR, "pseudo_masks")
    aside = f"{folder}.{entry['former_labels'][:8]}"
    names = [os.path.basename(path) for path in entry.get("outputs", {}).get("pseudo_masks", ())]
    return [(os.path.join(folder, name), os.path.join(aside, name)) for name in names]


def _keep_labels(planned: PlannedStep, entry: Mapping[str, Any]) -> None:
    """Give pseudo masks a second name: labelling replaces a file of other settings, and nothing is to be lost."""
    for path, kept in _former_labels(planned, entry):
        if os.path.exists(path) and not os.path.exists(kept):
            with explain_write_errors(planned.cfg.OUTPUT_DIR):
                os.makedirs(os.path.dirname(kept), exist_ok=True)
                maps, kept_maps = label_map_folder(path), label_map_folder(kept)
                if os.path.isdir(maps):  # what the manifest lists, which comes last
                    shutil.copytree(maps, kept_maps, copy_function=_second_name, dirs_exist_ok=True)
                _second_name(path, kept)


def _second_name(path: str, kept: str) -> None:
    if os.path.exists(kept):
        return
    try:
        os.link(path, kept)
    except OSError:  # some file systems know no second names
        shutil.copy2(path, f"{kept}.tmp")
        os.replace(f"{kept}.tmp", kept)


def _drop_equal_labels(planned: PlannedStep, entry: Mapping[str, Any]) -> bool:
    """Remove the second name of every file that labelling left alone; whether all of them were."""
    equal = True
    for path, kept in _former_labels(planned, entry):
        if os.path.exists(path) and os.path.exists(kept) and filecmp.cmp(path, kept, shallow=False):
            os.remove(kept)
            shutil.rmtree(label_map_folder(kept), ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(os.path.dirname(kept))
        else:
            equal = False
    return equal


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
