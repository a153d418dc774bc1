"""Processes, devices, configs and the command line: what stands between a user and the first step."""

import argparse
import atexit
import gc
import importlib
import logging
import os
import subprocess
import sys
import time
import weakref
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm

import boxsup_d2
from boxsup_d2.compat import create_local_process_group, destroy_process_groups
from boxsup_d2.config import add_boxsup_config, files, load_config, use_available_device
from boxsup_d2.data.datasets import require_data_set
from boxsup_d2.engine import defaults
from boxsup_d2.engine.defaults import default_argument_parser, setup
from boxsup_d2.engine.launch import launch
from boxsup_d2.methods import load_model

# The package exports the function under the module's name.
launch_module = importlib.import_module("boxsup_d2.engine.launch")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def parse(*words: str) -> argparse.Namespace:
    return default_argument_parser().parse_args(list(words))


# ------------------------------------------------------------------------------------------------ processes
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_processes_per_machine": -1}, "--num-gpus must be 0 or more"),
        ({"num_processes_per_machine": 1, "num_machines": 2, "machine_rank": 2}, "ranks run from 0 to machines - 1"),
        ({"num_processes_per_machine": 1, "num_machines": 0}, "--num-machines 0"),
        ({"num_processes_per_machine": 1, "num_machines": 2}, "--dist-url auto works on one machine only"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        launch(pytest.fail, **arguments)


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--num-gpus 2, but this machine has 1"):
        launch(pytest.fail, 2)


def test_gpus_are_left_to_detectron2(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    seen = []
    monkeypatch.setattr(launch_module, "detectron2_launch", lambda *arguments: seen.append(arguments))
    launch(print, 2, num_machines=3, machine_rank=1, dist_url="tcp://10.0.0.1:29500", args=("x",))
    assert seen == [(launch_module._run_and_leave, 2, 3, 1, "tcp://10.0.0.1:29500", (print, ("x",)))]


@pytest.mark.parametrize("processes", [0, 1])
def test_one_process_runs_here(no_gpu, processes):
    seen = []
    launch(lambda *arguments: seen.append((os.getpid(), arguments)), processes, args=(1, 2))
    assert seen == [(os.getpid(), (1, 2))]


def _report(folder: str) -> None:
    """Runs in a worker: everything that Detectron2 asks about the process group, and threads, goes to a file."""
    gathered = comm.all_gather(comm.get_rank())
    facts = [comm.get_world_size(), comm.get_local_size(), comm.get_local_rank(), torch.get_num_threads(), gathered]
    with open(os.path.join(folder, str(comm.get_rank())), "w") as file:
        yaml.safe_dump(facts, file)


def test_two_cpu_processes(monkeypatch, in_two_processes, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    in_two_processes(_report, str(tmp_path))
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    for rank in range(2):
        assert yaml.safe_load((tmp_path / str(rank)).read_text()) == [2, 2, rank, threads, [0, 1]]


def _join(rank: int, environment: dict[str, str], folder: str) -> None:
    os.environ.update({key: value.format(rank=rank) for key, value in environment.items()})
    with mock.patch("torch.cuda.is_available", return_value=False):
        launch(_report, 1, args=(folder,))


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "{rank}", "LOCAL_RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        {"SLURM_PROCID": "{rank}", "SLURM_LOCALID": "{rank}", "SLURM_NTASKS": "2"},
    ],
    ids=["torchrun", "srun"],
)
def test_processes_that_a_cluster_started_join(environment, tmp_path):
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch_module._free_port())}
    torch.multiprocessing.start_processes(
        _join, ({**environment, **address}, str(tmp_path)), nprocs=2, start_method="fork"
    )
    for rank in range(2):
        assert yaml.safe_load((tmp_path / str(rank)).read_text()) == [2, 2, rank, 1, [0, 1]]


@pytest.mark.parametrize(
    ("environment", "group"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a"}, None),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"},
            (8, 4, 5, "env://"),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, None),  # the script of sbatch
        (
            {
                "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "9",
                "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "n[07-08],x", "SLURM_STEP_ID": "1",
                "SLURM_JOB_ID": "12",
            },
            (4, 2, 3, "tcp://n07:21201"),
        ),
    ],
)  # fmt: skip
def test_what_a_cluster_says_of_its_processes(environment, group):
    assert launch_module.started_group(environment) == group


