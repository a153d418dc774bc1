"""What a rounds config asks for: its steps, checked, each with its resolved config and its hash.

Reads configs, writes nothing and runs nothing; :mod:`boxsup_d2.rounds.runner` does. Everything that can be wrong with
a rounds config is found here, before the first step starts its night of training.
"""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from boxsup_d2.config import load_config, use_available_device
from boxsup_d2.data.datasets import register_listed
from boxsup_d2.evaluation import find_builder
from boxsup_d2.labelling.driver import pseudo_mask_path
from boxsup_d2.modeling.box_to_mask import AuxiliaryNetwork, box_to_mask_classes, method_info
from boxsup_d2.modeling.build import check_architecture
from boxsup_d2.rounds.inputs import InputFile, input_files
from boxsup_d2.same_work import Settings, changed_settings, counts_by_content, network_paths, split_settings
from boxsup_d2.utils.files import json_sha256

__all__ = ["PlannedStep", "Step", "parse_rounds", "plan_rounds", "pseudo_mask_files", "weights_file"]

# Fields of a step and of a round, with the types that yaml may give them.
_STEP_FIELDS: dict[str, tuple[type, ...]] = {
    "NAME": (str, int),
    "CONFIG": (str,),
    "OPTS": (list, tuple),
    "EVAL_ONLY": (bool,),
    "WEIGHTS": (str, int),
    "PSEUDO_MASKS": (list, tuple, str),
}
_ROUND_FIELDS: dict[str, tuple[type, ...]] = {"NAME": (str, int), "STEPS": (list, tuple)}


@dataclass(frozen=True)
class Step:
    """One step as the rounds config states it.

    Attributes:
        config: path.
        weights: step that it starts from, or "".
        auxiliary: steps that train the other networks which its method uses, by the field that names each.
        pseudo_masks: steps whose pseudo masks it uses.
    """

    name: str
    round: str
    config: str
    opts: tuple = ()
    eval_only: bool = False
    weights: str = ""
    auxiliary: Mapping[str, str] = field(default_factory=dict)
    pseudo_masks: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the steps whose weights or pseudo masks it uses, each once."""
        return tuple(dict.fromkeys(filter(None, [self.weights, *self.auxiliary.values(), *self.pseudo_masks])))


@dataclass(frozen=True)
class PlannedStep:
    """A step with everything decided.

    Attributes:
        step: as stated in the rounds config.
        cfg: its resolved config, frozen; ``OUTPUT_DIR`` is the step's own folder.
        hash: sha256 (hex) of what determines its weights, the needed steps' hashes included.
        settings: the config values that differ from the defaults. Only those of training are in the hash: a finished
            training is not thrown away because someone wants another threshold for its labels, or another metric.
        inputs: the files that it reads and no step makes, see :func:`boxsup_d2.rounds.inputs.input_files`.
    """

    step: Step
    cfg: CfgNode
    hash: str
    settings: Settings = field(default_factory=Settings)
    inputs: dict[str, InputFile] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.step.name


def weights_file(cfg: CfgNode) -> str:
    """Where a step with this config leaves its weights."""
    return os.path.join(cfg.OUTPUT_DIR, "model_final.pth")


def pseudo_mask_files(cfg: CfgNode) -> tuple[str, ...]:
    """The pseudo-mask files that a step with this config leaves, in the order of ``PSEUDO_MASKS.DATASETS``."""
    label_format = cfg.PSEUDO_MASKS.FORMAT
    return tuple(pseudo_mask_path(cfg.OUTPUT_DIR, name, label_format) for name in cfg.PSEUDO_MASKS.DATASETS)


def parse_rounds(rounds: Sequence[Any], rounds_file: str) -> list[Step]:
    """Check the ``ROUNDS`` list of a config and return its steps in the order given.

    Args:
        rounds: ``cfg.ROUNDS``; docs/rounds.md lists the fields.
        rounds_file: the file it came from; ``CONFIG`` paths are relative to its folder.

    Raises:
        ValueError: if a field is unknown, missing or of the wrong type, a name is taken twice or no folder name, or a
            step needs one that does not come before it.
        FileNotFoundError: if a step's config is absent.
    """
    steps: dict[str, Step] = {}
    round_names: set[str] = set()
    for number, entry in enumerate(rounds, 1):
        where = f"{rounds_file}, ROUNDS entry {number}"
        _check_fields(entry, _ROUND_FIELDS, required=("NAME", "STEPS"), where=where)
        round_name = str(entry["NAME"])
        if round_name in round_names:
            raise ValueError(f"{where}: there are two rounds called {round_name}.")
        round_names.add(round_name)
        if not entry["STEPS"]:
            raise ValueError(f"{where}: round {round_name} has no STEPS.")
        for position, fields in enumerate(entry["STEPS"], 1):
            where = f"{rounds_file}, round {round_name}, step {position}"
            step = _parse_step(fields, round_name, where, os.path.dirname(rounds_file))
            if step.name in steps:
                raise ValueError(f"{where}: there are two steps called {step.name}; each has a folder of its own.")
            _check_needs(step, steps, where)
            steps[step.name] = step
    return list(steps.values())


def plan_rounds(cfg: CfgNode, args: argparse.Namespace) -> list[PlannedStep]:
    """Resolve the configs of all steps of a rounds config, in order.

    Overrides of the command line come last, after each step's ``OPTS``, except ``OUTPUT_DIR``, which names the folder
    that the steps' folders are made in.

    Args:
        cfg: the rounds config, as :func:`boxsup_d2.engine.defaults.setup` returned it.
        args: the command line: ``config_file``, ``opts``, ``num_gpus``.

    Raises:
        ValueError, FileNotFoundError: as :func:`parse_rounds` and ``load_config``; if a step uses a data set that is
            neither registered nor written by a step it names.
    """
    _refuse_other_keys(args.config_file)
    pairs = zip(args.opts[0::2], args.opts[1::2], strict=True)
    overrides = [word for pair in pairs if pair[0] not in ("OUTPUT_DIR", "ROUNDS") for word in pair]
    planned: dict[str, PlannedStep] = {}
    for step in parse_rounds(cfg.ROUNDS, args.config_file):
        step_cfg = load_config(step.config, [*step.opts, *overrides])
        if step_cfg.ROUNDS:
            raise ValueError(f"{step.config}, the config of step {step.name}, has ROUNDS of its own: list its steps.")
        check_architecture(step_cfg, step.config)
        _add_data_sets(step_cfg, cfg.DATASETS.REGISTER, trains=not step.eval_only)
        changed = changed_settings(step_cfg)
        settings = split_settings(changed)
        for key, path in network_paths(step_cfg).items():
            if counts_by_content(step_cfg, path):  # of local files; see :mod:`boxsup_d2.rounds.inputs`
                settings.training.pop(key, None)
                settings.labelling.pop(key, None)
        use_available_device(step_cfg, args.num_gpus)
        step_cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, step.name)
        if "PSEUDO_MASKS.STEP" not in changed:
            step_cfg.PSEUDO_MASKS.STEP = step.name  # the provenance of its files
        if step.weights:
            step_cfg.MODEL.WEIGHTS = weights_file(planned[step.weights].cfg)
        asked = _auxiliary_networks(step, step_cfg)
        for network, source in asked:
            trained = planned[source].cfg
            # Its resolved config, which its run leaves in its folder.
            config_file = os.path.join(trained.OUTPUT_DIR, "config.yaml")
            step_cfg.merge_from_list([network.config_key, config_file, network.weights_key, weights_file(trained)])
        files = [path for name in step.pseudo_masks for path in pseudo_mask_files(planned[name].cfg)]
        for name in step.pseudo_masks:
            if not planned[name].cfg.PSEUDO_MASKS.DATASETS:
                raise ValueError(
                    f"{args.config_file}: step {step.name} uses the pseudo masks of {name}, "
                    f"which labels nothing: set PSEUDO_MASKS.DATASETS in {planned[name].step.config}."
                )
        step_cfg.DATASETS.PSEUDO_MASKS = (*step_cfg.DATASETS.PSEUDO_MASKS, *files)
        _check_datasets(step, step_cfg)
        for network, source in asked:
            _check_auxiliary(step, step_cfg, network, planned[source])
        step_cfg.freeze()
        digest = _hash(step, settings.training, {name: planned[name].hash for name in step.needs})
        made = {os.path.splitext(os.path.basename(path))[0] for path in files}
        inputs = input_files(
            step_cfg,
            trains=not step.eval_only,
            from_steps=[
                *(["MODEL.WEIGHTS"] if step.weights else []),
                *(key for network, _ in asked for key in (network.config_key, network.weights_key)),
            ],
            made=made,
        )
        planned[step.name] = PlannedStep(step, step_cfg, digest, settings, inputs)
    return list(planned.values())


def _add_data_sets(cfg: CfgNode, entries: Sequence[Mapping[str, Any]], *, trains: bool) -> None:
    """Register the data sets of a step, and give its config those of the rounds config that it uses.

    Only these: another step's data set must not make this one look changed. The config that a step leaves in its folder
    then runs by itself.
    """
    used = {*cfg.DATASETS.TEST, *cfg.PSEUDO_MASKS.DATASETS, *(cfg.DATASETS.TRAIN if trains else ())}
    own = {entry.get("NAME") for entry in cfg.DATASETS.REGISTER if isinstance(entry, Mapping)}
    cfg.DATASETS.REGISTER += [dict(entry) for entry in entries if entry["NAME"] in used and entry["NAME"] not in own]
    register_listed(cfg.DATASETS.REGISTER)


def _check_fields(entry: Any, fields: Mapping[str, tuple[type, ...]], required: Sequence[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: expected fields ({', '.join(fields)}), found {entry!r}.")
    for key, value in entry.items():
        if key not in fields:
            raise ValueError(f"{where}: unknown field {key}; there are {', '.join(fields)}.")
        # bool is an int to Python, but "NAME: yes" is a slip
        if not isinstance(value, fields[key]) or (isinstance(value, bool) and bool not in fields[key]):
            kinds = " or ".join(kind.__name__ for kind in fields[key])
            raise ValueError(f"{where}: {key} must be {kinds}, not {value!r}.")
    for key in required:
        if key not in entry:
            raise ValueError(f"{where}: {key} is missing.")


def _parse_step(fields: Any, round_name: str, where: str, folder: str) -> Step:
    known = {**_STEP_FIELDS, **dict.fromkeys(_auxiliary_fields(), (str, int))}
    _check_fields(fields, known, required=("NAME", "CONFIG"), where=where)
    name = str(fields["NAME"])
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"{where}: NAME {name!r} names a folder: use letters, digits, - and _.")
    config = os.path.join(folder, os.path.expanduser(fields["CONFIG"]))
    if not os.path.isfile(config):
        raise FileNotFoundError(f"{where} ({name}): there is no config file {config} (CONFIG is relative to the file).")
    opts = fields.get("OPTS", ())
    if len(opts) % 2:
        raise ValueError(f"{where} ({name}): OPTS come in pairs KEY, VALUE; these are {len(opts)} words: {opts}")
    sources = fields.get("PSEUDO_MASKS", ())
    return Step(
        name=name,
        round=round_name,
        config=config,
        opts=tuple(opts),
        eval_only=fields.get("EVAL_ONLY", False),
        weights=str(fields.get("WEIGHTS", "")),
        auxiliary={key: str(fields[key]) for key in _auxiliary_fields() if fields.get(key)},
        pseudo_masks=(sources,) if isinstance(sources, str) else tuple(str(source) for source in sources),
    )


def _check_needs(step: Step, earlier: Mapping[str, Step], where: str) -> None:
    for name in step.needs:
        if name not in earlier:
            known = ", ".join(earlier) or "none"
            raise ValueError(f"{where} ({step.name}): needs step {name}, which does not come before it ({known} do).")
    for field_name, name in (("WEIGHTS", step.weights), *step.auxiliary.items()):
        if name and earlier[name].eval_only:
            raise ValueError(f"{where} ({step.name}): {field_name} {name} is EVAL_ONLY and leaves no weights.")


def _check_datasets(step: Step, cfg: CfgNode) -> None:
    """A misspelt data set or task should not show after the night's training that the first step took."""
    labelled = [os.path.splitext(os.path.basename(path))[0] for path in cfg.DATASETS.PSEUDO_MASKS]
    for name in labelled:
        if labelled.count(name) > 1:
            raise ValueError(f"{step.config}, step {step.name}: {name} would come from several steps; keep one.")
    known = {*DatasetCatalog.list(), *labelled}
    used = [*cfg.DATASETS.TEST, *cfg.PSEUDO_MASKS.DATASETS]
    if not step.eval_only:
        used += cfg.DATASETS.TRAIN
    for name in used:
        if name not in known:
            raise ValueError(
                f"{step.config}, step {step.name}: there is no data set {name}. Pseudo masks are called "
                "<labelled data set>_pseudo, or _pseudo_sem_seg by PSEUDO_MASKS.FORMAT, and their step is named in "
                "PSEUDO_MASKS of this one."
            )
    for name in cfg.DATASETS.TEST:
        if name not in labelled:  # which are registered once they are there
            for task in cfg.TEST.TASKS:
                _find_builder(step, name, task)