def test_contradictions_with_a_cluster_are_errors(monkeypatch):
    here = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    with pytest.raises(ValueError, match=r"Process 1 of 4 is number 0 of 2.*machine by machine"):
        launch_module.started_group(here)
    for key, value in {**here, "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=r"2 processes were started on this machine already.*leave --num-gpus out"):
        launch(pytest.fail, 3)
    launch(lambda: None, 1, join=False)


def test_two_runs_do_not_meet():
    assert parse().dist_url == "auto"


def _fail_on_rank_1() -> None:
    comm.synchronize()
    if comm.get_rank() == 1:
        atexit.register(time.sleep, 2)  # a slow end, so that another rank's error would come first
        raise ValueError("the cause")
    comm.synchronize()


def test_the_error_that_stopped_a_run_is_reported_not_the_other_ranks(in_two_processes):
    with pytest.raises(Exception, match="the cause"):
        in_two_processes(_fail_on_rank_1)


def test_no_process_group_outlives_its_worker(tmp_path):
    # Detectron2 keeps references; a group that lives on may abort the process (see destroy_process_groups).
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    create_local_process_group(1)
    held = [dist.group.WORLD, comm._LOCAL_PROCESS_GROUP, comm._get_global_gloo_group()]
    groups = [weakref.ref(group) for group in held]
    del held
    destroy_process_groups()
    assert not dist.is_initialized()
    gc.collect()
    assert [group() for group in groups] == [None, None, None]


def test_address_that_cannot_be_used_is_explained(monkeypatch):
    def refuse(**_):
        raise OSError("address already in use")

    monkeypatch.setattr(launch_module.dist, "init_process_group", refuse)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(RuntimeError, match=r"cannot meet at tcp://x:1: address already in use.*--dist-url auto"):
        launch_module._worker(0, print, 2, 2, 0, "tcp://x:1", ())


# ------------------------------------------------------------------------------------------------ configs
def write(path, content):
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def test_load_config_merges_in_order(tmp_path):
    write(tmp_path / "base.yaml", {"SEED": 1, "SOLVER": {"MAX_ITER": 5, "IMS_PER_BATCH": 2}})
    leaf = write(tmp_path / "leaf.yaml", {"_BASE_": "base.yaml", "SOLVER": {"MAX_ITER": 6}})
    cfg = load_config(leaf, ["SEED", "7", "DATASETS.TRAIN", "('a',)"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED, cfg.DATASETS.TRAIN) == (6, 2, 7, ("a",))
    assert not cfg.is_frozen()


def test_defaults_are_detectron2s_and_ours():
    cfg = get_cfg()
    add_boxsup_config(cfg)
    assert load_config("") == cfg


@pytest.mark.parametrize("through_base", [False, True])
def test_config_runs_no_code(tmp_path, through_base):
    mark = tmp_path / "ran"
    evil = tmp_path / "evil.yaml"
    evil.write_text(f"MODEL: {{WEIGHTS: !!python/object/apply:os.mkdir ['{mark}']}}\n")
    leaf = write(tmp_path / "leaf.yaml", {"_BASE_": "evil.yaml"}) if through_base else str(evil)
    with pytest.raises(ValueError, match=r"(leaf|evil)\.yaml.*holds more than plain values.*python/object/apply"):
        load_config(leaf)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"SOLVER": {"BASE_LRR": 0.1}},
            r"c\.yaml: there is no config key SOLVER.BASE_LRR. Did you mean SOLVER.BASE_LR",
        ),
        ({"SLOVER": {"BASE_LR": 0.1}}, "SLOVER.BASE_LR. Did you mean SOLVER.BASE_LR"),
        ({"MODEL": {"BOXCASEG": {"ALFA": 0.1}}}, "MODEL.BOXCASEG.ALFA. Did you mean MODEL.BOXCASEG.ALPHA"),
        ({"CHECKPOINT_PERIOD": 5}, "CHECKPOINT_PERIOD. Did you mean SOLVER.CHECKPOINT_PERIOD"),
        ({"XYZZY": {"Q": 1}}, "no config key XYZZY.Q. See boxsup_d2/config/keys.py"),
        ({"MODEL": {"BOXCASEG": {"NONSENSE": 1}}}, "no config key MODEL.BOXCASEG.NONSENSE. See boxsup_d2"),
        ({"MODEL": {"NOPE": 1}}, "no config key MODEL.NOPE. See boxsup_d2"),
        ({"SOLVER": {"MAX_ITER": "many"}}, r"c\.yaml: Type mismatch.*SOLVER.MAX_ITER"),
        ({"SOLVER": 3}, r"c\.yaml: SOLVER is a section; give values to its keys, for example SOLVER\.[A-Z_]+\.$"),
        ({"SOLVER": {"MAX_ITER": {"A": 1}}}, r"c\.yaml: there is no config key SOLVER.MAX_ITER.A"),
        ({"SOLVER": {"MAX_ITER": None}}, r"c\.yaml: SOLVER.MAX_ITER has no value; by default it is 40000"),
        ({"MODEL": None}, r"c\.yaml: MODEL has no value; by default it is a section"),
        ({"MODEL": {"ROI_HEADS": {"IN_FEATURES": [1]}}}, r"c\.yaml: MODEL.ROI_HEADS.IN_FEATURES is \[1\].*texts"),
        ({"MODEL": {"PIXEL_MEAN": ["a"]}}, r"c\.yaml: MODEL.PIXEL_MEAN is \['a'\].*numbers"),
        ({"DATASETS": {"TEST": [[]]}}, r"c\.yaml: DATASETS.TEST is \[\[\]\].*texts"),
        ({"DATASETS": {"REGISTER": [{"JSON": "a\0"}]}}, r"c\.yaml: DATASETS.REGISTER is .*null byte"),
        ({"SEED": 10**400}, r"c\.yaml: SEED is 1000.*: no counter holds so large a number"),
        ("SEED: " + "1" * 5000, r"c\.yaml, or a _BASE_ of it, cannot be read.*4300 digits"),
        ({"_BASE_": "a\0"}, r"c\.yaml, or a _BASE_ of it, cannot be read.*null byte"),
        ({1: 2}, r"c\.yaml: there is no config key 1"),
        ({"VERSION": "x"}, r"c\.yaml: VERSION is 'x', which is no number"),
        ({"_BASE_": 5}, r"c\.yaml: its _BASE_ is no path"),
        ({"_BASE_": "c.yaml"}, r"c\.yaml has a _BASE_ that leads back to it"),
        ({"_BASE_": "."}, r"c\.yaml has a _BASE_ that cannot be read"),
        ("[" * 1200, r"c\.yaml has a _BASE_ that leads back to it or to itself, or is nested too deeply"),
        ("SOLVER: [", r"c\.yaml is not valid yaml"),
        ("", r"c\.yaml, or a _BASE_ of it, holds no KEY: VALUE pairs"),
        ("word", r"c\.yaml, or a _BASE_ of it, holds no KEY: VALUE pairs"),
    ],
)
def test_mistakes_in_a_config_name_file_key_and_fix(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path / "c.yaml", content))