def _auxiliary_fields() -> tuple[str, ...]:
    """Fields of a step that name the steps of networks which methods use."""
    infos = [kind.info for kind in box_to_mask_classes().values()]
    return tuple(dict.fromkeys(network.step_field for info in infos for network in info.auxiliary))


def _auxiliary_networks(step: Step, cfg: CfgNode) -> list[tuple[AuxiliaryNetwork, str]]:
    """The networks that the step's method uses and other steps train, with the names of these.

    Raises:
        ValueError: the method uses no such network.
    """
    known = {asked.step_field: asked for asked in method_info(cfg).auxiliary}
    for field_name in step.auxiliary:
        if field_name not in known:
            raise ValueError(
                f"{step.config}, step {step.name}: a {cfg.MODEL.META_ARCHITECTURE} uses no {field_name}: remove the "
                "field."
            )
    return [(known[field_name], source) for field_name, source in step.auxiliary.items()]


def _check_auxiliary(step: Step, cfg: CfgNode, network: AuxiliaryNetwork, source: PlannedStep) -> None:
    """Two networks of one form are easily mixed up: COCO-60's segmenter is for learning, VOC's for labelling VOC."""
    made = [os.path.splitext(os.path.basename(path))[0] for path in cfg.DATASETS.PSEUDO_MASKS]
    used = dict.fromkeys([*(() if step.eval_only else cfg.DATASETS.TRAIN), *cfg.PSEUDO_MASKS.DATASETS])
    # Data sets that steps make are registered when they are there.
    classes = {name: MetadataCatalog.get(name).get("thing_classes") or () for name in used if name not in made}
    network.check(source.cfg, classes, f"{step.config}, step {step.name}: {network.step_field} {source.name}")


def _find_builder(step: Step, name: str, task: str) -> None:
    try:
        find_builder(name, task)
    except ValueError as error:
        raise ValueError(f"{step.config}, step {step.name}: {error}") from error


def _refuse_other_keys(rounds_file: str) -> None:
    """Any other key of a rounds config would be read by nothing; say so rather than let it look effective."""
    content = CfgNode.load_yaml_with_base(rounds_file, allow_unsafe=False)
    other = set(content) - {"ROUNDS", "OUTPUT_DIR", "VERSION"}
    datasets = content.get("DATASETS")
    if isinstance(datasets, Mapping):
        other.discard("DATASETS")
        other |= {f"DATASETS.{key}" for key in datasets if key != "REGISTER"}
    if other:
        raise ValueError(
            f"{rounds_file}: {', '.join(sorted(other))} beside ROUNDS would be ignored. Set it in the steps' configs "
            "or OPTS, or on the command line, which goes to every step."
        )


def _hash(step: Step, settings: Mapping[str, Any], needed: Mapping[str, str]) -> str:
    content = {
        "settings": settings,
        "eval_only": step.eval_only,
        "weights": needed.get(step.weights, ""),
        **{field_name.lower(): needed[name] for field_name, name in step.auxiliary.items()},
        "pseudo_masks": [needed[name] for name in step.pseudo_masks],
    }
    return json_sha256(content)