def test_names_that_there_are_not_are_told_by_their_key(no_gpu, quiet_setup, tmp_path):
    config = write(tmp_path / "c.yaml", {"MODEL": {"META_ARCHITECTURE": "GrabCat"}})
    with pytest.raises(ValueError, match=r"c\.yaml: MODEL.META_ARCHITECTURE is 'GrabCat'.*Did you mean 'GrabCut'"):
        setup(parse("--config-file", config, "OUTPUT_DIR", str(tmp_path)))
    with pytest.raises(ValueError, match=r"DATASETS.TEST names 'voc_2012_val_instanse'.*Did you mean 'voc_2012_val_i"):
        setup(
            parse(
                "--config-file",
                write(tmp_path / "d.yaml", {"OUTPUT_DIR": str(tmp_path)}),
                "DATASETS.TEST",
                "('voc_2012_val_instanse',)",
            )
        )
    with pytest.raises(ValueError, match=r"MODEL.DEVICE is 'gpu': use cpu, cuda"):
        setup(parse("--config-file", str(tmp_path / "d.yaml"), "MODEL.DEVICE", "gpu"))
    for key, value, message in (
        ("MODEL.BACKBONE.NAME", "nowhere", "MODEL.BACKBONE.NAME: there is no 'nowhere' in .* BACKBONE"),
        ("MODEL.RPN.IN_FEATURES", "('p9',)", "MODEL.RPN.IN_FEATURES: there is no 'p9'"),
        ("MODEL.RESNETS.DEPTH", 51, r"cannot be built \(KeyError: 51\)"),
    ):
        cfg = load_config("", [key, value, "MODEL.DEVICE", "cpu"])
        with pytest.raises(ValueError, match=message):
            load_model(cfg)


@pytest.mark.parametrize("key", ["DATASETS.TRAIN", "DATASETS.TEST", "PSEUDO_MASKS.DATASETS"])
def test_data_that_are_not_there_are_missed_before_the_work(no_gpu, quiet_setup, tmp_path, datasets_root, key):
    config = write(tmp_path / "c.yaml", {"OUTPUT_DIR": str(tmp_path)})
    words = ["--config-file", config, key, "('voc_2012_val_box',)"]
    with pytest.raises(FileNotFoundError, match=rf"c\.yaml: {key}: Data set 'voc_2012_val_box' expects '.*val\.txt'"):
        setup(parse(*words))
    listed = datasets_root / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("2007_000032\n")
    with pytest.raises(FileNotFoundError, match=r"expects '.*JPEGImages'"):
        setup(parse(*words))
    (datasets_root / "VOC2012" / "JPEGImages").mkdir()
    setup(parse(*words))
    listed.unlink()
    if key == "DATASETS.TRAIN":
        setup(parse("--eval-only", *words))


def test_of_data_sets_of_others_only_what_is_known_to_be_read_is_missed(tmp_path, monkeypatch):
    for name, evaluator, json_file in (
        ("remote", "coco", "https://nowhere/x.json"),
        ("panoptic", "coco_panoptic_seg", "/nowhere/x.json"),
        ("gone", "coco", "/nowhere/x.json"),
    ):
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(evaluator_type=evaluator, json_file=json_file)
    try:
        require_data_set("remote")
        require_data_set("panoptic")
        with pytest.raises(FileNotFoundError, match=r"'/nowhere/x\.json', which does not exist\. Correct the path"):
            require_data_set("gone")
    finally:
        for name in ("remote", "panoptic", "gone"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config file .*nowhere\.yaml"):
        load_config(str(tmp_path / "nowhere.yaml"))
    leaf = write(tmp_path / "leaf.yaml", {"_BASE_": "gone.yaml"})
    with pytest.raises(FileNotFoundError, match=r"leaf\.yaml has a _BASE_ that does not exist: .*gone\.yaml"):
        load_config(leaf)


def test_a_config_of_the_main_branch_is_read_by_0_6(tmp_path, monkeypatch, caplog):
    """As a trained network leaves it: with all keys, most of them at their defaults."""
    cfg = load_config("")
    added = {"DATALOADER": {"REPEAT_SQRT": True}, "FLOAT32_PRECISION": "", "SEED": 5}
    cfg.DATALOADER.pop("REPEAT_SQRT", None)
    cfg.pop("FLOAT32_PRECISION", None)
    monkeypatch.setattr(files, "get_cfg", cfg.clone)
    monkeypatch.setattr(files, "add_boxsup_config", lambda cfg: None)
    with caplog.at_level(logging.INFO):
        read = load_config(write(tmp_path / "c.yaml", added))
    assert read == load_config("", ["SEED", 5])
    assert "c.yaml: left out DATALOADER.REPEAT_SQRT, FLOAT32_PRECISION" in caplog.text
    added["DATALOADER"]["REPEAT_SQRT"] = False
    with pytest.raises(ValueError, match=r"c\.yaml: DATALOADER\.REPEAT_SQRT False is a setting of .*main branch"):
        load_config(write(tmp_path / "c.yaml", added))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.BASE_LR"], "in pairs KEY VALUE; these are 1 words"),
        (["SEED", "1", "--resume"], "--resume comes after the overrides.*before the first KEY VALUE"),
        (["SOLVER.MAX_ITERS", "3"], "no config key SOLVER.MAX_ITERS. Did you mean SOLVER.MAX_ITER"),
        (["seed", "3"], "no config key seed. Did you mean SEED"),
        (["OUTPUT_DR", "x"], r"Did you mean OUTPUT_DIR\?"),
        (["MAX_ITERS", "3"], r"Did you mean SOLVER\.MAX_ITER\?"),
        (["SOLVER.LR", "3"], r"Did you mean SOLVER\.BASE_LR\?"),
        (["TIMM.NAME", "x"], r"Did you mean MODEL\.TIMM\.NAME\?"),
        (["MODEL.BOXCASEG.TEST_SIZE", "3"], r"Did you mean INPUT\.BOX_CROP\.TEST_SIZE\?"),
        (["SOLVER.MAX_ITER", "x"], "Override SOLVER.MAX_ITER x: Type mismatch"),
        (["SOLVER.MAX_ITER", "None"], "Override SOLVER.MAX_ITER None: SOLVER.MAX_ITER has no value"),
        (["DATASETS.TRAIN", "(1,)"], "Override DATASETS.TRAIN .*made of texts"),
    ],
)
def test_mistakes_in_overrides(opts, message):
    with pytest.raises(ValueError, match=message):
        load_config("", opts)


# ------------------------------------------------------------------------------------------------ devices and setup
@pytest.mark.parametrize(
    ("device", "gpu", "num_gpus", "expected", "tell"),
    [
        ("cuda", False, 1, "cpu", True),
        ("cuda", False, 0, "cpu", False),
        ("cuda:1", False, None, "cpu", True),
        ("cpu", False, 1, "cpu", False),
        ("cuda", True, 1, "cuda", False),
        ("cuda", True, 0, "cpu", False),
        ("cpu", True, 1, "cpu", False),
    ],
)
def test_device(monkeypatch, device, gpu, num_gpus, expected, tell):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    cfg = load_config("", ["MODEL.DEVICE", device])
    assert use_available_device(cfg, num_gpus) is tell
    assert expected == cfg.MODEL.DEVICE


@pytest.fixture
def quiet_setup(monkeypatch):
    """setup() without Detectron2's loggers, which would stay for all tests after this one."""
    calls = []

    def default_setup(cfg, args):
        calls.append("default_setup")
        logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found, using CUDA_HOME='x'")

    monkeypatch.setattr(defaults, "default_setup", default_setup)
    monkeypatch.setattr(defaults, "setup_logger", lambda *arguments, **options: calls.append(options["name"]))
    return calls


def test_setup_warns_once_and_freezes(no_gpu, quiet_setup, tmp_path, caplog):
    config = write(tmp_path / "c.yaml", {"VERSION": 2, "OUTPUT_DIR": str(tmp_path / "out")})
    with caplog.at_level(logging.WARNING):
        cfg = setup(parse("--config-file", config))
    assert [record.getMessage() for record in caplog.records] == [
        "No GPU is available: running on the CPU, in 1 process(es)."
    ]
    assert cfg.MODEL.DEVICE == "cpu"
    assert cfg.is_frozen()
    assert (tmp_path / "out").is_dir()
    assert quiet_setup == ["boxsup_d2", "default_setup"]
    caplog.clear()
    setup(parse("--config-file", config, "MODEL.DEVICE", "cpu"))
    assert not caplog.records, "who asks for the CPU needs no warning"


def test_setup_registers_pseudo_masks(no_gpu, quiet_setup, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(defaults, "register_from_cfg", lambda cfg: seen.extend(cfg.DATASETS.PSEUDO_MASKS))
    config = write(tmp_path / "c.yaml", {"OUTPUT_DIR": str(tmp_path), "DATASETS": {"PSEUDO_MASKS": ["a.json"]}})
    setup(parse("--config-file", config))
    assert seen == ["a.json"]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ([], ValueError, "pass --config-file"),
        (["--config-file", "gone.yaml"], FileNotFoundError, r"gone\.yaml"),
        (["--config-file", "{config}", "--round", "1"], ValueError, "config of one step, it has no ROUNDS"),
        (
            ["--config-file", "{config}", "OUTPUT_DIR", "{config}/out"],
            RuntimeError,
            "cannot be made.*OUTPUT_DIR <folder>",
        ),
    ],
)
def test_setup_refuses(quiet_setup, tmp_path, words, error, message):
    config = write(tmp_path / "c.yaml", {"SEED": 1})
    with pytest.raises(error, match=message):
        setup(parse(*(word.format(config=config) for word in words)))
    assert not quiet_setup


def test_cpu_model_in_gpu_processes_is_refused(monkeypatch, quiet_setup, tmp_path):
    monkeypatch.setattr(defaults.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(defaults.dist, "get_backend", lambda: "nccl")
    config = write(tmp_path / "c.yaml", {"SEED": 1})
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES="):
        setup(parse("--config-file", config, "--num-gpus", "2", "MODEL.DEVICE", "cpu"))


# ------------------------------------------------------------------------------------------------ command line, package
def test_train_net_predicts_help(project_root):
    script = project_root / "train_net.py"
    assert len(script.read_text().splitlines()) <= 100
    prediction = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, check=True, cwd=project_root
    ).stdout
    for option in ("--config-file", "--num-gpus", "--num-machines", "--machine-rank", "--dist-url", "--eval-only"):
        assert option in prediction
    assert "--resume" in prediction
    assert "--round NAME" in prediction


def test_import_registers():
    assert boxsup_d2.__version__
    for name in ("BoxCaseg", "BoxFill", "GrabCut"):
        assert name in META_ARCH_REGISTRY
    assert "build_timm_backbone" in BACKBONE_REGISTRY
